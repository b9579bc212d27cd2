//! The head of a push: git's list of ref updates, read before the rest is handed on.
//!
//! What git gets is not the client's bytes but [`CommandList::encode`] of what was parsed here, so
//! git and the policy can never understand one list in two ways.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::refs::RefValue;

/// The most ref updates in one push; an attempt needs two.
pub const COMMANDS_MAX: usize = 1_000;

/// The longest list of updates, in bytes: room for [`COMMANDS_MAX`] updates of long names.
pub const LIST_BYTES_MAX: usize = 1 << 20;

/// The longest ref name, in bytes; ours stay below 330.
pub const REFNAME_BYTES_MAX: usize = 1_000;

/// The longest line of side-band data (65,520 bytes) without its length and its band.
const BAND_BYTES_MAX: usize = 65_515;

/// What of a client's capabilities is handed on; the others ask for things that are not served.
const CAPABILITIES: [&str; 5] = [
    "report-status",
    "report-status-v2",
    "side-band-64k",
    "quiet",
    "ofs-delta",
];

/// Why the head of a push could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the push does not start with a list of ref updates in git's pkt-line format")]
    Framing,
    #[error("line {0} of the push is not a ref update")]
    Line(usize),
    #[error("the push updates one ref twice")]
    Twice,
    #[error("the push asks for {0:?}, which is not served here")]
    Unserved(String),
    #[error("the list of ref updates is too long (at most {COMMANDS_MAX} updates)")]
    TooLong,
}

/// One update that a push asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The value that the ref should have before; zero if it should not exist.
    pub old: RefValue,
    /// The value that it shall get; zero to delete it.
    pub new: RefValue,
    /// The full name of the ref: starts with `refs/`, holds no space or control character.
    pub refname: String,
}

/// The head of a push.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandList {
    /// The updates, in the client's order; empty when a client only tries its credential.
    pub commands: Vec<Command>,
    /// The commits whose parents the client does not have.
    shallow: Vec<RefValue>,
    capabilities: Vec<String>,
}

impl CommandList {
    /// The list as git reads it, with all updates made one transaction.
    ///
    /// Without that, git moves the refs one by one, and a lease that ends in between would leave
    /// half a push.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for id in &self.shallow {
            line(&mut bytes, format!("shallow {id}").as_bytes());
        }
        for (index, Command { old, new, refname }) in self.commands.iter().enumerate() {
            let mut text = format!("{old} {new} {refname}");
            if index == 0 {
                text.push('\0');
                for capability in &self.capabilities {
                    text.push(' ');
                    text.push_str(capability);
                }
                text.push_str(" atomic");
            }
            line(&mut bytes, text.as_bytes());
        }
        bytes.extend_from_slice(b"0000");
        bytes
    }

    /// The answer that refuses every update, each with a reason that the client shows.
    ///
    /// `None` if the client does not want a report; it then has to be told by other means.
    pub fn refuse(&self, reason: impl Fn(&Command) -> String) -> Option<Vec<u8>> {
        if !self.has("report-status") && !self.has("report-status-v2") {
            return None;
        }
        let mut report = Vec::new();
        line(&mut report, b"unpack ok\n");
        for command in &self.commands {
            let mut text = format!("ng {} ", command.refname);
            let reason = reason(command);
            text.extend(reason.chars().filter(|c| !c.is_control()).take(300));
            text.push('\n');
            line(&mut report, text.as_bytes());
        }
        report.extend_from_slice(b"0000");
        if !self.has("side-band-64k") {
            return Some(report);
        }
        let mut banded = Vec::new();
        for part in report.chunks(BAND_BYTES_MAX) {
            line(&mut banded, &[&[1], part].concat());
        }
        banded.extend_from_slice(b"0000");
        Some(banded)
    }

    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }
}

/// Appends one pkt-line; the callers' payloads are bounded far below the format's limit.
fn line(bytes: &mut Vec<u8>, payload: &[u8]) {
    let mut length = String::with_capacity(4);
    // Writing to a string cannot fail.
    let _ = write!(length, "{:04x}", payload.len() + 4);
    bytes.extend_from_slice(length.as_bytes());
    bytes.extend_from_slice(payload);
}

/// Reads a [`CommandList`] from chunks of any size.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: Vec<u8>,
    read: usize,
    lines: usize,
    names: BTreeSet<String>,
    list: CommandList,
}

