//! What keeps two commits from merging, read from what `git merge-tree` says.
//!
//! Paths and contents come from whoever made the commits: they are bounded here, and made harmless
//! where they are shown.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::error::GitError;
use crate::names::ObjectId;
use crate::repository::Repository;

/// Most conflicts that are reported; more say no more to a person.
const CONFLICTS_MAX: usize = 1_000;
/// Most entries of conflicting files that are held.
const SIDES_MAX: usize = 8 * CONFLICTS_MAX;
/// Bytes of a merged file that are searched for hunks.
const SEARCHED_BYTES_MAX: usize = 1 << 20;
/// Hunks of one file that are kept.
const HUNKS_MAX: usize = 20;
/// Bytes of one side of one hunk that are kept.
const HUNK_SIDE_BYTES_MAX: usize = 4 << 10;
/// Shortest marker that git writes.
const MARKER_LENGTH_MIN: usize = 7;

/// How two sides do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConflictKind {
    /// Both changed the same lines of a file.
    Content,
    /// Both made a file of the same name, with different content.
    BothAdded,
    /// Both changed a file that is not text.
    Binary,
    /// One changed what the other deleted.
    ModifyDelete,
    /// Both renamed a file, to different names.
    RenameRename,
    /// One renamed what the other deleted.
    RenameDelete,
    /// Files that one side or both renamed meet at one name.
    RenameCollision,
    /// A folder was renamed in a way that does not say where the other side's files belong.
    DirectoryRename,
    /// Both have the content, and do not agree whether it may be executed.
    Mode,
    /// Both changed where a symbolic link points.
    Symlink,
    /// What is a file for one is a symbolic link or a submodule for the other.
    TypeChange,
    /// Both moved a submodule.
    Submodule,
    /// What is a file for one is a folder for the other.
    FileDirectory,
    /// Something that git names and this program does not know.
    Other,
}

impl ConflictKind {
    /// Gives the word that programs read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::BothAdded => "both_added",
            Self::Binary => "binary",
            Self::ModifyDelete => "modify_delete",
            Self::RenameRename => "rename_rename",
            Self::RenameDelete => "rename_delete",
            Self::RenameCollision => "rename_collision",
            Self::DirectoryRename => "directory_rename",
            Self::Mode => "mode",
            Self::Symlink => "symlink",
            Self::TypeChange => "type_change",
            Self::Submodule => "submodule",
            Self::FileDirectory => "file_directory",
            Self::Other => "other",
        }
    }

    /// Takes the kind from git's words, which changed little over the years.
    fn of(words: &str) -> Self {
        match words {
            "contents" => Self::Content,
            "binary" => Self::Binary,
            "modify/delete" => Self::ModifyDelete,
            "rename/rename" => Self::RenameRename,
            "rename/delete" => Self::RenameDelete,
            "rename involved in collision" => Self::RenameCollision,
            "distinct modes" => Self::TypeChange,
            "file/directory" => Self::FileDirectory,
            _ if words.starts_with("submodule") => Self::Submodule,
            _ if words.contains("directory rename") => Self::DirectoryRename,
            _ => Self::Other,
        }
    }
}

/// Whose entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The common ancestor's.
    Base,
    /// Of the side merged into.
    Ours,
    /// Of the side merged in.
    Theirs,
}

/// A file as one side has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Whose it is.
    pub stage: Stage,
    /// Its mode as git writes it: `100644`, `100755`, `120000` for a symbolic link, `160000` for a
    /// submodule.
    pub mode: String,
    /// Its content, or the commit of a submodule.
    pub object: ObjectId,
    /// Its path; bytes that are not UTF-8 are replaced.
    pub path: String,
}

/// One place where two sides do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// How they conflict.
    pub kind: ConflictKind,
    /// The path that conflicts; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Other paths that are part of it, as the two new names of a file renamed twice.
    pub others: Vec<String>,
    /// What each side has there; a side that has nothing is not listed.
    pub sides: Vec<Side>,
    /// What git says about it, with the ids of the two commits in place of names.
    pub message: String,
    /// The path as it is in the merged tree.
    in_tree: Vec<u8>,
}

/// Everything that keeps two commits from merging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflicts {
    /// At most 1000, in the order git tells them.
    pub list: Vec<Conflict>,
    /// The tree as git would leave it to a person, with markers in the files.
    pub tree: ObjectId,
    /// The side merged into, as the markers name it.
    pub ours: ObjectId,
    /// The side merged in, as the markers name it.
    pub theirs: ObjectId,
}

