//! The one way Muster runs the git executable.
//!
//! Nothing else in Muster starts `git`. Every command runs with a cleared environment, no prompts,
//! a pinned language and, unless it acts on a person's own checkout, without that person's
//! configuration, hooks and filters. Secrets and addresses travel in the environment, never in an
//! argument list.
//!
//! - [`Git`] is the executable, [`GitCommand`] one invocation of it.
//! - [`Repository`] reads and moves refs, commits and diffs; refs move by compare-and-swap only.
//! - [`Remote`] fetches, pushes and lists.
//! - [`Merger`] merges without a work tree and gives the same commit id for the same question.
//! - [`Cache`] holds what was fetched, once a host; [`Workspace`] is the private checkout of one
//!   attempt that borrows objects from it.

mod address;
mod agent_history;
mod attributes;
mod cache;
mod command;
mod conflict;
mod diff;
mod environment;
mod error;
mod eviction;
mod history;
mod leftovers;
mod lock;
mod merge;
mod names;
mod note;
mod push;
mod remote;
mod repository;
mod size;
mod snapshot;
mod submodules;
mod survey;
mod version;
mod workspace;

pub use address::without_users;
pub use cache::{Cache, CachedCommit};
pub use command::{Git, GitCommand, Mode, Output};
pub use conflict::{Conflict, ConflictKind, Conflicts, Hunk, Hunks, Side, Stage};
pub use diff::{BinaryFiles, Change, ChangeKind, Patch};
pub use error::{GitError, megabytes};
pub use history::{Commit, CommitTime, Identity};
pub use merge::{Fold, Merge, MergeFuture, MergeRequest, Merger, SubprocessMerger, fold};
pub use names::{ObjectFormat, ObjectId, RefName, attempt_ref, salvage_ref, wip_ref};
pub use note::SnapshotNote;
pub use push::{PushOutcome, PushRef, RefPush};
pub use remote::{Advertised, Auth, Refspec, Remote};
pub use repository::{Expected, RefUpdate, Repository, Update};
pub use snapshot::Snapshot;
pub use version::{MINIMUM_VERSION, Version};
pub use workspace::Workspace;