impl Parser {
    /// Takes the next chunk; gives the list once its end was seen, with the bytes that follow it.
    ///
    /// Keeps at most [`LIST_BYTES_MAX`] bytes and one chunk. After an error, or after the list was
    /// given, the parser must not be used again.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Option<(CommandList, Vec<u8>)>, Error> {
        self.buffer.extend_from_slice(chunk);
        while let Some((length, rest)) = self.unread().split_first_chunk::<4>() {
            let length = pkt_length(length).ok_or(Error::Framing)?;
            if length == 0 {
                let rest = rest.to_vec();
                return Ok(Some((std::mem::take(&mut self.list), rest)));
            }
            let Some(payload) = rest.get(..length - 4) else {
                break;
            };
            let payload = payload.strip_suffix(b"\n").unwrap_or(payload).to_vec();
            self.read += length;
            self.lines += 1;
            self.line(&payload)?;
        }
        if self.buffer.len() > LIST_BYTES_MAX {
            return Err(Error::TooLong);
        }
        Ok(None)
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.read..).unwrap_or_default()
    }

    fn line(&mut self, payload: &[u8]) -> Result<(), Error> {
        let wrong = || Error::Line(self.lines);
        if self.lines > COMMANDS_MAX || self.read > LIST_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let text = str::from_utf8(payload).map_err(|_| wrong())?;
        if let Some(id) = text.strip_prefix("shallow ") {
            let id = RefValue::parse(id).ok_or_else(wrong)?;
            self.list.shallow.push(id);
            return Ok(());
        }
        let update = match text.split_once('\0') {
            Some((update, capabilities)) if self.list.commands.is_empty() => {
                self.list.capabilities = served(capabilities)?;
                update
            }
            Some(_) => return Err(wrong()),
            None => text,
        };
        let command = command(update).ok_or_else(wrong)?;
        if !self.names.insert(command.refname.clone()) {
            return Err(Error::Twice);
        }
        self.list.commands.push(command);
        Ok(())
    }
}

/// The length that the first four bytes of a pkt-line state: 0, or 5 and more.
///
/// The markers 1 to 3 have no place in a list, and an empty line (4) means nothing.
fn pkt_length(hex: &[u8; 4]) -> Option<usize> {
    if !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let length = usize::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?;
    (length == 0 || length > 4).then_some(length)
}

fn command(update: &str) -> Option<Command> {
    let (old, rest) = update.split_once(' ')?;
    let (new, refname) = rest.split_once(' ')?;
    let (old, new) = (RefValue::parse(old)?, RefValue::parse(new)?);
    let plain = !refname.chars().any(|c| c.is_whitespace() || c.is_control());
    let valid = plain && refname.starts_with("refs/") && refname.len() <= REFNAME_BYTES_MAX;
    let valid = valid && old.as_str().len() == new.as_str().len();
    valid.then(|| Command {
        old,
        new,
        refname: refname.to_owned(),
    })
}

