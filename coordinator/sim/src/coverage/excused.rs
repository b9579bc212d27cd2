//! The pairs that cannot happen, each with its reason.

use super::{Came, Met};

/// Pairs of which it is known why no world reaches them: every state with every command of the row.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    pub came: &'static [Came],
    pub met: &'static [Met],
    pub reason: &'static str,
}

/// All of them. A pair that a seed reaches must not be here.
pub const EXCUSED: &[Excuse] = &[];
