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

/// What is asked for, and what an answer to it means.
const PLACES: [(&str, fn(&str) -> Option<Notice>); 3] = [
    ("spot/instance-action", |text| {
        // Stopping and hibernating take the machine away too.
        (!text.trim().is_empty()).then_some(Notice::Interruption)
    }),
    ("events/recommendations/rebalance", |text| {
        (!text.trim().is_empty()).then_some(Notice::Rebalance)
    }),
    ("autoscaling/target-lifecycle-state", |text| {
        (text.trim() == "Terminated").then_some(Notice::Termination)
    }),
];

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
    for (path, read) in PLACES {
        let text = metadata.find(path).await?;
        if let Some(notice) = text.as_deref().and_then(read) {
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
        let read = |place: usize, text| PLACES[place].1(text);
        let action = r#"{"action": "terminate", "time": "2026-11-21T08:22:00Z"}"#;
        assert_eq!(read(0, action), Some(Notice::Interruption));
        assert_eq!(read(1, r#"{"noticeTime": "x"}"#), Some(Notice::Rebalance));
        assert_eq!(read(2, "Terminated\n"), Some(Notice::Termination));
        assert_eq!(read(2, "InService"), None);
        assert_eq!(read(0, " "), None);
    }
}
