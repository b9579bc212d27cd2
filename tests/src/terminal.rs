//! A terminal with a program in it: a real pseudo-terminal whose screen a test reads as a person does.
//!
//! It answers no questions, such as where its cursor is: some terminals do not, others too late.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pty_process::Size;
use pty_process::blocking::{Pts, Pty, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Termios, tcgetattr};

use crate::process::Program;
use crate::wait::until;

/// A terminal, and the program that was started in it as the leader of its session.
pub struct Terminal {
    pty: Arc<Pty>,
    /// The program's side: as long as someone has it, the terminal lives on as a person's does, to
    /// whose shell a program returns.
    pts: Pts,
    child: Child,
    screen: Arc<Mutex<vt100::Parser>>,
    /// How the terminal was before the program came.
    before: Termios,
}

impl Terminal {
    /// Opens a terminal of so many columns and lines, and starts a program in it.
    ///
    /// # Errors
    /// The system has no terminals left, or the program cannot be started.
    pub fn start(program: &Program, columns: u16, lines: u16) -> Result<Self> {
        let (pty, pts) = open().context("open a pseudo-terminal")?;
        pty.resize(Size::new(lines, columns))?;
        let before = tcgetattr(pty.as_fd())?;
        let mut words = program.wrapper.iter().cloned();
        let path = program.path.clone().into_os_string();
        let first = words.next();
        let rest: Vec<_> = match &first {
            Some(_) => words.chain([path.clone()]).collect(),
            None => Vec::new(),
        };
        let child = pty_process::blocking::Command::new(first.unwrap_or(path))
            .args(rest)
            .args(&program.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TERM", "xterm-256color")
            .envs(program.variables.iter().cloned())
            .current_dir(&program.folder)
            .spawn_borrowed(&pts)
            .with_context(|| format!("start {}", program.shown()))?;
        let (rows, width) = (NonZeroU16::new(lines), NonZeroU16::new(columns));
        let (rows, width) = rows.zip(width).context("a terminal without room")?;
        let pty = Arc::new(pty);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, width, 0)));
        let (source, seen) = (Arc::clone(&pty), Arc::clone(&screen));
        // It ends when both sides are closed.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = (&*source).read(&mut bytes) {
                let Some(read) = bytes.get(..count).filter(|read| !read.is_empty()) else {
                    return;
                };
                lock(&seen).process(read);
            }
        });
        Ok(Self {
            pty,
            pts,
            child,
            screen,
            before,
        })
    }

    /// Types, byte by byte as a keyboard sends it.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn types(&self, keys: &str) -> Result<()> {
        (&*self.pty).write_all(keys.as_bytes())?;
        Ok(())
    }

    /// Makes the window another size, of which the system tells the program.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let (rows, width) = (NonZeroU16::new(lines), NonZeroU16::new(columns));
        let (rows, width) = rows.zip(width).context("a terminal without room")?;
        lock(&self.screen).set_size(rows, width);
        self.pty.resize(Size::new(lines, columns))?;
        Ok(())
    }

    /// Gives the lines that are seen, without the blanks behind them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let parser = lock(&self.screen);
        let (_, columns) = parser.screen().size();
        let rows = parser.screen().rows(0, columns.get());
        rows.map(|row| row.trim_end().to_owned()).collect()
    }

    /// Waits until the screen is as wanted, and gives it.
    ///
    /// # Errors
    /// It is not by the deadline; the message shows the screen.
    pub fn until(
        &self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&[String]) -> bool,
    ) -> Result<Vec<String>> {
        let seen = until(what, deadline, || {
            let lines = self.lines();
            Ok(wanted(&lines).then_some(lines))
        });
        seen.with_context(|| format!("the screen shows\n{}", self.lines().join("\n")))
    }

    /// Tells whether a program has the terminal for itself: the second screen, or no cursor.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        let parser = lock(&self.screen);
        parser.screen().alternate_screen() || parser.screen().hide_cursor()
    }

    /// Tells whether keys are shown and lines edited as before the program.
    ///
    /// # Errors
    /// The terminal has gone.
    pub fn is_as_before(&self) -> Result<bool> {
        let now = tcgetattr(self.pts.as_fd())?;
        let before = &self.before;
        Ok(now.local_modes == before.local_modes
            && now.input_modes == before.input_modes
            && now.output_modes == before.output_modes
            && now.control_modes == before.control_modes)
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It has not ended by the deadline.
    pub fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended = until("the program ends", deadline, || Ok(child.try_wait()?));
        ended.with_context(|| format!("the screen shows\n{}", self.lines().join("\n")))
    }

    /// Waits for the program's end, and insists that the terminal is as it was before.
    ///
    /// # Errors
    /// It has not ended by the deadline, or has left something as it was not.
    pub fn left_in_order(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let status = self.ended(deadline)?;
        until("the terminal is free", deadline, || {
            Ok((!self.is_taken()).then_some(()))
        })?;
        ensure!(self.is_as_before()?, "the terminal's modes are changed");
        Ok(status)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(screen: &Mutex<vt100::Parser>) -> MutexGuard<'_, vt100::Parser> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}
