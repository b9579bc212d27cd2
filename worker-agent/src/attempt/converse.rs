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
        (resumed, scribe): (Option<String>, &Scribe),
    ) -> Result<Option<(Dialogue, Means)>, Failure> {
        let Some(conversation) = agent.conversation(task) else {
            return Ok(None);
        };
        let resume = self.grant.resume.as_ref();
        let has_edits = |source: &GitSource| source.commit != source.base;
        let edits = self.grant.source.as_ref().is_some_and(has_edits);
        let anew = match resume {
            Some(resume) if edits => Beginning::Unfinished(resume.attempt),
            _ => Beginning::Clean,
        };
        let schema = task.output_schema.as_ref();
        let schema = schema.filter(|_| !agent.takes_schema());
        let prompt = |beginning| {
            let prompt = prompt::first(task, beginning, &self.grant.earlier);
            let prompt = match schema {
                Some(schema) => prompt::with_schema(&prompt, schema),
                None => prompt,
            };
            // Others hid what was secret to them.
            self.hidden.text(&prompt)
        };
        let anew = prompt(anew);
        let (prompt, anew) = match (&resumed, resume) {
            (Some(_), Some(resume)) => {
                let attempt = resume.attempt;
                (prompt(Beginning::Resumed { attempt, edits }), anew)
            }
            _ => (anew, String::new()),
        };
        let subject = Subject {
            opening: Opening {
                folder: place.work.clone(),
                prompt,
                instructions: self.instructions(task)?,
                resume: resumed,
                anew,
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

    /// Says in the transcript what the agent of this attempt knows of those before.
    pub(super) async fn note_what_is_known(&self, resumed: Option<&str>, scribe: &Scribe) {
        let note = match (&self.grant.resume, resumed) {
            (Some(_), Some(_)) => return,
            (Some(resume), None) => {
                let why = if resume.session.is_empty() {
                    "it had opened no conversation".to_owned()
                } else if resume.host != self.site.host {
                    format!("its conversation is on the host {}", resume.host)
                } else {
                    "its agent does not have its conversation any more".to_owned()
                };
                let attempt = resume.attempt;
                format!("attempt {attempt} was cut off and {why}: begun anew, with a summary of it")
            }
            (None, _) => {
                let told = self.grant.earlier.iter();
                let told: Vec<String> = told.map(|one| one.attempt.to_string()).collect();
                if told.is_empty() {
                    return;
                }
                format!("begun anew, with a summary of attempt {}", told.join(", "))
            }
        };
        scribe.note(note).await;
    }

    /// Gives the session of an earlier attempt that is to be gone on with. Only its own host has it.
    pub(super) fn earlier_session(&self) -> Option<&str> {
        let resume = self.grant.resume.as_ref();
        let resume = resume.filter(|resume| resume.host == self.site.host)?;
        Some(resume.session.as_str()).filter(|session| !session.is_empty())
    }
}
