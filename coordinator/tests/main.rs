//! Everything of the coordinator that needs its executable or real programs beside it.

mod hosted_git;
