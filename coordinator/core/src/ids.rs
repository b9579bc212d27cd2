//! Identifiers. Numbers only grow and are never given twice, so they fence.

use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// Number of a run in this coordinator's home; people see the run's name instead.
    RunId, u64, "run#"
);
number!(
    /// Position of a task in its plan, from 0.
    TaskIx, u32, "task#"
);
number!(
    /// One try of a task, from 1; goes on counting across generations, so that attempt refs are unique.
    AttemptNo, u32, ""
);
number!(
    /// Fencing token: the sole right to work on one attempt or verify. Only grows.
    LeaseId, u64, "L"
);
number!(
    /// Number of a start of the coordinator on this home.
    Epoch, u64, "epoch "
);
number!(
    /// Number of a start of a worker agent; a newer one fences the older.
    Incarnation, u64, ""
);
number!(
    /// Question of an agent to a person; has its own identity so that an answer outlives the lease.
    QuestionId, u64, "Q"
);

number!(
    /// What a pool's provider was asked for: a machine, a job, a process. Never given twice.
    AllocationId, u64, "A"
);

impl Epoch {
    /// From here on an epoch is that of a home put back from a backup, plus the starts since.
    ///
    /// The life that was lost may have given ids which the backup does not know and workers still
    /// hold. No id given in such an epoch is below the epoch's own number, and whoever puts a home
    /// back chooses one far beyond all that the lost life can have given, so none is given twice.
    pub const RESTORED: Self = Self(1 << 40);
}

/// A task of a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TaskKey {
    pub run: RunId,
    pub task: TaskIx,
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.task)
    }
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the text as it is; the edge that receives it has checked its form.
            #[must_use]
            pub fn new(text: &str) -> Self {
                Self(Arc::from(text))
            }

            /// Gives the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// Stable identity of a worker: host, allocation and place on the host.
    WorkerId
);
text!(
    /// Object id of a git commit, in hexadecimal.
    CommitId
);
