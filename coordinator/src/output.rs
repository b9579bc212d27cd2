//! Everything the command line prints: data on standard output, talk on standard error.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR`, `CLICOLOR=0` or `TERM=dumb` is set.
    #[default]
    Auto,
    /// Always, also into files and pipes.
    Always,
    /// Never.
    Never,
}

/// Standard output cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct Error(#[from] io::Error);

impl Error {
    /// Tells whether only the reader has gone, as `head` does.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// The two streams of a program and what they can show; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Paints what goes to standard output.
    pub data_paint: Paint,
    /// Paints what goes to standard error.
    pub talk_paint: Paint,
    /// Whether talk may be redrawn in place.
    pub talk_is_terminal: bool,
    /// Whether standard output is a terminal that can be drawn on.
    pub data_is_terminal: bool,
    quiet: bool,
}

impl Output {
    /// Looks at the process's streams and environment. With `quiet` only errors are said.
    #[must_use]
    pub fn of_process(color: ColorChoice, quiet: bool) -> Self {
        let term = std::env::var_os("TERM");
        let paint =
            |terminal: bool| Paint::new(colours(color, terminal, |name| std::env::var_os(name)));
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            data_paint: paint(out),
            talk_paint: paint(err),
            talk_is_terminal: err && term.as_ref().is_none_or(|term| term != "dumb"),
            data_is_terminal: out && term.is_none_or(|term| term != "dumb"),
            quiet,
        }
    }

    /// Gives the columns of the terminal that standard output is.
    #[must_use]
    pub fn data_width(&self) -> Option<usize> {
        let size = console::Term::stdout().size_checked();
        size.filter(|_| self.data_is_terminal)
            .map(|(_, columns)| usize::from(columns))
    }

    /// Prints text as it is, followed by a line break.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn data(&self, text: &str) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    }

    /// Prints one JSON document on one line.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(io::Error::from)?;
        self.data(&text)
    }

    /// Says something to the person in front, unless they asked for quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.complain(text);
        }
    }

    /// Says something that matters even to a person who asked for quiet.
    pub fn complain(&self, text: &str) {
        self.talk(&format!("{text}\n"));
    }

    /// Writes to standard error as it is. Nobody can be told when that fails.
    pub fn talk(&self, text: &str) {
        let mut err = io::stderr().lock();
        drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
    }
}

/// Decides whether to colour: the option first, then `NO_COLOR`, `CLICOLOR_FORCE`, `CLICOLOR` and
/// `TERM`, as <https://bixense.com/clicolors> and <https://no-color.org> have it.
fn colours(
    choice: ColorChoice,
    terminal: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto if set("NO_COLOR").is_some() => false,
        ColorChoice::Auto if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        ColorChoice::Auto => {
            terminal
                && set("CLICOLOR").is_none_or(|value| value != "0")
                && set("TERM").is_none_or(|value| value != "dumb")
        }
    }
}

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    enabled: bool,
}

impl Paint {
    /// Makes one that colours, or one that does nothing.
    #[must_use]
    pub const fn new(enabled: bool) -> Self {
        Self { enabled }
    }

    /// Tells whether it colours.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        self.enabled
    }

    /// Makes text stand out.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.code("1", text)
    }

    /// Makes text step back.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.code("2", text)
    }

    /// For what went wrong.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.code("31", text)
    }

    /// For what went well.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.code("32", text)
    }

    /// For what needs a look.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.code("33", text)
    }

    /// For what is happening.
    #[must_use]
    pub fn cyan(self, text: &str) -> String {
        self.code("36", text)
    }

    fn code(self, code: &str, text: &str) -> String {
        if self.enabled && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Makes foreign text harmless for a terminal: control characters other than line breaks and tabs
/// become visible, and so do characters that change the direction of writing.
#[must_use]
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            // The pictures of control characters stand in the same order as these.
            '\0'..='\x1f' if is_harmful(character) => {
                safe.extend(char::from_u32(0x2400 + u32::from(character)));
            }
            '\x7f' => safe.push('\u{2421}'),
            other if is_harmful(other) => safe.push(char::REPLACEMENT_CHARACTER),
            other => safe.push(other),
        }
    }
    Cow::Owned(safe)
}

