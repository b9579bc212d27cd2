//! Prepares the conversation of an attempt.

use muster_proto::v1::Failure;

use super::dialogue::{Dialogue, Subject};
use super::prompt::{self, Beginning};
use super::runner::Runner;
use super::scribe::Scribe;
use super::talk::Means;
use crate::agent::conversation::Opening;
use crate::agent::{Agent, Place};
use crate::document::TaskDocument;

impl Runner {
    /// Prepares the conversation with a task's agent, if there is one.
    pub(super) fn dialogue(
        &self,
        task: &TaskDocument,
        agent: &dyn Agent,
        place: &Place<'_>,
        scribe: &Scribe,
    ) -> Result<Option<(Dialogue, Means)>, Failure> {
        let Some(conversation) = agent.conversation(task) else {
            return Ok(None);
        };
        let resume = self.grant.resume.as_ref();
        let beginning = resume.map_or(Beginning::Clean, |resume| {
            Beginning::Unfinished(resume.attempt)
        });
        let mut prompt = prompt::first(task, beginning);
        if let Some(schema) = task
            .output_schema
            .as_ref()
            .filter(|_| !agent.takes_schema())
        {
            prompt = prompt::with_schema(&prompt, schema);
        }
        let subject = Subject {
            opening: Opening {
                folder: place.work.clone(),
                prompt,
                instructions: task.instructions.clone().unwrap_or_default(),
                resume: self.earlier_session().map(str::to_owned),
                output_schema: task.output_schema.clone(),
            },
            policy: task.approvals.clone(),
            work: self.work_folder(),
        };
        let means = Means {
            lease: self.grant.lease,
            told: self.site.told.clone(),
            scribe: scribe.clone(),
            hidden: self.hidden.clone(),
            orders: self.orders.clone(),
        };
        Ok(Some((Dialogue::new(conversation, subject)?, means)))
    }

    /// Gives the session of an earlier attempt that is to be gone on with. Only its own host has it.
    pub(super) fn earlier_session(&self) -> Option<&str> {
        let resume = self.grant.resume.as_ref();
        let resume = resume.filter(|resume| resume.host == self.site.host)?;
        Some(resume.session.as_str()).filter(|session| !session.is_empty())
    }
}