/// The capabilities to hand on, out of those that a client sent.
///
/// Push options change what follows the list, so asking for them is refused, not ignored.
fn served(capabilities: &str) -> Result<Vec<String>, Error> {
    let mut served = Vec::new();
    for capability in capabilities.split(' ') {
        if capability == "push-options" {
            return Err(Error::Unserved(capability.to_owned()));
        }
        let format = matches!(capability, "object-format=sha1" | "object-format=sha256");
        let known = format || CAPABILITIES.contains(&capability);
        if known && !served.iter().any(|c| c == capability) {
            served.push(capability.to_owned());
        }
    }
    Ok(served)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &str = "0000000000000000000000000000000000000000";
    const NEW: &str = "1111111111111111111111111111111111111111";

    fn lines(payloads: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for payload in payloads {
            line(&mut bytes, payload.as_bytes());
        }
        bytes.extend_from_slice(b"0000");
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Option<(CommandList, Vec<u8>)>, Error> {
        Parser::default().push(bytes)
    }

    #[test]
    fn a_push_is_read_whatever_the_size_of_the_chunks() {
        let first = format!("{OLD} {NEW} refs/a\0 report-status side-band-64k agent=git/2");
        let second = format!("{OLD} {NEW} refs/b\n");
        let shallow = format!("shallow {NEW}");
        let head = lines(&[&shallow, &first, &second]);
        let mut bytes = head.clone();
        bytes.extend_from_slice(b"PACK");
        let whole = parse(&bytes).unwrap().unwrap();
        assert_eq!(whole.1, b"PACK");
        let names: Vec<_> = whole
            .0
            .commands
            .iter()
            .map(|c| c.refname.as_str())
            .collect();
        assert_eq!(names, ["refs/a", "refs/b"]);
        assert_eq!(whole.0.capabilities, ["report-status", "side-band-64k"]);

        let mut parser = Parser::default();
        let (last, but_last) = head.split_last().unwrap();
        for byte in but_last {
            assert_eq!(parser.push(&[*byte]), Ok(None));
        }
        assert_eq!(parser.push(&[*last]), Ok(Some((whole.0, Vec::new()))));
    }

    #[test]
    fn what_git_gets_is_made_anew_and_is_one_transaction() {
        let first = format!("{OLD} {NEW} refs/a\0 report-status object-format=sha1 push-cert=x");
        let second = format!("{OLD} {NEW} refs/b");
        let (list, _) = parse(&lines(&[&first, &second])).unwrap().unwrap();
        let wanted = format!("{OLD} {NEW} refs/a\0 report-status object-format=sha1 atomic");
        assert_eq!(list.encode(), lines(&[&wanted, &second]));
    }

    #[test]
    fn a_list_without_updates_is_a_try_of_the_credential() {
        let (list, rest) = parse(b"0000").unwrap().unwrap();
        assert!(list.commands.is_empty() && rest.is_empty());
    }

    #[test]
    fn anything_but_ref_updates_is_refused() {
        let update = |name: &str| format!("{OLD} {NEW} {name}");
        let cases = [
            (b"GET / HTTP/1.1".to_vec(), Error::Framing),
            (b"0001".to_vec(), Error::Framing),
            (b"0004".to_vec(), Error::Framing),
            (b"+004".to_vec(), Error::Framing),
            (lines(&["push-cert\0 report-status"]), Error::Line(1)),
            (lines(&["shallow x"]), Error::Line(1)),
            (lines(&[&update("HEAD")]), Error::Line(1)),
            (lines(&[&update("refs/a b")]), Error::Line(1)),
            (lines(&[&update("refs/\u{7f}")]), Error::Line(1)),
            (
                lines(&[&update(&format!("refs/{}", "a".repeat(1_000)))]),
                Error::Line(1),
            ),
            (
                lines(&[&format!("{OLD} {NEW}{NEW} refs/a")]),
                Error::Line(1),
            ),
            (
                lines(&[&update("refs/a"), &update("refs/b\0atomic")]),
                Error::Line(2),
            ),
            (lines(&[&update("refs/a"), &update("refs/a")]), Error::Twice),
            (
                lines(&[&update("refs/a\0 push-options")]),
                Error::Unserved("push-options".to_owned()),
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(
                parse(&bytes),
                Err(error),
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }

    #[test]
    fn a_list_without_end_is_cut_off() {
        let updates: Vec<_> = (0..=COMMANDS_MAX)
            .map(|n| format!("{OLD} {NEW} refs/{n}"))
            .collect();
        let updates: Vec<_> = updates.iter().map(String::as_str).collect();
        assert_eq!(parse(&lines(&updates)), Err(Error::TooLong));
        assert!(parse(&lines(&updates[1..])).is_ok());

        let wide: Vec<_> = (0..600)
            .map(|n| format!("{OLD} {NEW} refs/a/{n}\0{}", "x ".repeat(900)))
            .collect();
        let mut parser = Parser::default();
        assert!(wide.iter().any(|text| {
            let mut bytes = Vec::new();
            line(&mut bytes, text.as_bytes());
            parser.push(&bytes).is_err()
        }));
    }

    #[test]
    fn a_refusal_reports_each_ref_in_the_way_the_client_asked_for() {
        let plain = format!("{OLD} {NEW} refs/a\0 report-status");
        let (list, _) = parse(&lines(&[&plain])).unwrap().unwrap();
        let report = lines(&["unpack ok\n", "ng refs/a no: twoparts\n"]);
        assert_eq!(
            list.refuse(|_| "no: two\nparts".to_owned()),
            Some(report.clone())
        );

        let banded = format!("{plain} side-band-64k");
        let (list, _) = parse(&lines(&[&banded])).unwrap().unwrap();
        let mut wanted = Vec::new();
        line(&mut wanted, &[&[1], report.as_slice()].concat());
        wanted.extend_from_slice(b"0000");
        assert_eq!(list.refuse(|_| "no: two\nparts".to_owned()), Some(wanted));

        let silent = format!("{OLD} {NEW} refs/a");
        let (list, _) = parse(&lines(&[&silent])).unwrap().unwrap();
        assert_eq!(list.refuse(|_| "no".to_owned()), None);
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_never_panic(chunks in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut parser = Parser::default();
            for chunk in chunks {
                if !matches!(parser.push(&chunk), Ok(None)) {
                    break;
                }
            }
        }

        #[test]
        fn a_list_that_was_understood_is_understood_the_same_after_encoding(
            texts in prop::collection::vec("(shallow )?[01]{40} [01]{40} refs/[a-c/]{1,3}(\0 quiet atomic)?\n?", 1..4)
        ) {
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            if let Ok(Some((list, _))) = parse(&lines(&texts)) {
                let (again, _) = parse(&list.encode()).unwrap().unwrap();
                prop_assert_eq!(again, list);
            }
        }
    }
}
