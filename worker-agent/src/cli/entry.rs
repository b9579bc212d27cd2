//! What a worker joins with: a token that it was given, or one that it claims.

use muster_connect::Token;
use tokio::sync::watch;

use super::{EXIT_USAGE, Failed, WorkerArgs};
use crate::doctor::WayIn;
use crate::failure::chain;
use crate::identity::Allocation;
use crate::options::Wish;

#[cfg(not(feature = "ec2"))]
const WITHOUT_EC2: &str =
    "this program was built without EC2; build it with --features coordinator/ec2";

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
        let token = self.read_token().map_err(|text| Failed {
            text,
            code: EXIT_USAGE,
        })?;
        let allocation = Allocation::find(|name| std::env::var(name).ok());
        Ok(Some(Entry { token, allocation }))
    }

    fn read_token(&self) -> Result<Token, String> {
        match &self.token_file {
            Some(file) => muster_connect::read_token_file(file).map_err(|error| chain(&error)),
            None => Err("name the file with the join token with --token-file".to_owned()),
        }
    }

    /// Gives what the worker would join with; claims nothing.
    pub(super) fn way_in(&self) -> WayIn {
        #[cfg(feature = "ec2")]
        if self.ec2 {
            return WayIn::Instance(self.authority().map_err(|error| chain(&error)));
        }
        #[cfg(not(feature = "ec2"))]
        if self.ec2 {
            return WayIn::Token(Err(WITHOUT_EC2.to_owned()));
        }
        WayIn::Token(self.read_token())
    }

    /// Reads whom an instance trusts.
    #[cfg(feature = "ec2")]
    fn authority(&self) -> Result<muster_connect::CaCertificate, muster_connect::CaError> {
        let file = self.ca_file.as_deref();
        muster_connect::CaCertificate::read(file.unwrap_or(std::path::Path::new("ca.pem")))
    }

    #[cfg(not(feature = "ec2"))]
    #[expect(clippy::unused_async, reason = "with EC2 it waits")]
    async fn claim(
        &self,
        _: &watch::Sender<Wish>,
        _: watch::Receiver<Wish>,
    ) -> Result<Option<Entry>, Failed> {
        Err(Failed {
            text: WITHOUT_EC2.to_owned(),
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
        let ca = self.authority().map_err(|error| usage(chain(&error)))?;
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
