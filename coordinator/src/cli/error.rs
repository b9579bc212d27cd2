//! What ends a command: an exit code, and for errors a kind, a message with its chain, and hints.

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use tonic::{Code, Status};

use crate::output::{self, Output, harmless};

/// How a command ended that did what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Success,
    /// Something was found wrong, and said: a check of `doctor`.
    Problems,
    /// A plan was checked and is wrong.
    WrongPlan,
    /// The run failed.
    RunFailed,
    /// The tasks succeeded, but their work does not merge.
    IntegrationConflict,
    /// The run was cancelled.
    Cancelled,
    /// The person pressed Ctrl-C.
    Interrupted,
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Problems => 1,
            Self::WrongPlan => 2,
            Self::RunFailed => 10,
            Self::IntegrationConflict => 11,
            Self::Cancelled => 12,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Who can do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// We: a bug, or a machine that refuses.
    Internal,
    /// Whoever owns what standard output goes to: it is full, or broken.
    Output,
    /// The person who typed the command or wrote the plan.
    User,
    /// Whoever wrote the configuration file.
    Config,
    /// Whoever runs the coordinator or the network.
    Connection,
    /// Nobody: the person wanted an end.
    Interrupted,
    /// Nobody: who read our output has enough.
    BrokenPipe,
}

impl Kind {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Internal | Self::Output => 1,
            Self::User => 2,
            Self::Config => 3,
            Self::Connection => 4,
            Self::Interrupted => 130,
            // What a shell reports for a program that SIGPIPE has ended.
            Self::BrokenPipe => 141,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Internal => "internal error",
            Self::User | Self::Output | Self::BrokenPipe => "error",
            Self::Config => "configuration error",
            Self::Connection => "connection error",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct CliError {
    kind: Kind,
    error: anyhow::Error,
    /// Said first and as it is: findings with their places.
    findings: Option<String>,
    hints: Vec<String>,
    code: Option<Code>,
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    pub(crate) fn new(kind: Kind, error: impl Into<anyhow::Error>) -> Self {
        Self {
            kind,
            error: error.into(),
            findings: None,
            hints: Vec::new(),
            code: None,
        }
    }

    pub(crate) fn user(message: impl fmt::Display) -> Self {
        Self::new(Kind::User, anyhow::Error::msg(message.to_string()))
    }

    pub(crate) fn connection(message: impl fmt::Display) -> Self {
        Self::new(Kind::Connection, anyhow::Error::msg(message.to_string()))
    }

    pub(crate) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Kind::Internal, error)
    }

    /// Adds what may help, on a line of its own.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds findings that programs read, such as `FILE:LINE:COLUMN: …`.
    pub(crate) fn findings(mut self, findings: impl Into<String>) -> Self {
        self.findings = Some(findings.into());
        self
    }

    /// Says what could not be done because of this: `while_doing("read a")` says "cannot read a".
    pub(crate) fn while_doing(self, what: impl fmt::Display) -> Self {
        self.within(format!("cannot {what}"))
    }

    /// Says what this is a part of, in a sentence of its own.
    pub(crate) fn within(mut self, sentence: impl fmt::Display) -> Self {
        self.error = self.error.context(sentence.to_string());
        self
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Gives the coordinator's verdict, if it was it that refused.
    pub(crate) const fn status(&self) -> Option<Code> {
        self.code
    }

    /// Gives the message with its chain, on one line.
    pub(crate) fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// Says everything on standard error.
    pub(crate) fn report(&self, output: Output) {
        if self.kind != Kind::BrokenPipe {
            output.complain(&self.text(output.talk_paint));
        }
    }

    /// Says it as something that is so, not as something that went wrong.
    pub(crate) fn mention(&self, output: Output) {
        output.say(&harmless(&self.error.to_string()));
        for hint in &self.hints {
            output.say(&format!(
                "{} {}",
                output.talk_paint.cyan("hint:"),
                harmless(hint)
            ));
        }
    }

    fn text(&self, paint: output::Paint) -> String {
        let mut text = String::new();
        if let Some(findings) = &self.findings {
            text.push_str(&harmless(findings));
            text.push('\n');
        }
        let label = paint.red(&format!("{}:", self.kind.label()));
        let _ = write!(text, "{label} {}", harmless(&self.error.to_string()));
        let mut said = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Some libraries repeat their source in their own message.
            if !said.contains(&cause) && !cause.ends_with(&said) {
                let _ = write!(text, "\n  caused by: {}", harmless(&cause));
            }
            said = cause;
        }
        for hint in &self.hints {
            let _ = write!(text, "\n{} {}", paint.cyan("hint:"), harmless(hint));
        }
        text
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text(output::Paint::new(false)))
    }
}

