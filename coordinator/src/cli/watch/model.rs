//! What the live table knows, and how each thing that happens changes it. Nothing here waits,
//! prints or looks at a clock.

use std::cmp::Reverse;

use jiff::Timestamp;
use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;

use super::keys::Key;
use super::output::Said;
use crate::cli::show;

/// Characters of a filter.
const FILTER_CHARS_MAX: usize = 100;

/// Something that happens to the live table.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The run as it is now.
    Run(Box<v1::Run>),
    Item(Item),
    /// The connection to the coordinator has broken.
    Away,
    /// There is a connection again.
    Back,
    /// Why a task is as it is.
    Explained(String, v1::ExplainTaskResponse),
    /// All that a task has said so far.
    Read(String, Vec<v1::AgentEvent>),
    Key(Key),
    /// The window has so many columns and lines.
    Resized(u16, u16),
    Tick(Timestamp),
}

/// The order in which tasks are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// What needs a look first, then what works, what comes next and what is done.
    Attention,
    /// As the plan has them.
    Plan,
}

/// Where keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Focus {
    Tasks,
    Detail,
    Filter,
}

/// Everything that is shown, and where the person looks.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) run: v1::Run,
    pub(crate) said: Said,
    pub(crate) now: Timestamp,
    /// Since when the coordinator has been away.
    pub(crate) away_since: Option<Timestamp>,
    pub(crate) size: (u16, u16),
    pub(crate) order: Order,
    pub(crate) filter: String,
    pub(crate) focus: Focus,
    /// How many tasks are in each state.
    pub(crate) counts: Vec<(String, usize)>,
    /// Places of the tasks that are listed, in the order of the list.
    pub(crate) listed: Vec<usize>,
    /// Where in the list the person stands.
    pub(crate) at: usize,
    /// The first task of the list that is seen.
    pub(crate) top: usize,
    pub(crate) detail: bool,
    /// Lines that the detail pane is scrolled back from its end.
    pub(crate) back: usize,
    pub(crate) help: bool,
    pub(crate) explained: Option<(String, v1::ExplainTaskResponse)>,
    /// The person wants to go.
    pub(crate) leaving: bool,
    /// The person has used a key, and so looks on.
    pub(crate) touched: bool,
    /// The run should be asked for again.
    pub(crate) stale: bool,
    /// The explanation should be asked for again.
    pub(crate) unexplained: bool,
}

fn is_usage(event: &v1::AgentEvent) -> bool {
    use v1::activity::Kind as Doing;
    use v1::agent_event::Kind;
    match &event.kind {
        Some(Kind::Activity(activity)) => matches!(activity.kind, Some(Doing::Usage(_))),
        _ => false,
    }
}

impl Model {
    pub(crate) fn new(run: v1::Run, now: Timestamp, size: (u16, u16)) -> Self {
        let mut model = Self {
            run,
            said: Said::default(),
            now,
            away_since: None,
            size,
            order: Order::Attention,
            filter: String::new(),
            focus: Focus::Tasks,
            counts: Vec::new(),
            listed: Vec::new(),
            at: 0,
            top: 0,
            detail: false,
            back: 0,
            help: false,
            explained: None,
            leaving: false,
            touched: false,
            stale: true,
            unexplained: false,
        };
        model.count();
        model.list();
        model
    }

    /// Takes an event in.
    pub(crate) fn update(&mut self, event: Event) {
        match event {
            Event::Run(run) => {
                self.run = *run;
                self.count();
                self.unexplained = self.detail;
                self.relist();
            }
            Event::Item(Item::Journal(_)) => self.stale = true,
            Event::Item(Item::Agent(of)) => {
                if let Some(event) = &of.event {
                    // The run says what was used.
                    self.stale |= is_usage(event);
                    self.said.take(&of.task, event);
                }
            }
            Event::Away => self.away_since = self.away_since.or(Some(self.now)),
            Event::Back => {
                self.away_since = None;
                self.stale = true;
            }
            Event::Explained(task, said) => self.explained = Some((task, said)),
            Event::Read(task, events) => self.said.replace(&task, &events),
            Event::Key(key) => {
                self.touched = true;
                self.key(key);
            }
            Event::Resized(width, height) => {
                self.size = (width, height);
                self.scroll();
            }
            Event::Tick(now) => self.now = now,
        }
    }