/// Lines that both sides changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hunk {
    /// Line of the marker at its beginning, from 1, in the file as git would leave it to a person.
    pub line: u64,
    /// What the side merged into has; bytes that are not UTF-8 are replaced.
    pub ours: String,
    /// What the side merged in has.
    pub theirs: String,
    /// Whether a side is longer than what is kept of it.
    pub is_cut: bool,
}

/// The hunks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hunks {
    /// At most 20, in the order of the file.
    pub list: Vec<Hunk>,
    /// Whether the file may have more.
    pub has_more: bool,
}

impl Conflicts {
    /// Reads what `merge-tree -z` prints: a tree, one record for each stage of each file, an empty
    /// record, then messages as a count of paths, the paths, a kind and a text.
    pub(crate) fn parse(output: &[u8], ours: ObjectId, theirs: ObjectId) -> Option<Self> {
        let mut fields = output.split(|byte| *byte == 0);
        let tree = ObjectId::from_hex(fields.next()?)?;
        let mut sides: Vec<(&[u8], Side)> = Vec::new();
        loop {
            let field = fields.next()?;
            if field.is_empty() {
                break;
            }
            let (path, side) = parse_side(field)?;
            if sides.len() < SIDES_MAX {
                sides.push((path, side));
            }
        }
        let mut list: Vec<Conflict> = Vec::new();
        let mut told: BTreeSet<&[u8]> = BTreeSet::new();
        while let Some(count) = fields.next().filter(|field| !field.is_empty()) {
            let count: usize = std::str::from_utf8(count).ok()?.parse().ok()?;
            let paths: Vec<&[u8]> = fields.by_ref().take(count).collect();
            let (words, message) = (text(fields.next()?), text(fields.next()?));
            // Some kinds are written with a space before the bracket, some without.
            let Some(words) = words
                .strip_prefix("CONFLICT")
                .and_then(|words| words.trim_start().strip_prefix('('))
                .and_then(|words| words.strip_suffix(')'))
            else {
                continue;
            };
            let Some((first, others)) = paths.split_first() else {
                continue;
            };
            told.extend(&paths);
            if list.len() < CONFLICTS_MAX {
                let found = conflict(ConflictKind::of(words), first, others, &message, &sides);
                keep(&mut list, found, ours, theirs);
            }
        }
        for (path, _) in &sides {
            if told.insert(*path) && list.len() < CONFLICTS_MAX {
                let found = conflict(ConflictKind::Other, path, &[], "", &sides);
                keep(&mut list, found, ours, theirs);
            }
        }
        Some(Self {
            list,
            tree,
            ours,
            theirs,
        })
    }

    /// Gives every path that is part of a conflict, each once.
    pub fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = Vec::new();
        let mut seen = BTreeSet::new();
        for conflict in &self.list {
            if seen.insert(conflict.path.as_str()) {
                paths.push(&conflict.path);
            }
        }
        paths
    }
}

impl Conflict {
    /// Gives all paths that are part of it, its own first.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter().map(String::as_str);
        let sides = self.sides.iter().map(|side| side.path.as_str());
        std::iter::once(self.path.as_str())
            .chain(others)
            .chain(sides)
    }

    /// Tells whether both sides' lines are in the merged file, between markers.
    #[must_use]
    pub fn has_hunks(&self) -> bool {
        matches!(
            self.kind,
            ConflictKind::Content | ConflictKind::BothAdded | ConflictKind::RenameCollision
        )
    }
}

impl Repository {
    /// Reads the lines on which the two sides of a conflict do not agree: none where it is not about
    /// lines. Looks at the first MiB of the file; keeps 20 hunks and 4 KiB of each side of them.
    pub async fn hunks(&self, of: &Conflicts, conflict: &Conflict) -> Result<Hunks, GitError> {
        if !conflict.has_hunks() {
            return Ok(Hunks::default());
        }
        let mut name = format!("{}:", of.tree).into_bytes();
        name.extend_from_slice(&conflict.in_tree);
        let output = self
            .command()
            .args(["cat-file", "blob"])
            .arg(OsStr::from_bytes(&name))
            .stdout_limit(SEARCHED_BYTES_MAX)
            .run_truncated()
            .await?;
        // What is a folder or nothing in the merged tree has no lines.
        let mut hunks = parse_hunks(&output.stdout, of.ours, of.theirs);
        hunks.has_more |= output.truncated;
        Ok(hunks)
    }
}

