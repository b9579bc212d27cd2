//! Checks a published commit in a clean checkout, independently of the agent that made it.

use std::collections::BTreeMap;

use muster_proto::v1::{Empty, Failed, Failure, report};

use super::Stop;
use super::launch::Launched;
use super::machine::{Happened, left};
use super::runner::Runner;
use super::scribe::Scribe;
use crate::agent::command::{judge, shell};
use crate::document::TaskDocument;
use crate::failure::{chain, class, failure, one_line};

/// As much of a command as people are shown.
const DETAIL_BYTES_MAX: usize = 1_024;

impl Runner {
    /// Runs the verify commands one after the other; the first failure decides.
    pub(super) async fn verify(&mut self, scribe: &Scribe) -> report::Kind {
        scribe.phase("preparing", "").await;
        let task = match TaskDocument::parse(&self.grant.document) {
            Ok(task) => task,
            Err(error) => return failed(failure(class::WORKSPACE, &chain(&error), b"")),
        };
        if let Err(happened) = self.prepare().await {
            return ended(happened);
        }
        let mut given = match self.given(&task, &BTreeMap::new()) {
            Ok(given) => given,
            Err(failure) => return failed(failure),
        };
        self.hide(&task, &mut given);
        let ends_at = self.began.after(self.limit(task.verify_timeout_ms));
        for (number, command) in (1..).zip(&task.verify) {
            scribe
                .phase("verifying", &one_line(command, DETAIL_BYTES_MAX))
                .await;
            let mut program = self.program(&task, number, shell(command), &given);
            program.ends_at = ends_at;
            let what = format!("`{command}`");
            let launched = match self.launch(program, scribe).await {
                Ok(launched) => launched,
                Err(Happened::Failed(found)) => {
                    let message = format!("{what}: {}", found.message);
                    return failed(failure(&found.class, &message, found.output.as_bytes()));
                }
                Err(happened) => return ended(happened),
            };
            let Launched { report, tail, .. } = launched;
            if let Err(failure) = judge(&what, class::VERIFY_FAILED, &report.end, &tail) {
                return failed(failure);
            }
        }
        report::Kind::VerifyPassed(Empty {})
    }
}

fn failed(failure: Failure) -> report::Kind {
    report::Kind::Failed(Failed {
        failure: Some(failure),
        usage: None,
    })
}

/// Tells what became of a verify that did not come to its verdict.
fn ended(happened: Happened) -> report::Kind {
    match happened {
        Happened::Stopped(stop) => stopped(stop),
        Happened::Failed(failure) => failed(failure),
        Happened::Prepared | Happened::Done | Happened::Published(_) => failed(failure(
            class::WORKER_LOST,
            "the worker lost track of the verify",
            b"",
        )),
    }
}

fn stopped(stop: Stop) -> report::Kind {
    match stop {
        Stop::Salvage => report::Kind::Stopped(Empty {}),
        Stop::Leave | Stop::HandOver(_) => report::Kind::GivenBack(left(stop)),
    }
}
