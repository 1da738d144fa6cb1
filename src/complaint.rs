//! Complaints that would come with every client, or ten times a second, made every now and then.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);

/// When something was complained of last.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<Instant>);

impl Complaint {
    /// Not made yet.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// Whether it is to be made once more.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_made_at_once_and_the_next_later() {
        let mut complaint = Complaint::default();
        assert!(complaint.is_due());
        assert!(!complaint.is_due());
        complaint.0 = complaint.0.and_then(|last| last.checked_sub(INTERVAL));
        assert!(complaint.is_due());
    }
}
