//! What the metadata service says about the instance's end.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

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

/// Tells whether an answer is a notice: the group always says what it wants of an instance, and the others
/// are objects of JSON, unlike the page of something that stands in between.
fn is_notice(notice: Notice, text: &str) -> bool {
    match notice {
        Notice::Interruption | Notice::Rebalance => text.trim().starts_with('{'),
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

/// Asks all places at once: trouble with one of them hides no notice of another.
async fn look(metadata: &Metadata) -> Result<Option<Notice>, Error> {
    let asked = PLACES.map(async |(path, notice)| (notice, metadata.find(path).await));
    let mut answers = FuturesUnordered::from_iter(asked);
    let mut trouble = None;
    while let Some((notice, answer)) = answers.next().await {
        match answer {
            Ok(Some(text)) if is_notice(notice, &text) => return Ok(Some(notice)),
            Ok(_) => {}
            Err(error) => trouble = Some(error),
        }
    }
    trouble.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn notices_are_read_and_an_instance_that_stays_gives_none() {
        let action = r#"{"action": "terminate", "time": "2026-11-21T08:22:00Z"}"#;
        assert!(is_notice(Notice::Interruption, action));
        assert!(is_notice(Notice::Rebalance, r#"{"noticeTime": "x"}"#));
        assert!(is_notice(Notice::Termination, "Terminated\n"));
        assert!(!is_notice(Notice::Termination, "InService"));
        for other in [" ", "<html>Sign in</html>"] {
            assert!(!is_notice(Notice::Interruption, other));
            assert!(!is_notice(Notice::Rebalance, other));
        }
    }

    /// A metadata service that is broken where spot instances look, and says that the group ends this one.
    async fn half_broken() -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut asked = String::new();
                    while !asked.ends_with("\r\n\r\n") {
                        let mut bytes = [0; 4096];
                        let read = stream.read(&mut bytes).await.unwrap();
                        if read == 0 {
                            return;
                        }
                        asked.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
                    }
                    let (status, body) = match asked.split(' ').nth(1).unwrap() {
                        "/latest/api/token" => ("200 OK", "token"),
                        path if path.ends_with("target-lifecycle-state") => {
                            ("200 OK", "Terminated")
                        }
                        _ => ("500 Broken", ""),
                    };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                         content-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        Metadata::at(&endpoint)
    }

    #[tokio::test]
    async fn trouble_with_one_place_hides_no_notice_of_another() {
        let metadata = half_broken().await;
        let heard = tokio::time::timeout(Duration::from_secs(30), watch(&metadata)).await;
        assert_eq!(heard.unwrap(), Notice::Termination);
    }
}