/// Makes foreign text harmless and one line: what agents say without their colours and cursor
/// movements; only what follows the last carriage return counts, as on a terminal.
#[must_use]
pub fn one_line(text: &str) -> String {
    let plain = console::strip_ansi_codes(text);
    let shown = plain
        .trim_end_matches(['\r', '\n'])
        .rsplit('\r')
        .next()
        .unwrap_or_default();
    harmless(shown).replace(['\n', '\t'], " ").trim().to_owned()
}

/// Makes foreign text one line in which everything is seen, line breaks, cursor movements and colours
/// too: for what agents run and change, where what is hidden might be what matters.
#[must_use]
pub fn whole_line(text: &str) -> String {
    let text = text.trim_end_matches('\n').replace('\n', "\u{240a}");
    harmless(&text.replace('\t', " ")).into_owned()
}

fn is_harmful(character: char) -> bool {
    (character.is_control() && !matches!(character, '\n' | '\t'))
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_hides_nothing() {
        for (text, expected) in [
            ("rm -r ~\rls", "rm -r ~␍ls"),
            ("rm\u{1b}[2K\u{1b}[1Gls", "rm␛[2K␛[1Gls"),
            ("one\ntwo\tx\n\n", "one␊two x"),
            ("\u{1b}]8;;x\u{7}y\u{202e}", "␛]8;;x␇y\u{fffd}"),
        ] {
            assert_eq!(whole_line(text), expected);
        }
    }

    #[test]
    fn colours_are_for_terminals_whose_owner_has_not_said_otherwise() {
        for (choice, terminal, set, wanted) in [
            (ColorChoice::Auto, true, "", true),
            (ColorChoice::Auto, false, "", false),
            (ColorChoice::Auto, true, "NO_COLOR=1", false),
            (ColorChoice::Auto, true, "NO_COLOR=", true),
            (ColorChoice::Auto, true, "CLICOLOR=0", false),
            (ColorChoice::Auto, false, "CLICOLOR_FORCE=1", true),
            (ColorChoice::Auto, false, "CLICOLOR_FORCE=0", false),
            (ColorChoice::Auto, true, "TERM=dumb", false),
            (ColorChoice::Never, true, "CLICOLOR_FORCE=1", false),
            (ColorChoice::Always, false, "NO_COLOR=1", true),
        ] {
            let variable = |name: &str| {
                let (key, value) = set.split_once('=')?;
                (key == name).then(|| value.into())
            };
            assert_eq!(
                colours(choice, terminal, variable),
                wanted,
                "{set} {terminal}"
            );
        }
    }

    #[test]
    fn escapes_of_foreign_text_reach_no_terminal() {
        assert_eq!(harmless("plain\n\ttext ü"), "plain\n\ttext ü");
        assert_eq!(harmless("a\x1b[2Jb\rc\x7f"), "a␛[2Jb␍c␡");
        assert_eq!(harmless("\u{9b}31mx\u{202e}y"), "\u{fffd}31mx\u{fffd}y");
    }

    #[test]
    fn a_line_of_an_agent_loses_its_colours_and_what_it_has_overwritten() {
        assert_eq!(one_line("\x1b[32mok\x1b[0m 3 passed\n"), "ok 3 passed");
        assert_eq!(one_line("10%\r50%\r100%\r\n"), "100%");
        assert_eq!(one_line("a\tb\x07"), "a b␇");
    }

    #[test]
    fn nothing_is_coloured_when_colours_are_off() {
        assert_eq!(Paint::new(false).red("x"), "x");
        assert_eq!(Paint::new(true).red("x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint::new(true).red(""), "");
    }
}