impl From<output::Error> for CliError {
    fn from(error: output::Error) -> Self {
        let kind = if error.is_broken_pipe() {
            Kind::BrokenPipe
        } else {
            Kind::Output
        };
        Self::new(kind, error)
    }
}

impl From<muster_git::GitError> for CliError {
    fn from(error: muster_git::GitError) -> Self {
        Self::new(Kind::User, error)
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        // What the coordinator says itself comes without a source. Whatever has one was made on this
        // side, from a connection that broke in the middle of a call.
        let source = std::error::Error::source(&status).is_some();
        let kind = match status.code() {
            Code::Unknown | Code::Internal | Code::Cancelled if source => Kind::Connection,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::Ok => Kind::User,
            Code::Unavailable | Code::Unauthenticated | Code::DeadlineExceeded => Kind::Connection,
            Code::Unimplemented | Code::Internal | Code::Unknown | Code::DataLoss => Kind::Internal,
        };
        let message = if source && status.code() == Code::Unavailable {
            format!("the coordinator cannot be reached: {}", status.message())
        } else if source && kind == Kind::Connection {
            format!(
                "the connection to the coordinator broke: {}",
                status.message()
            )
        } else if status.message().is_empty() {
            format!("the coordinator answered {}", status.code().description())
        } else {
            status.message().to_owned()
        };
        let mut error = Self::new(kind, anyhow::Error::msg(message));
        error.code = Some(status.code());
        match status.code() {
            Code::Unauthenticated => error.hint(
                "whoever runs the coordinator makes a new one: \
                 `coordinator token create --role ROLE --out FILE`",
            ),
            Code::PermissionDenied => error.hint(
                "whoever runs the coordinator makes a token of that role: \
                 `coordinator token create --role ROLE --out FILE`",
            ),
            Code::Unimplemented => {
                error.hint("the coordinator may be older than this program; compare their versions")
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_the_help_promises() {
        let exits = [
            (Exit::Success, 0),
            (Exit::Problems, 1),
            (Exit::WrongPlan, 2),
            (Exit::RunFailed, 10),
            (Exit::IntegrationConflict, 11),
            (Exit::Cancelled, 12),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in exits {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
        let kinds = [
            (Kind::Internal, 1),
            (Kind::User, 2),
            (Kind::Config, 3),
            (Kind::Connection, 4),
            (Kind::Interrupted, 130),
            (Kind::BrokenPipe, 141),
        ];
        for (kind, code) in kinds {
            assert_eq!(kind.code(), code, "{kind:?}");
        }
    }

    #[test]
    fn every_exit_code_is_in_the_table_of_the_help_and_every_line_of_the_table_is_one() {
        use clap::CommandFactory as _;
        let help = crate::cli::arguments::Arguments::command()
            .render_long_help()
            .to_string();
        let table = help.split("Exit codes:").nth(1).unwrap();
        let told: std::collections::BTreeSet<u8> = table
            .lines()
            .skip(1)
            .take_while(|line| !line.trim().is_empty())
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        let exits = [
            Exit::Success,
            Exit::Problems,
            Exit::WrongPlan,
            Exit::RunFailed,
            Exit::IntegrationConflict,
            Exit::Cancelled,
            Exit::Interrupted,
        ];
        let kinds = [
            Kind::Internal,
            Kind::User,
            Kind::Config,
            Kind::Connection,
            Kind::BrokenPipe,
        ];
        let codes = exits
            .map(Exit::code)
            .into_iter()
            .chain(kinds.map(Kind::code));
        assert_eq!(told, codes.collect());
    }

    #[test]
    fn an_error_shows_its_chain_once_and_its_hints_on_lines_of_their_own() {
        let error = CliError::user("no such task")
            .while_doing("read the log of run a-1")
            .hint("`coordinator status a-1` lists its tasks");
        insta::assert_snapshot!(error.to_string(), @r"
        error: cannot read the log of run a-1
          caused by: no such task
        hint: `coordinator status a-1` lists its tasks
        ");
    }

    #[test]
    fn a_refusal_of_the_coordinator_has_the_kind_of_who_can_help() {
        let kind = |code| CliError::from(Status::new(code, "x")).kind();
        assert_eq!(kind(Code::NotFound), Kind::User);
        assert_eq!(kind(Code::Unavailable), Kind::Connection);
        assert_eq!(kind(Code::Unauthenticated), Kind::Connection);
        assert_eq!(kind(Code::Internal), Kind::Internal);
    }

    #[test]
    fn a_call_whose_connection_breaks_fails_for_the_connection_and_not_inside() {
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
        let error = CliError::from(Status::from_error(Box::new(broken)));
        assert_eq!(error.kind(), Kind::Connection, "{error}");
    }

    #[test]
    fn an_error_cannot_write_escapes_to_a_terminal() {
        let error = CliError::user("\x1b]0;owned\x07");
        assert!(!error.to_string().contains('\x1b'));
    }
}
