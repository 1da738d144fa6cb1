//! The demo must not be able to lie.

use std::process::Command;

use cachefence::demo::{Between, DemoOptions, run};

/// Its control: with nothing in between, both applications go wrong, and it says so.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_proxy_it_reports_a_failure() -> Result<(), Box<dyn std::error::Error>> {
    let outcome = run(DemoOptions { stay: false, between: Between::Nothing }).await?;
    assert_eq!(outcome.rows.len(), 4);
    for row in &outcome.rows {
        assert!(row.direct_went_wrong && row.through_went_wrong, "{row:?}");
    }
    assert!(!outcome.proven());
    Ok(())
}

/// The program, as `make demo` runs it: everything goes wrong straight, nothing through the proxy.
#[test]
fn with_the_proxy_nothing_goes_wrong() -> Result<(), Box<dyn std::error::Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_cachefence")).arg("demo").output()?;
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{printed}\n{errors}", output.status);
    assert!(printed.contains("4 of 4 went wrong straight, 0 of 4 through cachefence."), "{printed}");
    assert!(printed.contains("cachefence_fills_total{"), "{printed}");
    assert!(printed.lines().all(|line| line.chars().count() <= 110), "{printed}");
    Ok(())
}
