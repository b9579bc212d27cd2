//! What the metadata service says about the instance's end.

use std::time::Duration;

use super::metadata::{Error, Metadata};

/// Pause between two looks; AWS advises five seconds, and a notice comes two minutes ahead.
const PAUSE: Duration = Duration::from_secs(5);

/// Why an instance goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// EC2 takes a spot instance back, in two minutes.
    Interruption,
    /// EC2 says that a spot instance is likely to be taken back; there may be more time, or none.
    Rebalance,
    /// Its group ends it.
    Termination,
}

impl Notice {
    /// Says it to people.
    pub(crate) const fn message(self) -> &'static str {
        match self {
            Self::Interruption => "EC2 takes the spot instance back",
            Self::Rebalance => "EC2 says that the spot instance is likely to be taken back",
            Self::Termination => "the instance's group ends it",
        }
    }
}

/// What is asked for, and what an answer other than nothing means.
const PLACES: [(&str, Notice); 3] = [
    // Stopping and hibernating take the machine away too.
    ("spot/instance-action", Notice::Interruption),
    ("events/recommendations/rebalance", Notice::Rebalance),
    ("autoscaling/target-lifecycle-state", Notice::Termination),
];

/// Tells whether an answer is a notice: the group always says what it wants of an instance.
fn is_notice(notice: Notice, text: &str) -> bool {
    match notice {
        Notice::Interruption | Notice::Rebalance => !text.trim().is_empty(),
        Notice::Termination => text.trim() == "Terminated",
    }
}

/// Waits until the instance is said to go away.
pub(crate) async fn watch(metadata: &Metadata) -> Notice {
    let mut is_silent = false;
    loop {
        match look(metadata).await {
            Ok(Some(notice)) => return notice,
            Ok(None) => is_silent = false,
            Err(error) => {
                if !is_silent {
                    let error = crate::failure::chain(&error);
                    tracing::warn!(
                        error,
                        "the metadata service cannot say whether the instance goes away"
                    );
                }
                is_silent = true;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(metadata: &Metadata) -> Result<Option<Notice>, Error> {
    for (path, notice) in PLACES {
        let text = metadata.find(path).await?;
        if text.is_some_and(|text| is_notice(notice, &text)) {
            return Ok(Some(notice));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_and_an_instance_that_stays_gives_none() {
        let action = r#"{"action": "terminate", "time": "2026-11-21T08:22:00Z"}"#;
        assert!(is_notice(Notice::Interruption, action));
        assert!(is_notice(Notice::Rebalance, r#"{"noticeTime": "x"}"#));
        assert!(is_notice(Notice::Termination, "Terminated\n"));
        assert!(!is_notice(Notice::Termination, "InService"));
        assert!(!is_notice(Notice::Interruption, " "));
    }
}
