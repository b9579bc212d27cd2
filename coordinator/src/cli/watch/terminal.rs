//! The terminal while the live table has it, and its return in every case.

use std::io::{self, Stdout, Write as _};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::Show;
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::CrosstermBackend;

use super::model::Model;
use super::view::{self, Theme};

/// Whether the terminal is ours now. There is only one.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal in raw mode, on its second screen; given back when this is dropped, and before a
/// panic says why.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// It cannot be read or written; then it is as it was.
    pub(super) fn open() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        TAKEN.store(true, Ordering::SeqCst);
        let opened = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        if opened.is_err() {
            give_back();
        }
        Ok(Self { terminal: opened? })
    }

    /// Gives the columns and lines of the window.
    pub(super) fn size(&self) -> (u16, u16) {
        // A window that does not tell is taken for the smallest that was ever common.
        self.terminal
            .size()
            .map_or((80, 24), |size| (size.width, size.height))
    }

    /// Forgets what the terminal shows, since it has changed size or someone else wrote to it.
    ///
    /// # Errors
    /// The terminal has gone.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        // Not `clear`, which asks the terminal where its cursor is: whoever reads the keys would get
        // the answer, and some terminals give none.
        let size = self.terminal.size()?;
        self.terminal.resize(size.into())
    }

    /// Draws what has changed.
    ///
    /// # Errors
    /// The terminal has gone.
    pub(super) fn draw(&mut self, model: &Model, theme: Theme) -> io::Result<()> {
        self.terminal.draw(|frame| {
            let area = frame.area();
            view::draw(model, theme, area, frame.buffer_mut());
        })?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, once. A terminal that has gone takes nothing back.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        drop(execute!(out, LeaveAlternateScreen, Show));
        drop(out.flush());
        drop(disable_raw_mode());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use pty_process::Size;
    use pty_process::blocking::{Command, open};
    use rustix::termios::tcgetattr;

    use super::*;

    #[test]
    #[ignore = "has a terminal only when the test below starts it"]
    fn panics_on_its_screen() {
        let _screen = Screen::open().unwrap();
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_then_says_why() {
        let (mut terminal, program_side) = open().unwrap();
        terminal.resize(Size::new(24, 80)).unwrap();
        let before = tcgetattr(terminal.as_fd()).unwrap();
        let name = "cli::watch::terminal::tests::panics_on_its_screen";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .spawn(program_side)
            .unwrap();
        let mut seen = Vec::new();
        let mut bytes = [0; 4096];
        // It cannot be read any more once the program has gone.
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            seen.extend_from_slice(&bytes[..count]);
        }
        assert!(!child.wait().unwrap().success());
        let seen = String::from_utf8_lossy(&seen);
        let at = |what: &str| {
            seen.find(what)
                .unwrap_or_else(|| panic!("{what:?}: {seen:?}"))
        };
        let order = [
            at("\x1b[?1049h"),
            at("\x1b[?1049l"),
            at("\x1b[?25h"),
            at("on purpose"),
        ];
        assert!(order.is_sorted(), "{seen:?}");
        let after = tcgetattr(terminal.as_fd()).unwrap();
        assert_eq!(
            (after.local_modes, after.input_modes, after.output_modes),
            (before.local_modes, before.input_modes, before.output_modes)
        );
    }
}
