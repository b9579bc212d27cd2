//! Names of things in a repository: object ids and refs.

use std::fmt;
use std::str::FromStr;

use crate::error::GitError;

/// Longest ref name accepted, in bytes: a path that every file system can hold below a folder.
const REF_NAME_BYTES_MAX: usize = 1024;
/// Longest part of a ref between two slashes, in bytes; file names end at 255 and git appends
/// `.lock`.
const REF_PART_BYTES_MAX: usize = 240;
/// How much of a refused text is repeated in an error, in characters.
const QUOTED_CHARACTERS_MAX: usize = 120;

/// The hash function of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectFormat {
    /// 40 hexadecimal digits.
    Sha1,
    /// 64 hexadecimal digits.
    Sha256,
}

impl ObjectFormat {
    /// Gives the name that git uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// Gives the id that stands for "no object" in git's protocols.
    pub(crate) fn zero(self) -> String {
        "0".repeat(self.bytes() * 2)
    }

    fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }
}

/// A full object id; prints as lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    bytes: [u8; 32],
    format: ObjectFormat,
}

impl ObjectId {
    /// Reads 40 or 64 lowercase hexadecimal digits.
    ///
    /// The id of zeros is refused: in git it stands for "no object".
    pub fn parse(text: &str) -> Result<Self, GitError> {
        Self::from_hex(text.as_bytes())
            .ok_or_else(|| GitError::InvalidObjectId { text: quoted(text) })
    }

    /// Tells which hash function made this id.
    #[must_use]
    pub fn format(&self) -> ObjectFormat {
        self.format
    }

    /// Gives the digest: 20 or 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.format.bytes()).unwrap_or(&self.bytes)
    }

    pub(crate) fn from_hex(text: &[u8]) -> Option<Self> {
        let format = match text.len() {
            40 => ObjectFormat::Sha1,
            64 => ObjectFormat::Sha256,
            _ => return None,
        };
        let mut bytes = [0; 32];
        let (pairs, _) = text.as_chunks::<2>();
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        (bytes != [0; 32]).then_some(Self { bytes, format })
    }
}

fn hex_digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for ObjectId {
    type Err = GitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// A full ref name, as in `refs/heads/main`, that git accepts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

impl RefName {
    /// Checks a full ref name against git's rules; it must begin with `refs/`.
    pub fn parse(name: &str) -> Result<Self, GitError> {
        let invalid = |reason| GitError::InvalidRefName {
            name: quoted(name),
            reason,
        };
        if name.len() > REF_NAME_BYTES_MAX {
            return Err(invalid("it is longer than 1024 bytes"));
        }
        let Some(rest) = name.strip_prefix("refs/") else {
            return Err(invalid("it does not begin with refs/"));
        };
        rest.split('/')
            .try_for_each(Self::check_part)
            .map_err(invalid)?;
        Ok(Self(name.to_owned()))
    }

    /// Checks what may stand between two slashes of a ref name; the error says which rule it breaks.
    ///
    /// Stricter than git in one thing: a leading `-` is refused, since people type such names after
    /// a command.
    pub fn check_part(part: &str) -> Result<(), &'static str> {
        if part.is_empty() {
            return Err("a part of it is empty");
        }
        if part.len() > REF_PART_BYTES_MAX {
            return Err("a part of it is longer than 240 bytes");
        }
        if part.starts_with('.') {
            return Err("a part of it begins with a dot");
        }
        if part.starts_with('-') {
            return Err("a part of it begins with a dash");
        }
        if part.ends_with('.') {
            return Err("a part of it ends with a dot");
        }
        if part.ends_with(".lock") {
            return Err("a part of it ends with .lock");
        }
        if part.contains("..") {
            return Err("it contains two dots in a row");
        }
        if part.contains("@{") || part == "@" {
            return Err("it contains @{ or is @");
        }
        if part
            .chars()
            .any(|character| character.is_control() || " ~^:?*[\\/".contains(character))
        {
            return Err("it contains a space, a control character or one of ~^:?*[\\");
        }
        Ok(())
    }

    /// Gives the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for RefName {
    type Err = GitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl AsRef<str> for RefName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Names the ref that an attempt publishes to: created once, never moved.
pub fn attempt_ref(run: &str, task: &str, attempt: u32) -> Result<RefName, GitError> {
    RefName::parse(&format!("refs/muster/attempts/{run}/{task}/{attempt}"))
}

/// Names the ref that keeps unfinished work of a live attempt: moved by the holder of its lease.
pub fn wip_ref(run: &str, task: &str, attempt: u32) -> Result<RefName, GitError> {
    RefName::parse(&format!("refs/muster/wip/{run}/{task}/{attempt}"))
}

/// Names the ref that keeps an unfinished edit after its lease has ended: created once, for people.
pub fn salvage_ref(run: &str, task: &str, attempt: u32) -> Result<RefName, GitError> {
    RefName::parse(&format!("refs/muster/salvage/{run}/{task}/{attempt}"))
}

/// Shortens a refused text for an error message.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::{ObjectFormat, ObjectId, RefName, attempt_ref};

    #[test]
    fn object_ids_print_as_they_were_read() {
        let short = "00ff1122334455667788990011223344556677aa";
        let long = format!("{short}0123456789abcdef01234567");
        let id = ObjectId::parse(short).unwrap();
        assert_eq!(
            (id.to_string().as_str(), id.format()),
            (short, ObjectFormat::Sha1)
        );
        assert_eq!(id.as_bytes().len(), 20);
        let id = ObjectId::parse(&long).unwrap();
        assert_eq!((id.to_string(), id.format()), (long, ObjectFormat::Sha256));
    }

    #[test]
    fn texts_that_are_no_object_ids_are_refused() {
        let zero = "0".repeat(40);
        let upper = "A".repeat(40);
        let short = "a".repeat(39);
        let accented = "é".repeat(20);
        for text in ["", "main", "--all", &zero, &upper, &short, &accented] {
            assert!(ObjectId::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn ref_names_follow_the_rules_of_git() {
        for name in [
            "refs/heads/main",
            "refs/muster/wip/r/a_b.c/1",
            "refs/heads/@x",
            "refs/h/ü",
        ] {
            assert_eq!(RefName::parse(name).unwrap().as_str(), name);
        }
        for name in [
            "main",
            "refs/",
            "refs//a",
            "refs/a/",
            "refs/.",
            "refs/..",
            "refs/a.lock",
            "refs/a..b",
            "refs/-a",
            "refs/a b",
            "refs/a\nb",
            "refs/a~1",
            "refs/a:b",
            "refs/a*",
            "refs/a@{b",
            "refs/@",
            "refs/a\\b",
            "refs/a.",
            "refs/a\u{7f}",
        ] {
            assert!(RefName::parse(name).is_err(), "{name:?}");
        }
        assert!(RefName::parse(&format!("refs/{}", "a".repeat(241))).is_err());
        assert!(RefName::parse(&format!("refs/{}", "a/".repeat(600))).is_err());
    }

    #[test]
    fn refs_of_an_attempt_cannot_leave_their_folder() {
        assert_eq!(
            attempt_ref("r1", "t", 2).unwrap().as_str(),
            "refs/muster/attempts/r1/t/2"
        );
        assert!(attempt_ref("..", "t", 1).is_err());
        assert!(attempt_ref("r", "", 1).is_err());
    }
}
