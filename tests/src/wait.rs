//! Waiting for a condition, always with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// For what takes a moment on an idle machine; long because machines are not always idle.
pub const SOON: Duration = Duration::from_secs(60);
/// For a whole run of many tasks.
pub const LONG: Duration = Duration::from_secs(300);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again until `look` gives a value.
///
/// # Errors
/// The deadline has passed, with `what` was waited for; or the first error of `look`.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = look().with_context(|| format!("while waiting: {what}"))? {
            return Ok(value);
        }
        anyhow::ensure!(
            begun.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        std::thread::sleep(PAUSE);
    }
}

/// Looks again and again until `holds` is true.
///
/// # Errors
/// As [`until`].
pub fn until_true(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, deadline, || Ok(holds()?.then_some(())))
}
