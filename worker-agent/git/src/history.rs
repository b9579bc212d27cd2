//! Commits: who, when, and what they say.

use crate::error::GitError;
use crate::names::{ObjectId, quoted};

/// Longest name or address of an author, in bytes.
const IDENTITY_BYTES_MAX: usize = 256;

/// Who authored or committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: String,
    email: String,
}

impl Identity {
    /// Checks that git will store the name and the address exactly as given.
    ///
    /// Git silently strips what cannot stand in a commit; refusing it instead keeps commit ids
    /// predictable.
    pub fn new(name: &str, email: &str) -> Result<Self, GitError> {
        check("name", name)?;
        check("email", email)?;
        Ok(Self {
            name: name.to_owned(),
            email: email.to_owned(),
        })
    }

    /// Gives the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the address.
    #[must_use]
    pub fn email(&self) -> &str {
        &self.email
    }
}

fn check(part: &'static str, text: &str) -> Result<(), GitError> {
    let reason = if text.is_empty() {
        "it is empty"
    } else if text.len() > IDENTITY_BYTES_MAX {
        "it is longer than 256 bytes"
    } else if text
        .chars()
        .any(|character| character.is_control() || "<>".contains(character))
    {
        "it contains a control character, < or >"
    } else if text.starts_with(is_stripped) || text.ends_with(is_stripped) {
        "it begins or ends with a space or punctuation, which git strips"
    } else {
        return Ok(());
    };
    Err(GitError::InvalidIdentity {
        part,
        text: quoted(text),
        reason,
    })
}

fn is_stripped(character: char) -> bool {
    " .,:;\"\\'".contains(character)
}

/// When something was committed: whole seconds since 1970, always written in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitTime(u64);

impl CommitTime {
    /// Takes seconds since the beginning of 1970, UTC.
    #[must_use]
    pub fn from_unix_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Gives seconds since the beginning of 1970, UTC.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.0
    }

    /// Writes the time as git's environment wants it.
    pub(crate) fn for_git(self) -> String {
        format!("@{} +0000", self.0)
    }
}

/// What a commit says about itself.
///
/// Names and texts come from whoever made the commit; bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its own id.
    pub id: ObjectId,
    /// The id of its tree.
    pub tree: ObjectId,
    /// The commits it follows, in order.
    pub parents: Vec<ObjectId>,
    /// Who wrote it.
    pub author_name: String,
    /// The address of who wrote it.
    pub author_email: String,
    /// When it was written, in seconds since 1970; negative times exist in the wild.
    pub author_seconds: i64,
    /// Who committed it.
    pub committer_name: String,
    /// The address of who committed it.
    pub committer_email: String,
    /// When it was committed, in seconds since 1970.
    pub committer_seconds: i64,
    /// The whole message, without line breaks at its end.
    pub message: String,
}

impl Commit {
    /// The format that [`Commit::parse_all`] reads.
    pub(crate) const FORMAT: &str =
        "--format=%H%x00%T%x00%P%x00%an%x00%ae%x00%at%x00%cn%x00%ce%x00%ct%x00%B%x00";

    /// Gives the first line of the message.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    /// Reads as many commits as there are complete ones; `None` if a field makes no sense.
    pub(crate) fn parse_all(output: &[u8]) -> Option<Vec<Self>> {
        let fields: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
        let (records, _) = fields.as_chunks::<10>();
        records.iter().map(Self::parse).collect()
    }

    fn parse(fields: &[&[u8]; 10]) -> Option<Self> {
        let [id, tree, parents, rest @ ..] = fields;
        let [author_name, author_email, author_time, rest @ ..] = rest;
        let [committer_name, committer_email, committer_time, message] = rest;
        let parents = parents
            .split(|byte| *byte == b' ')
            .filter(|parent| !parent.is_empty());
        Some(Self {
            // Each record but the first follows the line break that ends the one before.
            id: ObjectId::from_hex(id.trim_ascii_start())?,
            tree: ObjectId::from_hex(tree)?,
            parents: parents.map(ObjectId::from_hex).collect::<Option<_>>()?,
            author_name: text(author_name),
            author_email: text(author_email),
            author_seconds: text(author_time).parse().unwrap_or_default(),
            committer_name: text(committer_name),
            committer_email: text(committer_email),
            committer_seconds: text(committer_time).parse().unwrap_or_default(),
            message: text(message).trim_end_matches('\n').to_owned(),
        })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn identities_that_git_would_change_are_refused() {
        assert!(Identity::new("Muster worker 3", "worker@muster.invalid").is_ok());
        assert!(Identity::new("Zoë O'Neill", "z@x").is_ok());
        for name in ["", "a\nb", "a <b>", " a", "a.", "\"a\"", &"a".repeat(257)] {
            assert!(Identity::new(name, "a@b").is_err(), "{name:?}");
        }
    }
}
