//! Prepares the conversation of an attempt.

use muster_proto::v1::Failure;

use super::dialogue::{Dialogue, Subject};
use super::launch::Program;
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
        program: &Program,
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
        // Only this host has the conversation.
        let resume = resume.filter(|resume| resume.host == self.site.host);
        let session = resume.map(|resume| resume.session.clone());
        let subject = Subject {
            opening: Opening {
                folder: place.work.clone(),
                prompt,
                instructions: task.instructions.clone().unwrap_or_default(),
                resume: session.filter(|session| !session.is_empty()),
                output_schema: task.output_schema.clone(),
                env: program.env.clone(),
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
}
