//! Checks a published commit in a clean checkout, independently of the agent that made it.

use std::sync::Arc;

use muster_proto::v1::{Empty, Failed, Failure, report};

use super::Stop;
use super::launch::Launched;
use super::machine::Happened;
use super::runner::{Runner, prepare, until_stopped};
use super::scribe::Scribe;
use crate::agent::command::{judge, shell};
use crate::document::TaskDocument;
use crate::failure::{chain, class, failure};

impl Runner {
    /// Runs the verify commands one after the other; the first failure decides.
    pub(super) async fn verify(&mut self, scribe: &Scribe) -> report::Kind {
        scribe.phase("preparing", "").await;
        let task = match TaskDocument::parse(&self.grant.document) {
            Ok(task) => task,
            Err(error) => return failed(failure(class::WORKSPACE, &chain(&error), b"")),
        };
        let site = Arc::clone(&self.site);
        let (grant, folder) = (Arc::clone(&self.grant), self.folder.clone());
        match until_stopped(&mut self.orders, prepare(&site, &grant, &folder)).await {
            Err(stop) => return stopped(stop),
            Ok(Err(failure)) => return failed(failure),
            Ok(Ok(_)) => {}
        }
        let ends_at = self.began.after(self.limit(task.verify_timeout_ms));
        for (number, command) in (1..).zip(&task.verify) {
            scribe.phase("verifying", command).await;
            let mut program = self.program(&task, number, shell(command));
            program.ends_at = ends_at;
            let what = format!("`{command}`");
            let launched = match self.launch(program, scribe).await {
                Ok(launched) => launched,
                Err(Happened::Stopped(stop)) => return stopped(stop),
                Err(Happened::Failed(mut failure)) => {
                    failure.message = format!("{what}: {}", failure.message);
                    let tail = failure.output.clone();
                    let bounded = self::failure(&failure.class, &failure.message, tail.as_bytes());
                    return failed(bounded);
                }
                Err(_) => return failed(failure(class::WORKER_LOST, &what, b"")),
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

fn stopped(stop: Stop) -> report::Kind {
    match stop {
        Stop::Salvage => report::Kind::Stopped(Empty {}),
        Stop::Leave => {
            let message = "the worker was told to leave";
            report::Kind::GivenBack(failure(class::PREEMPTED, message, b""))
        }
    }
}
