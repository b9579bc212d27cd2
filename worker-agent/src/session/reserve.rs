//! Room on the disk for the attempts that a worker takes.

use crate::disk::FREE_BYTES_MIN;

/// How many more attempts the disk has room for, if each is to have so much.
///
/// What the disk has lost since nothing ran counts as taken by those that run: nobody measures them for
/// this, and what others write there meanwhile makes room look a little larger than it is.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Bytes for each; none are kept when zero.
    each: u64,
    /// Bytes that are free, once that was looked at.
    free: Option<u64>,
    /// Bytes that were free when nothing ran.
    free_when_idle: u64,
}

impl Reserve {
    pub(super) fn new(each: u64) -> Self {
        Self {
            each,
            ..Self::default()
        }
    }

    /// Takes how much is free while so many run.
    pub(super) fn heard(&mut self, free: u64, working: u32) {
        self.free = Some(free);
        if working == 0 {
            self.free_when_idle = free;
        }
    }

    /// Tells how many more there is room for; `None` if there is no bound.
    pub(super) fn more(&self, working: u32) -> Option<u32> {
        let free = self.free.filter(|_| self.each > 0)?;
        let room = free.saturating_sub(FREE_BYTES_MIN.saturating_add(self.still(free, working)));
        Some(u32::try_from(room / self.each).unwrap_or(u32::MAX))
    }

    /// Tells how many bytes have to be free so that there is room for another one.
    pub(super) fn wanted(&self, working: u32) -> u64 {
        let still = match self.free {
            Some(free) => self.still(free, working),
            None => 0,
        };
        FREE_BYTES_MIN
            .saturating_add(still)
            .saturating_add(self.each)
    }

    /// Says what is missing for another one; `None` if nothing is.
    pub(super) fn shortage(&self, working: u32) -> Option<String> {
        (self.more(working)? == 0).then(|| {
            let free = self.free.unwrap_or_default();
            format!(
                "its disk has no room for another attempt: {free} bytes are free, {} are kept for each \
                 (--disk-reserve), and the {working} that run may take {} more",
                self.each,
                self.still(free, working)
            )
        })
    }

    /// What those that run may still take.
    fn still(&self, free: u64, working: u32) -> u64 {
        let taken = self.free_when_idle.saturating_sub(free);
        self.each
            .saturating_mul(u64::from(working))
            .saturating_sub(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn another_is_taken_only_while_there_is_room_for_it_and_for_what_runs() {
        let mut reserve = Reserve::new(100 * MB);
        assert_eq!(reserve.more(0), None, "nothing is known yet");
        reserve.heard(FREE_BYTES_MIN + 250 * MB, 0);
        assert_eq!(reserve.more(0), Some(2));
        assert_eq!(reserve.more(1), Some(1));
        assert_eq!(reserve.more(2), Some(0));
        assert_eq!(reserve.wanted(1), FREE_BYTES_MIN + 200 * MB);
        reserve.heard(reserve.wanted(2), 2);
        assert_eq!(reserve.more(2), Some(1));
        reserve.heard(FREE_BYTES_MIN + 250 * MB, 0);
        assert!(reserve.shortage(2).unwrap().contains("--disk-reserve"));
        assert_eq!(reserve.shortage(1), None);
        // What one has taken of its room is not kept for it a second time.
        reserve.heard(FREE_BYTES_MIN + 160 * MB, 1);
        assert_eq!(reserve.more(1), Some(1));
        // One takes more than its room: there is none for another.
        reserve.heard(FREE_BYTES_MIN + 90 * MB, 1);
        assert_eq!(reserve.more(1), Some(0));
    }

    #[test]
    fn without_a_reserve_there_is_no_bound() {
        let mut reserve = Reserve::new(0);
        reserve.heard(0, 3);
        assert_eq!((reserve.more(3), reserve.shortage(3)), (None, None));
    }
}
