//! Prepares the conversation of an attempt.

use std::fmt::Write as _;
use std::path::{Component, Path};

use muster_proto::v1::{Failure, GitSource};

use super::dialogue::{Dialogue, Leases, Subject};
use super::launch::Program;
use super::policy::Grounds;
use super::prompt::{self, Beginning};
use super::runner::Runner;
use super::scribe::Scribe;
use super::talk::Means;
use crate::agent::conversation::{ErrorClass, Opening};
use crate::agent::{Agent, Place};
use crate::document::TaskDocument;
use crate::failure::{class, failure};

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
        let has_edits = |source: &GitSource| source.commit != source.base;
        let has_edits = self.grant.source.as_ref().is_some_and(has_edits);
        let unfinished = resume.filter(|_| has_edits);
        let beginning =
            unfinished.map_or(Beginning::Clean, |resume| match self.earlier_session() {
                Some(_) => Beginning::Resumed(resume.attempt),
                None => Beginning::Unfinished(resume.attempt),
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
                instructions: self.instructions(task)?,
                resume: self.earlier_session().map(str::to_owned),
                output_schema: task.output_schema.clone(),
                env: program.env.clone(),
            },
            policy: task.approvals.clone(),
            grounds: Grounds {
                work: self.work_folder(),
                folder: place.work.clone(),
                skills: self.folder.skills(),
            },
            answered: resume.map_or_else(Vec::new, |resume| resume.answered.clone()),
            leases: Leases {
                folder: self.site.leases.clone(),
                own: self.grant.lease,
            },
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

    /// Gives the persona's text, and puts its skills where the agent can read them: not into the work
    /// tree, where they would become a part of its change.
    fn instructions(&self, task: &TaskDocument) -> Result<String, Failure> {
        let mut text = task.instructions.clone().unwrap_or_default();
        let folder = self.folder.skills();
        for (path, content) in &task.skills {
            let plain = Path::new(path)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                let message = format!("the skill file {path:?} of the persona leads elsewhere");
                return Err(failure(ErrorClass::InvalidRequest.name(), &message, b""));
            }
            let file = folder.join(path);
            let written = file
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| std::fs::write(&file, content));
            written.map_err(|error| {
                let message = format!("cannot write {}: {error}", file.display());
                failure(class::WORKSPACE, &message, b"")
            })?;
        }
        let mains = task.skills.keys().filter(|path| path.ends_with("SKILL.md"));
        let mut mains = mains.peekable();
        if mains.peek().is_some() {
            text.push_str("\n\nYou have skills. Read a file before you do what it is about:\n");
            for path in mains {
                // Fails never: it is a string.
                let _ = writeln!(text, "- {}", folder.join(path).display());
            }
        }
        Ok(text)
    }

    /// Gives the session of an earlier attempt that is to be gone on with. Only its own host has it.
    pub(super) fn earlier_session(&self) -> Option<&str> {
        let resume = self.grant.resume.as_ref();
        let resume = resume.filter(|resume| resume.host == self.site.host)?;
        Some(resume.session.as_str()).filter(|session| !session.is_empty())
    }
}
