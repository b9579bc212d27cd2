//! Who may move which ref, and who sees which: pure decisions.
//!
//! A [`Fence`] turns the [`Identity`] of a request into a [`Scope`] as long as it lives. All that follows from a scope is decided here, the same way when a push arrives and when
//! its refs are about to move.

use futures::future::BoxFuture;

use crate::auth::Identity;

use super::refs::{AttemptName, ParsedRef, RefValue};

/// What a credential may do in a hosted repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The lease of an attempt: publishes the attempt once, and snapshots its work.
    Attempt {
        /// The lease's id.
        lease: u64,
        /// The attempt that the lease is for.
        attempt: AttemptName,
        /// What it may read besides its task's base and its own refs, such as earlier attempts.
        reads: Vec<ParsedRef>,
    },
    /// The lease of a verify: reads what it verifies, writes nothing.
    Verify {
        /// The lease's id.
        lease: u64,
        /// What it verifies.
        reads: Vec<ParsedRef>,
    },
    /// A worker's session after *stop* verdicts: keeps the unfinished edits of those attempts.
    Salvage {
        /// The worker's stable id.
        worker: String,
        /// The incarnation whose session this is.
        incarnation: u64,
        /// The attempts that were told to stop, and whose edits are not kept yet.
        attempts: Vec<AttemptName>,
        /// What their edits stand on.
        reads: Vec<ParsedRef>,
    },
    /// An operator: brings the source of a run, reads all.
    Operator,
    /// A viewer: reads all.
    Viewer,
}

impl Scope {
    /// Whether there is any ref that this scope may write.
    pub fn writes(&self) -> bool {
        match self {
            Self::Attempt { .. } | Self::Salvage { .. } | Self::Operator => true,
            Self::Verify { .. } | Self::Viewer => false,
        }
    }

    /// Whether reading is limited to certain refs.
    ///
    /// Such a reader must not be served protocol version 2, in which any object may be asked for
    /// by its id.
    pub fn reads_are_limited(&self) -> bool {
        match self {
            Self::Attempt { .. } | Self::Verify { .. } | Self::Salvage { .. } => true,
            Self::Operator | Self::Viewer => false,
        }
    }

    /// The refs that a limited reader sees; empty and meaningless for one that sees everything.
    pub fn readable(&self) -> Vec<ParsedRef> {
        match self {
            Self::Attempt { attempt, reads, .. } => {
                let mut refs = own_refs(attempt).to_vec();
                refs.extend(reads.iter().cloned());
                refs
            }
            Self::Verify { reads, .. } => reads.clone(),
            Self::Salvage {
                attempts, reads, ..
            } => attempts
                .iter()
                .flat_map(|attempt| {
                    let salvage = ParsedRef::Salvage(attempt.clone());
                    own_refs(attempt).into_iter().chain([salvage])
                })
                .chain(reads.iter().cloned())
                .collect(),
            Self::Operator | Self::Viewer => Vec::new(),
        }
    }
}

fn own_refs(attempt: &AttemptName) -> [ParsedRef; 3] {
    [
        ParsedRef::Base(attempt.task().clone()),
        ParsedRef::Attempt(attempt.clone()),
        ParsedRef::Wip(attempt.clone()),
    ]
}

/// Why a request was refused, in words for the one who made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The lease is over: expired, released, or taken back.
    #[error("the lease has ended; nothing more is accepted under it")]
    LeaseEnded,
    /// The credential stands for nothing that has a place here.
    #[error("this credential gives no access to this repository")]
    NoAccess,
    /// The credential reads only.
    #[error("this credential only reads")]
    ReadOnly,
    /// The ref belongs to somebody else, or to nobody.
    #[error("this credential may not write this ref")]
    NotYours,
    /// The ref is created once and exists.
    #[error("already published: this ref is created once and never moves")]
    Published,
    /// Refs are not deleted through a push.
    #[error("refs are never deleted by a push")]
    Delete,
    /// The push would make another task's commits readable under this credential.
    #[error("the push contains commits of this repository that this credential may not read")]
    ForeignCommits,
    /// Whether the lease lives cannot be told now; trying again later is right.
    #[error("the coordinator cannot check this push now; try again")]
    Unavailable,
}

/// Tells what credentials stand for, and whether they still do; asked by the hosted remote.
pub trait Fence: Send + Sync {
    /// The scope of an identity that was proven.
    ///
    /// Errs with the reason when it gives no scope (any more), for example as its lease has ended.
    fn scope<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Scope, Refusal>>;

