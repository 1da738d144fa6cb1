//! Panics are bugs. They are told in the log, and what can go on without the part that had one goes on.

use std::backtrace::Backtrace;
use std::convert::Infallible;
use std::future::pending;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook};
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::error;

/// Between a panic and the next try, so that one that comes every time does not fill the log.
const PAUSE: Duration = Duration::from_millis(100);

/// Has panics told in the log, where whoever runs the proxy looks.
pub fn tell() {
    set_hook(Box::new(|panic: &PanicHookInfo<'_>| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let what = what.unwrap_or("a value that is no text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current().name().unwrap_or_default().to_owned();
        // Empty unless RUST_BACKTRACE asks for it.
        let backtrace = Backtrace::capture().to_string();
        error!(what, place, thread, backtrace, "a panic, which is a bug; please report it with the log");
    }));
}

/// Runs `work` again whenever it has panicked, until it returns.
pub fn outlast(mut work: impl FnMut()) {
    while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
        // What happened has been told by the hook.
        thread::sleep(PAUSE);
    }
}

/// Watches tasks that others rely on without asking: when one of them has panicked, so does who awaits this.
pub async fn share(tasks: &mut JoinSet<()>) -> Infallible {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
            Some(_) => {}
            None => return pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_on_after_a_panic() {
        let mut times = 0;
        outlast(|| {
            times += 1;
            assert!(times > 2, "too early");
        });
        assert_eq!(times, 3);
    }

    #[tokio::test]
    async fn a_panic_of_a_task_is_that_of_those_who_rely_on_it() {
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        let relying = tokio::spawn(async move {
            let mut tasks = JoinSet::new();
            tasks.spawn(async {});
            tasks.spawn(pending());
            tasks.spawn(async move {
                let _ = ends.await;
                panic!("a bug");
            });
            match share(&mut tasks).await {}
        });
        tokio::task::yield_now().await;
        assert!(!relying.is_finished());
        drop(end);
        let error = relying.await.expect_err("a panic");
        let payload = error.into_panic();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"a bug"));
    }
}
