//! Providers of models that are none: they do what a prompt says, and remember what they served.

pub mod anthropic;
pub mod openai;
mod scenario;
mod server;

pub use anthropic::Anthropic;
pub use openai::OpenAi;
pub use scenario::{Fault, Scenario};

/// Tokens of one call, as they were served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All input.
    pub input: u64,
    /// Part of it that was cached.
    pub cached: u64,
    /// All output.
    pub output: u64,
    /// Part of it that nobody sees.
    pub reasoning: u64,
}

impl std::ops::AddAssign for Tokens {
    fn add_assign(&mut self, more: Self) {
        self.input += more.input;
        self.cached += more.cached;
        self.output += more.output;
        self.reasoning += more.reasoning;
    }
}

/// One call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The caller's conversation.
    pub conversation: String,
    /// Model that it asked for.
    pub model: String,
    /// What the prompt said.
    pub scenario: String,
    /// Which step of the scenario it was, from 0.
    pub step: usize,
    /// Status of the answer.
    pub status: u16,
    /// What the answer said that it consumed; none if it broke off before it could.
    pub tokens: Option<Tokens>,
}

/// Adds up what was served.
#[must_use]
pub fn sum(served: &[Served]) -> Tokens {
    let mut sum = Tokens::default();
    for tokens in served.iter().filter_map(|call| call.tokens) {
        sum += tokens;
    }
    sum
}