    /// Gives the task that the person stands on.
    pub(crate) fn selected(&self) -> Option<&v1::Task> {
        self.run.tasks.get(*self.listed.get(self.at)?)
    }

    /// Gives the task whose explanation is wanted.
    pub(crate) fn to_explain(&self) -> Option<&str> {
        let task = self.selected().filter(|_| self.detail)?;
        let known = self.explained.as_ref().map(|(task, _)| task.as_str());
        (self.unexplained || known != Some(&task.name)).then_some(&task.name)
    }

    /// Gives the task whose earlier words are wanted: it has an attempt, but nothing of it is known.
    pub(crate) fn to_read(&self) -> Option<&str> {
        let task = self.selected().filter(|_| self.detail)?;
        let wanted = !task.attempts.is_empty() && !self.said.knows(&task.name);
        wanted.then_some(&task.name)
    }

    /// Lines of the window that the list of tasks has.
    pub(crate) fn list_height(&self) -> usize {
        let body = self.body_height();
        match self.detail {
            true if self.is_low() => 0,
            // A short list leaves its room to the details.
            true => (body - body * 3 / 5).min(self.listed.len().max(3)),
            false => body,
        }
    }

    /// Lines that the detail pane has, its heading among them.
    pub(crate) fn detail_height(&self) -> usize {
        if self.detail {
            self.body_height() - self.list_height()
        } else {
            0
        }
    }

    /// Tells whether the window is too low for list and detail at once.
    fn is_low(&self) -> bool {
        self.body_height() < 12
    }

    /// Lines between heading and help: two of the run, one of the columns, one of help.
    fn body_height(&self) -> usize {
        usize::from(self.size.1).saturating_sub(4)
    }

    fn key(&mut self, key: Key) {
        if key == Key::Interrupt {
            self.leaving = true;
            return;
        }
        if std::mem::take(&mut self.help) {
            return;
        }
        match self.focus {
            Focus::Filter => self.filter_key(key),
            Focus::Tasks => self.task_key(key),
            Focus::Detail => self.detail_key(key),
        }
    }