    /// Whether a scope that was given out before still holds, asked at the moment refs move.
    ///
    /// After `Ok` the refs move at once; git holds their locks while it asks, so the answer should
    /// come within milliseconds.
    fn still_live<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// Decides whether a scope may move a ref from `old` to `new`; a zero id means "no such ref".
pub fn decide_update(
    scope: &Scope,
    refname: &str,
    old: &RefValue,
    new: &RefValue,
) -> Result<(), Refusal> {
    if !scope.writes() {
        return Err(Refusal::ReadOnly);
    }
    if new.is_zero() {
        return Err(Refusal::Delete);
    }
    let once = || {
        if old.is_zero() {
            Ok(())
        } else {
            Err(Refusal::Published)
        }
    };
    match (scope, ParsedRef::parse(refname)) {
        (Scope::Attempt { attempt, .. }, Some(ParsedRef::Attempt(name))) if name == *attempt => {
            once()
        }
        (Scope::Attempt { attempt, .. }, Some(ParsedRef::Wip(name))) if name == *attempt => Ok(()),
        (Scope::Salvage { attempts, .. }, Some(ParsedRef::Salvage(name)))
            if attempts.contains(&name) =>
        {
            once()
        }
        (Scope::Operator, Some(ParsedRef::Source { .. })) => once(),
        _ => Err(Refusal::NotYours),
    }
}

/// The values of git's `transfer.hideRefs` that limit reading to what a scope may see, in order.
///
/// The last rule that matches a ref decides, and a rule matches a ref or a folder of refs.
pub fn visible(scope: &Scope) -> Vec<String> {
    if !scope.reads_are_limited() {
        return Vec::new();
    }
    let hidden = ["HEAD".to_owned(), "refs".to_owned()];
    let shown = scope.readable().into_iter().map(|name| format!("!{name}"));
    hidden.into_iter().chain(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::super::refs::TaskName;
    use super::*;

    fn name(task: &str, attempt: u32) -> AttemptName {
        let number = NonZeroU32::new(attempt).unwrap();
        TaskName::new("r", task).unwrap().attempt(number)
    }

    fn none() -> RefValue {
        RefValue::parse(&"0".repeat(40)).unwrap()
    }

    fn some(digit: &str) -> RefValue {
        RefValue::parse(&digit.repeat(40)).unwrap()
    }

    fn attempt_scope() -> Scope {
        Scope::Attempt {
            lease: 7,
            attempt: name("api", 2),
            reads: vec![ParsedRef::Attempt(name("api", 1))],
        }
    }

    fn scopes() -> [Scope; 5] {
        [
            attempt_scope(),
            Scope::Verify {
                lease: 8,
                reads: vec![ParsedRef::Attempt(name("api", 2))],
            },
            Scope::Salvage {
                worker: "w".to_owned(),
                incarnation: 1,
                attempts: vec![name("api", 1)],
                reads: Vec::new(),
            },
            Scope::Operator,
            Scope::Viewer,
        ]
    }

    /// Which of create, move and delete each scope may do with each ref.
    #[test]
    fn each_scope_writes_its_own_refs_and_no_other() {
        let refs = [
            "refs/muster/attempts/r/api/1",
            "refs/muster/attempts/r/api/2",
            "refs/muster/attempts/r/other/2",
            "refs/muster/attempts/other/api/2",
            "refs/muster/wip/r/api/1",
            "refs/muster/wip/r/api/2",
            "refs/muster/salvage/r/api/1",
            "refs/muster/salvage/r/api/2",
            "refs/muster/base/r/api",
            "refs/muster/source/r",
            "refs/heads/muster/r/tasks/api",
            "refs/heads/muster/r/integration",
            "refs/muster/candidate/r/1",
            "refs/heads/main",
            "refs/tags/v1",
            "HEAD",
        ];
        let mut allowed = Vec::new();
        for (index, scope) in scopes().iter().enumerate() {
            for refname in refs {
                for (what, old, new) in [
                    ("create", none(), some("1")),
                    ("move", some("1"), some("2")),
                    ("delete", some("1"), none()),
                ] {
                    if decide_update(scope, refname, &old, &new).is_ok() {
                        allowed.push((index, what, refname));
                    }
                }
            }
        }
        assert_eq!(
            allowed,
            [
                (0, "create", "refs/muster/attempts/r/api/2"),
                (0, "create", "refs/muster/wip/r/api/2"),
                (0, "move", "refs/muster/wip/r/api/2"),
                (2, "create", "refs/muster/salvage/r/api/1"),
                (3, "create", "refs/muster/source/r"),
            ]
        );
    }

    #[test]
    fn the_reason_of_a_refusal_fits_what_was_tried() {
        let scope = attempt_scope();
        let own = "refs/muster/attempts/r/api/2";
        let cases = [
            (own, some("1"), some("2"), Refusal::Published),
            (own, some("1"), none(), Refusal::Delete),
            ("refs/heads/main", none(), some("1"), Refusal::NotYours),
        ];
        for (refname, old, new, reason) in cases {
            assert_eq!(decide_update(&scope, refname, &old, &new), Err(reason));
        }
        assert_eq!(
            decide_update(&Scope::Viewer, own, &none(), &some("1")),
            Err(Refusal::ReadOnly)
        );
    }

    #[test]
    fn limited_readers_see_only_what_their_scope_names() {
        let [attempt, verify, salvage, operator, viewer] = scopes();
        assert_eq!(
            visible(&attempt),
            [
                "HEAD",
                "refs",
                "!refs/muster/base/r/api",
                "!refs/muster/attempts/r/api/2",
                "!refs/muster/wip/r/api/2",
                "!refs/muster/attempts/r/api/1",
            ]
        );
        assert_eq!(
            visible(&verify),
            ["HEAD", "refs", "!refs/muster/attempts/r/api/2"]
        );
        assert_eq!(
            visible(&salvage),
            [
                "HEAD",
                "refs",
                "!refs/muster/base/r/api",
                "!refs/muster/attempts/r/api/1",
                "!refs/muster/wip/r/api/1",
                "!refs/muster/salvage/r/api/1",
            ]
        );
        assert!(visible(&operator).is_empty() && visible(&viewer).is_empty());
    }
}
