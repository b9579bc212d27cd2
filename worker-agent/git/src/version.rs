//! Which git is good enough.

use std::fmt;

/// The oldest git that Muster works with: the first that takes attributes from a named tree
/// (`GIT_ATTR_SOURCE`), without which a merge would depend on what lies around.
pub const MINIMUM_VERSION: Version = Version {
    major: 2,
    minor: 41,
    patch: 0,
};

/// A version of git, as in `2.47.3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; 0 when not given.
    pub patch: u32,
}

impl Version {
    /// Reads the answer of `git --version`.
    ///
    /// Vendors add words and numbers behind the third (`2.39.2.windows.1`, `2.39.5 (Apple
    /// Git-154)`, `2.50.0-rc1`); they are ignored. `None` if there are no two leading numbers.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let text = output.trim_start().strip_prefix("git version ")?;
        let mut numbers = text
            .split(|character: char| !character.is_ascii_digit())
            .map(|digits| digits.parse::<u32>().ok());
        let major = numbers.next()??;
        let minor = numbers.next()??;
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Self {
            major,
            minor,
            patch,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::{MINIMUM_VERSION, Version};

    #[test]
    fn versions_are_read_whatever_the_vendor_adds() {
        let version = |major, minor, patch| {
            Some(Version {
                major,
                minor,
                patch,
            })
        };
        assert_eq!(Version::parse("git version 2.47.3\n"), version(2, 47, 3));
        assert_eq!(
            Version::parse("git version 2.39.5 (Apple Git-154)"),
            version(2, 39, 5)
        );
        assert_eq!(
            Version::parse("git version 2.41.0.windows.1"),
            version(2, 41, 0)
        );
        assert_eq!(Version::parse("git version 2.50.0-rc1"), version(2, 50, 0));
        assert_eq!(Version::parse("git version 3.0"), version(3, 0, 0));
        assert_eq!(Version::parse("git version 2.53.GIT"), version(2, 53, 0));
    }

    #[test]
    fn other_programs_have_no_version() {
        for text in [
            "",
            "hg 6.2",
            "git version",
            "git version x.y",
            "git version 99999999999.1",
        ] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_minimum_is_compared_by_number_not_by_text() {
        assert!(Version::parse("git version 2.9.9") < Some(MINIMUM_VERSION));
        assert!(Version::parse("git version 2.100.0") > Some(MINIMUM_VERSION));
    }
}
