//! Values of options: what is wrong with one is said in words.

use std::net::SocketAddr;
use std::str::FromStr;

use crate::config::SLOTS_MAX;

/// Reads a whole number.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| "a whole number is needed, such as 1 or 50".to_owned())
}

/// Reads a whole number from 1 on.
pub(super) fn from_one<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok();
    number
        .filter(|number| *number >= T::from(1))
        .ok_or_else(|| "a whole number from 1 on is needed".to_owned())
}

/// Reads how many slots there are to be, at least one.
pub(super) fn slots(text: &str) -> Result<u32, String> {
    slots_from(1, text)
}

/// Reads how many slots there are to be, perhaps none.
pub(super) fn slots_or_none(text: &str) -> Result<u32, String> {
    slots_from(0, text)
}

fn slots_from(least: u32, text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|slots| (least..=SLOTS_MAX).contains(slots))
        .ok_or_else(|| format!("a whole number from {least} to {SLOTS_MAX} is needed"))
}

/// Reads where to listen.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an address and a port are needed: 127.0.0.1:7733 for this machine alone, 0.0.0.0:7733 or \
         [::]:7733 for all that can reach it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_a_least_and_a_most() {
        assert_eq!(slots("1"), Ok(1));
        assert_eq!(slots_or_none("0"), Ok(0));
        assert_eq!(slots("4096"), Ok(4096));
        for wrong in ["0", "4097", "-1", "", "many", "1.5"] {
            assert!(slots(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn listening_needs_an_address_and_a_port() {
        assert!(listen("127.0.0.1:0").is_ok() && listen("[::]:7733").is_ok());
        for wrong in ["here", "7733", "127.0.0.1", "host:1", ":7733"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