/// Reads "mode object stage TAB path".
fn parse_side(field: &[u8]) -> Option<(&[u8], Side)> {
    let tab = field.iter().position(|byte| *byte == b'\t')?;
    let (entry, path) = (field.get(..tab)?, field.get(tab + 1..)?);
    let mut words = entry.split(|byte| *byte == b' ');
    let (mode, object, stage) = (words.next()?, words.next()?, words.next()?);
    let stage = match stage {
        b"1" => Stage::Base,
        b"2" => Stage::Ours,
        b"3" => Stage::Theirs,
        _ => return None,
    };
    let side = Side {
        stage,
        mode: text(mode),
        object: ObjectId::from_hex(object)?,
        path: text(path),
    };
    Some((path, side))
}

fn conflict(
    kind: ConflictKind,
    first: &[u8],
    others: &[&[u8]],
    message: &str,
    sides: &[(&[u8], Side)],
) -> Conflict {
    let named = |path: &[u8]| path == first || others.contains(&path);
    let sides: Vec<Side> = sides
        .iter()
        .filter(|(path, _)| named(path))
        .map(|(_, side)| side.clone())
        .collect();
    Conflict {
        kind: precise(kind, &sides),
        path: text(first),
        others: others.iter().map(|path| text(path)).collect(),
        sides,
        message: message.trim().to_owned(),
        in_tree: first.to_vec(),
    }
}

/// Tells apart what git calls a conflict of contents whatever the thing is.
fn precise(kind: ConflictKind, sides: &[Side]) -> ConflictKind {
    let side = |stage| sides.iter().find(|side| side.stage == stage);
    if !matches!(kind, ConflictKind::Content | ConflictKind::Other) {
        return kind;
    }
    let (Some(ours), Some(theirs)) = (side(Stage::Ours), side(Stage::Theirs)) else {
        return kind;
    };
    match (ours.mode.as_str(), theirs.mode.as_str()) {
        ("160000", "160000") => ConflictKind::Submodule,
        ("120000", "120000") => ConflictKind::Symlink,
        ("160000" | "120000", _) | (_, "160000" | "120000") => ConflictKind::TypeChange,
        (one, other) if one != other && ours.object == theirs.object => ConflictKind::Mode,
        _ if side(Stage::Base).is_none() => ConflictKind::BothAdded,
        _ => kind,
    }
}

/// Adds a conflict, unless a more telling one of that file is there: git says of a binary file or a
/// submodule first what it is, and then that its contents conflict.
fn keep(list: &mut Vec<Conflict>, mut found: Conflict, ours: ObjectId, theirs: ObjectId) {
    // Of two things that cannot have one name git renames one; people know it by the name it had.
    for side in [ours, theirs] {
        if let Some(plain) = found.path.strip_suffix(&format!("~{side}")) {
            found.path = plain.to_owned();
        }
        for other in &mut found.others {
            if let Some(plain) = other.strip_suffix(&format!("~{side}")) {
                *other = plain.to_owned();
            }
        }
    }
    let own = found.path.clone();
    found.others.retain(|other| *other != own);
    let general = |kind| {
        matches!(
            kind,
            ConflictKind::Content | ConflictKind::BothAdded | ConflictKind::Other
        )
    };
    if let Some(known) = list.iter_mut().find(|known| known.path == found.path) {
        let same = known.kind == found.kind && known.others == found.others;
        if same
            || (general(found.kind)
                && matches!(known.kind, ConflictKind::Binary | ConflictKind::Submodule))
        {
            return;
        }
        if general(known.kind)
            && matches!(found.kind, ConflictKind::Binary | ConflictKind::Submodule)
        {
            *known = found;
            return;
        }
    }
    list.push(found);
}