    fn task_key(&mut self, key: Key) {
        let page = self.list_height().max(2) - 1;
        match key {
            Key::Up | Key::Char('k') => self.go(self.at.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.go(self.at + 1),
            Key::PageUp => self.go(self.at.saturating_sub(page)),
            Key::PageDown | Key::Char(' ') => self.go(self.at + page),
            Key::Home | Key::Char('g') => self.go(0),
            Key::End | Key::Char('G') => self.go(usize::MAX),
            Key::Enter => self.open(true),
            Key::Tab if self.detail => self.focus = Focus::Detail,
            Key::Escape if self.detail => self.open(false),
            Key::Escape => {
                self.filter.clear();
                self.relist();
            }
            _ => self.any_key(key),
        }
    }

    fn detail_key(&mut self, key: Key) {
        let page = self.detail_height().max(3) - 2;
        match key {
            Key::Up | Key::Char('k') => self.back = self.back.saturating_add(1),
            Key::Down | Key::Char('j') => self.back = self.back.saturating_sub(1),
            Key::PageUp => self.back = self.back.saturating_add(page),
            Key::PageDown | Key::Char(' ') => self.back = self.back.saturating_sub(page),
            Key::Home | Key::Char('g') => self.back = usize::MAX,
            Key::End | Key::Char('G') => self.back = 0,
            Key::Tab if !self.is_low() => self.focus = Focus::Tasks,
            Key::Escape | Key::Enter => self.open(false),
            _ => self.any_key(key),
        }
    }

    fn any_key(&mut self, key: Key) {
        match key {
            Key::Char('q') => self.leaving = true,
            Key::Char('?' | 'h') => self.help = true,
            Key::Char('/') => {
                self.open(false);
                self.focus = Focus::Filter;
            }
            Key::Char('o') => {
                self.order = match self.order {
                    Order::Attention => Order::Plan,
                    Order::Plan => Order::Attention,
                };
                self.relist();
            }
            _ => {}
        }
    }

    fn filter_key(&mut self, key: Key) {
        match key {
            Key::Enter | Key::Tab | Key::Down | Key::Up => self.focus = Focus::Tasks,
            Key::Escape => {
                self.filter.clear();
                self.focus = Focus::Tasks;
            }
            Key::Backspace => drop(self.filter.pop()),
            Key::Char(letter) if self.filter.chars().count() < FILTER_CHARS_MAX => {
                self.filter.push(letter);
            }
            _ => {}
        }
        self.relist();
    }

    fn go(&mut self, at: usize) {
        self.at = at.min(self.listed.len().saturating_sub(1));
        self.back = 0;
        self.scroll();
    }

    fn open(&mut self, open: bool) {
        self.detail = open && self.selected().is_some();
        self.back = 0;
        // With no list beside it the pane has the keys.
        self.focus = if self.detail && self.is_low() {
            Focus::Detail
        } else {
            Focus::Tasks
        };
        self.scroll();
    }

    /// Keeps the person's task in sight.
    fn scroll(&mut self) {
        let height = self.list_height().max(1);
        self.top = self.top.min(self.listed.len().saturating_sub(height));
        self.top = self
            .top
            .clamp((self.at + 1).saturating_sub(height), self.at);
    }

    /// Lists the tasks anew; whoever has chosen a task stays on it.
    fn relist(&mut self) {
        let name = self
            .selected_before()
            .filter(|_| self.touched)
            .map(ToOwned::to_owned);
        self.list();
        let place = name.and_then(|name| self.place(&name));
        self.at = place
            .unwrap_or(self.at)
            .min(self.listed.len().saturating_sub(1));
        if self.listed.is_empty() && self.focus != Focus::Filter {
            self.open(false);
        }
        self.scroll();
    }

    fn place(&self, name: &str) -> Option<usize> {
        let is_it = |place: &usize| self.run.tasks.get(*place).is_some_and(|t| t.name == name);
        self.listed.iter().position(is_it)
    }

    /// Gives the name of the person's task; a run's tasks keep their places for ever.
    fn selected_before(&self) -> Option<&str> {
        self.selected().map(|task| task.name.as_str())
    }

    /// Counts once for each news, not for each picture: a run may have a hundred thousand tasks.
    fn count(&mut self) {
        self.counts = show::counts(&self.run.tasks)
            .into_iter()
            .map(|(state, count)| (state.to_owned(), count))
            .collect();
    }

    fn list(&mut self) {
        let filter = self.filter.to_lowercase();
        let fits = |task: &v1::Task| {
            filter.is_empty()
                || task.name.to_lowercase().contains(&filter)
                || show::state_word(task).contains(&filter)
        };
        let mut listed: Vec<usize> = (0..self.run.tasks.len())
            .filter(|place| self.run.tasks.get(*place).is_some_and(fits))
            .collect();
        if self.order == Order::Attention {
            listed.sort_by_cached_key(|place| {
                self.run.tasks.get(*place).map(|task| {
                    let ended = task.attempts.last().and_then(|attempt| {
                        show::time(attempt.ended_at.as_ref()).filter(|_| task.state == "succeeded")
                    });
                    (rank(&task.state), Reverse(ended))
                })
            });
        }
        self.listed = listed;
    }
}

fn rank(state: &str) -> u8 {
    match state {
        "failed" | "aborted" | "parked" => 0,
        "leased" | "verifying" => 1,
        "basing" => 2,
        "ready" => 3,
        "blocked" => 4,
        "succeeded" => 6,
        "cancelled" => 7,
        "skipped" => 8,
        _ => 5,
    }
}
