//! The demo must not be able to lie.

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