/// Finds what stands between markers with the two commits' names.
///
/// The length of a marker is chosen by attributes, so it is taken from the first one.
fn parse_hunks(file: &[u8], ours: ObjectId, theirs: ObjectId) -> Hunks {
    enum Place {
        Outside,
        Ours(usize),
        Theirs(usize),
    }
    let (ours, theirs) = (ours.to_string(), theirs.to_string());
    let mut hunks = Hunks::default();
    let mut place = Place::Outside;
    let mut hunk = Hunk::default();
    for (line, number) in file.split_inclusive(|byte| *byte == b'\n').zip(1_u64..) {
        place = match place {
            Place::Outside => match marker(line, b'<', &ours) {
                None => Place::Outside,
                Some(_) if hunks.list.len() >= HUNKS_MAX => {
                    hunks.has_more = true;
                    return hunks;
                }
                Some(length) => {
                    hunk = Hunk {
                        line: number,
                        ..Hunk::default()
                    };
                    Place::Ours(length)
                }
            },
            Place::Ours(length) => {
                if marker(line, b'=', "") == Some(length) {
                    Place::Theirs(length)
                } else {
                    hunk.is_cut |= append(&mut hunk.ours, line);
                    Place::Ours(length)
                }
            }
            Place::Theirs(length) => {
                if marker(line, b'>', &theirs) == Some(length) {
                    hunks.list.push(std::mem::take(&mut hunk));
                    Place::Outside
                } else {
                    hunk.is_cut |= append(&mut hunk.theirs, line);
                    Place::Theirs(length)
                }
            }
        };
    }
    // The file was cut inside a hunk.
    if !matches!(place, Place::Outside) {
        hunk.is_cut = true;
        hunks.has_more = true;
        hunks.list.push(hunk);
    }
    hunks
}

/// Gives the length of a marker of that letter whose label begins so.
fn marker(line: &[u8], letter: u8, label: &str) -> Option<usize> {
    let length = line.iter().take_while(|byte| **byte == letter).count();
    let rest = line.get(length..)?.trim_ascii();
    let fits = if label.is_empty() {
        rest.is_empty()
    } else {
        rest.starts_with(label.as_bytes())
    };
    (length >= MARKER_LENGTH_MIN && fits).then_some(length)
}

/// Adds a line, or as much of it as fits; tells whether something was left out.
fn append(side: &mut String, line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    let room = HUNK_SIDE_BYTES_MAX.saturating_sub(side.len());
    let mut end = line.len().min(room);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    side.push_str(line.get(..end).unwrap_or_default());
    end < line.len()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> ObjectId {
        ObjectId::parse(&digit.repeat(40)).unwrap()
    }

    #[test]
    fn conflicts_are_read_with_their_kind_and_sides() {
        let tree = "921c2857f3fa40e9d44811acbfcc8af82d1e1134";
        let output = format!(
            "{tree}\0100644 {tree} 1\ta\0100644 {tree} 2\ta\0100644 {tree} 3\tb\0\0\
             1\0LOG\0Auto-merging\0Auto-merging LOG\n\0\
             1\0a\0CONFLICT (modify/delete)\0CONFLICT (modify/delete): a\n\0\
             1\0c\0CONFLICT(directory rename unclear split)\0CONFLICT: c\n\0"
        );
        let found = Conflicts::parse(output.as_bytes(), id("1"), id("2")).unwrap();
        let told: Vec<_> = found
            .list
            .iter()
            .map(|found| (found.path.as_str(), found.kind.as_str(), found.sides.len()))
            .collect();
        assert_eq!(
            told,
            [
                ("a", "modify_delete", 2),
                ("c", "directory_rename", 0),
                ("b", "other", 1)
            ]
        );
        assert_eq!(found.list[0].message, "CONFLICT (modify/delete): a");
        let cut = output.len() - 15;
        let cut = output.as_bytes().get(..cut).unwrap();
        assert_eq!(Conflicts::parse(cut, id("1"), id("2")), None);
        assert_eq!(Conflicts::parse(b"", id("1"), id("2")), None);
    }

    #[test]
    fn hunks_are_bounded_and_only_those_between_the_right_markers() {
        let (ours, theirs) = (id("1"), id("2"));
        let hunk = format!(
            "<<<<<<< {ours}\nmine\n<<<<<<< not a marker\n=======\nyours\n>>>>>>> other\n\
             >>>>>>> {theirs}:renamed\n"
        );
        let read = |text: &str| parse_hunks(text.as_bytes(), ours, theirs);
        let found = read(&format!("a\n=======\n{hunk}b\n"));
        assert_eq!(
            found.list,
            [Hunk {
                line: 3,
                ours: "mine\n<<<<<<< not a marker\n".to_owned(),
                theirs: "yours\n>>>>>>> other\n".to_owned(),
                is_cut: false,
            }]
        );
        let many = read(&hunk.repeat(HUNKS_MAX + 1));
        assert_eq!((many.list.len(), many.has_more), (HUNKS_MAX, true));
        let long = read(&format!("<<<<<<< {ours}\n{}\n", "é".repeat(9_000)));
        assert!(long.has_more && long.list[0].is_cut);
        assert_eq!(long.list[0].ours.len(), HUNK_SIDE_BYTES_MAX);
        assert_eq!(read("\u{0}\n<<<<<<<\n").list, []);
    }
}
