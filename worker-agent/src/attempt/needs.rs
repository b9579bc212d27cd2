//! What a task names and its host or work tree must have, told before or instead of a start.

use std::path::Path;

use muster_proto::v1::Failure;

use crate::agent::conversation::ErrorClass;
use crate::document::TaskDocument;
use crate::failure::{class, failure};
use crate::supervisor::ExecFailure;

/// Finds what a model's task names and is not there. Agents say nothing about it, and go on without.
pub(super) fn missing(task: &TaskDocument, work: &Path) -> Option<Failure> {
    let wrong = |message: &str| failure(ErrorClass::InvalidRequest.name(), message, b"");
    let mut images = task.images.iter();
    if let Some(image) = images.find(|image| !work.join(image).is_file()) {
        let message = format!(
            "the task's image {image:?} is no file of the work tree it starts from: commit it, or \
             correct `images`"
        );
        return Some(wrong(&message));
    }
    let mut folders = task.add_dirs.iter();
    let folder = folders.find(|folder| !Path::new(folder).is_dir())?;
    let message = format!(
        "the task's folder {folder:?} is not there on this worker: make it, choose workers that have \
         it by `labels`, or correct `add_dirs`"
    );
    Some(wrong(&message))
}

/// Says that a program of an agent could not be started, why, and what to do.
pub(super) fn not_started(program: &str, task: &TaskDocument, reason: &ExecFailure) -> Failure {
    let why = match reason {
        ExecFailure::NotFound => {
            "there is no such program here, or not the one that its first line names".to_owned()
        }
        ExecFailure::PermissionDenied => "it may not be executed here".to_owned(),
        ExecFailure::WorkingFolder { message } => {
            format!("its folder cannot be entered: {message}")
        }
        ExecFailure::Other { message } => message.clone(),
    };
    let name = match task.agent.name.as_str() {
        "" => &task.agent.kind,
        name => name,
    };
    let mut message =
        format!("the program `{program}` of agent {name} could not be started: {why}");
    if let ExecFailure::NotFound | ExecFailure::PermissionDenied = reason {
        message.push_str(&format!(
            "; install it on this worker, start the worker with `--agent {name}=COMMAND`, or correct \
             its `command`"
        ));
    }
    failure(class::AGENT_UNAVAILABLE, &message, b"")
}
