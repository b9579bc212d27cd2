//! What a worker joins with: a token that it was given, or one that it claims.

use muster_connect::Token;
use tokio::sync::watch;

use super::{EXIT_USAGE, Failed, WorkerArgs};
use crate::failure::chain;
use crate::identity::Allocation;
use crate::options::Wish;

/// What a worker joins with.
pub(super) struct Entry {
    pub(super) token: Token,
    /// The allocation that it runs in.
    pub(super) allocation: Option<Allocation>,
}

impl WorkerArgs {
    /// Gives what the worker joins with; `None` when it was told to leave before it was let in.
    pub(super) async fn entry(
        &self,
        wish: &watch::Sender<Wish>,
        wishes: watch::Receiver<Wish>,
    ) -> Result<Option<Entry>, Failed> {
        if self.ec2 {
            return self.claim(wish, wishes).await;
        }
        let read = match &self.token_file {
            Some(file) => muster_connect::read_token_file(file).map_err(|e| chain(&e)),
            None => Err("name the file with the join token with --token-file".to_owned()),
        };
        let token = read.map_err(|text| Failed {
            text,
            code: EXIT_USAGE,
        })?;
        let allocation = Allocation::find(|name| std::env::var(name).ok());
        Ok(Some(Entry { token, allocation }))
    }

    #[cfg(not(feature = "ec2"))]
    #[expect(clippy::unused_async, reason = "with EC2 it waits")]
    async fn claim(
        &self,
        _: &watch::Sender<Wish>,
        _: watch::Receiver<Wish>,
    ) -> Result<Option<Entry>, Failed> {
        Err(Failed {
            text: "this program was built without EC2; build it with --features coordinator/ec2".to_owned(),
            code: EXIT_USAGE,
        })
    }

    /// Claims the token of this instance's allocation, and watches for the instance's end from then on.
    #[cfg(feature = "ec2")]
    async fn claim(
        &self,
        wish: &watch::Sender<Wish>,
        mut wishes: watch::Receiver<Wish>,
    ) -> Result<Option<Entry>, Failed> {
        use std::path::Path;

        use super::{EXIT_REFUSED, wish_for};
        use crate::ec2;
        use crate::options::Coordinator;

        let usage = |text| Failed {
            text,
            code: EXIT_USAGE,
        };
        let Coordinator::Address(address) = self.coordinator().map_err(usage)? else {
            return Err(usage("--ec2 needs --coordinator".to_owned()));
        };
        let file = self.ca_file.as_deref().unwrap_or(Path::new("ca.pem"));
        let ca = muster_connect::CaCertificate::read(file);
        let ca = ca.map_err(|error| usage(chain(&error)))?;
        let metadata = ec2::Metadata::new();
        let watched = metadata.clone();
        let wish = wish.clone();
        tokio::spawn(async move {
            let notice = ec2::watch(&watched).await;
            tracing::warn!(
                why = notice.message(),
                "the instance goes away; handing over"
            );
            wish_for(&wish, Wish::HandOver);
        });
        tokio::select! {
            claimed = ec2::claim(&metadata, &address, ca, &self.pool) => {
                let (token, instance) = claimed.map_err(|error| Failed {
                    text: chain(&error),
                    code: EXIT_REFUSED,
                })?;
                // Images give many machines one host name and one folder.
                let allocation = Some(Allocation {
                    name: instance,
                    restarts: 0,
                    is_machine: true,
                });
                Ok(Some(Entry { token, allocation }))
            }
            // Whatever is wished for: it holds nothing.
            _ = wishes.changed() => Ok(None),
        }
    }
}
