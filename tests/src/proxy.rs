//! A TCP proxy that does to connections what bad networks do, while a test tells it what.
//!
//! It stands between a real client and a real coordinator and knows nothing of what passes. Faults
//! of a [`Direction`] hold for all connections, open ones and new ones, until they are changed;
//! cuts happen once. What is between the two sides is bounded: a side that sends faster than the
//! other takes is made to wait, as TCP does.

mod pump;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};

/// Bytes of one direction of one connection that the proxy holds back at the most.
pub const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// What the system may hold before the proxy reads it: little, since it is before the bottleneck.
const RECEIVE_BYTES: usize = 32 * 1024;
/// Things done that are remembered; older ones are forgotten.
const STORY_LINES_MAX: usize = 1_000;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the one who connected to the coordinator.
    Up,
    /// From the coordinator back.
    Down,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    const fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }
}

/// Whether bytes of a direction arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They do.
    #[default]
    Open,
    /// They are taken and held; once the flow is open again they arrive, all and in order. To both
    /// sides this looks like a network that drops packets, until TCP would have given up.
    Stalled,
    /// They are taken and thrown away. A connection that has lost bytes so never carries anything
    /// in this direction again, and is not told: as behind a firewall that forgot it.
    BlackHole,
}

/// What the proxy does to one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How long each byte is under way.
    pub delay: Duration,
    /// Whether bytes arrive at all.
    pub flow: Flow,
    /// The most that passes, each connection by itself.
    pub bytes_per_second: Option<NonZeroU32>,
}

impl Faults {
    /// No fault.
    pub const NONE: Self = Self {
        delay: Duration::ZERO,
        flow: Flow::Open,
        bytes_per_second: None,
    };
    /// Nothing arrives for now, and nothing is lost.
    pub const STALLED: Self = Self {
        flow: Flow::Stalled,
        ..Self::NONE
    };
    /// Everything is lost.
    pub const BLACK_HOLE: Self = Self {
        flow: Flow::BlackHole,
        ..Self::NONE
    };
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a reset to both sides; what is under way is lost.
    Reset,
    /// With an orderly end to both sides, in the middle of whatever they say.
    Finish,
}

/// The end of one connection at an exact byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutAfter {
    /// Whose bytes are counted.
    pub direction: Direction,
    /// How many of them still arrive.
    pub bytes: u64,
    /// How it ends.
    pub end: End,
}

/// What the proxy has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections taken.
    pub accepted: u64,
    /// Of these, the ones for which the coordinator could not be reached.
    pub unreachable: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections cut by order or by schedule.
    pub cut: u64,
    /// Bytes that arrived, up and down.
    pub passed: [u64; 2],
    /// Bytes that were thrown away, up and down.
    pub lost: [u64; 2],
    /// Most bytes that one direction of one connection ever held back.
    pub held_bytes_max: usize,
}

/// Chooses for each new connection, numbered from 1, where it is cut.
pub type Schedule = Box<dyn FnMut(u64) -> Option<CutAfter> + Send>;

/// What connections are to do; they look whenever it changes.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    faults: [Faults; 2],
    /// Connections up to this number are cut, so.
    cut_up_to: u64,
    cut_how: Option<End>,
    /// For each direction: connections up to this number are half-closed.
    half_closed_up_to: [u64; 2],
    listens: bool,
}

struct Seen {
    counts: Counts,
    story: VecDeque<(Instant, String)>,
    schedule: Option<Schedule>,
}

struct Shared {
    target: SocketAddr,
    begun: Instant,
    orders: watch::Sender<Orders>,
    seen: Mutex<Seen>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, line: impl Into<String>) {
        let mut seen = self.seen();
        if seen.story.len() == STORY_LINES_MAX {
            seen.story.pop_front();
        }
        seen.story.push_back((Instant::now(), line.into()));
    }
}

/// A running proxy; it and its connections end when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// What the thread answers when it has begun or ceased to listen.
    listening: watch::Receiver<Listening>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Listening {
    Yes,
    No,
    Failed(String),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("target", &self.shared.target)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on a free port of loopback and passes connections on to `target`, without faults.
    ///
    /// # Errors
    /// No port or no thread can be had.
    pub fn start(target: SocketAddr) -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), target)
    }

    /// Listens at `listen`; port 0 takes any free one.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub fn start_at(listen: SocketAddr, target: SocketAddr) -> Result<Self> {
        let listener = StdListener::bind(listen).context("find a port for the fault proxy")?;
        listener.set_nonblocking(true)?;
        // Connections inherit it.
        set_socket_recv_buffer_size(&listener, RECEIVE_BYTES)?;
        let address = listener.local_addr()?;
        let (orders, seen_orders) = watch::channel(Orders {
            listens: true,
            ..Orders::default()
        });
        let seen = Mutex::new(Seen {
            counts: Counts::default(),
            story: VecDeque::new(),
            schedule: None,
        });
        let shared = Arc::new(Shared {
            target,
            begun: Instant::now(),
            orders,
            seen,
        });
        let (listening_is, listening) = watch::channel(Listening::Yes);
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime for the fault proxy")?;
        let passed = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fault-proxy".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = listen_when_told(&passed, listener, address, seen_orders, &listening_is) => {}
                    }
                });
                // Connections end with the runtime.
            })
            .context("start the fault proxy's thread")?;
        Ok(Self {
            address,
            shared,
            listening,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Gives where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to one direction, of open and of new connections.
    pub fn set(&self, direction: Direction, faults: Faults) {
        self.shared.note(format!("{direction:?}: {faults:?}"));
        self.shared
            .orders
            .send_modify(|orders| orders.faults[direction.index()] = faults);
    }

    /// Changes what happens to both directions.
    pub fn set_both(&self, faults: Faults) {
        for direction in Direction::BOTH {
            self.set(direction, faults);
        }
    }

    /// Takes all faults of both directions back.
    pub fn heal(&self) {
        self.set_both(Faults::NONE);
    }

    /// Cuts all open connections, once.
    pub fn cut(&self, end: End) {
        let accepted = self.shared.seen().counts.accepted;
        self.shared.note(format!("cut all: {end:?}"));
        self.shared.orders.send_modify(|orders| {
            orders.cut_up_to = accepted;
            orders.cut_how = Some(end);
        });
    }

    /// Ends one direction of all open connections, once: its receiver reads to the end of the
    /// stream and can still answer.
    pub fn half_close(&self, direction: Direction) {
        let accepted = self.shared.seen().counts.accepted;
        self.shared.note(format!("half-close {direction:?}"));
        self.shared
            .orders
            .send_modify(|orders| orders.half_closed_up_to[direction.index()] = accepted);
    }

    /// Lets `schedule` choose for each new connection where it is cut; `None` never.
    pub fn schedule(&self, schedule: Option<Schedule>) {
        self.shared.seen().schedule = schedule;
    }

    /// Gives the port back, so that new connections are refused; open ones go on.
    ///
    /// # Errors
    /// The proxy has ended.
    pub fn refuse(&self) -> Result<()> {
        self.listen(false)
    }

    /// Takes the port again after [`Proxy::refuse`].
    ///
    /// # Errors
    /// Somebody else has taken it meanwhile.
    pub fn accept(&self) -> Result<()> {
        self.listen(true)
    }

    fn listen(&self, listens: bool) -> Result<()> {
        self.shared.note(if listens { "accept" } else { "refuse" });
        self.shared
            .orders
            .send_modify(|orders| orders.listens = listens);
        let wanted = if listens {
            Listening::Yes
        } else {
            Listening::No
        };
        crate::wait::until("the fault proxy obeys", crate::wait::SOON, || {
            let now = self.listening.borrow().clone();
            if let Listening::Failed(error) = &now {
                anyhow::bail!("take port {} again: {error}", self.address.port());
            }
            Ok((now == wanted).then_some(()))
        })
    }

    /// Tells what it has done, in numbers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.seen().counts.clone()
    }

    /// Tells what it was told and what happened, with seconds since its start.
    #[must_use]
    pub fn story(&self) -> String {
        let seen = self.shared.seen();
        let mut story = format!("fault proxy {}: {:?}\n", self.address, seen.counts);
        for (at, line) in &seen.story {
            let seconds = at.duration_since(self.shared.begun).as_secs_f64();
            story.push_str(&format!("{seconds:9.3} {line}\n"));
        }
        story
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its thread has been printed.
            drop(thread.join());
        }
    }
}

/// Listens while the orders say so; connections are served by tasks of their own.
async fn listen_when_told(
    shared: &Arc<Shared>,
    listener: StdListener,
    address: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    listening: &watch::Sender<Listening>,
) {
    let mut listener = match TcpListener::from_std(listener) {
        Ok(listener) => Some(listener),
        Err(error) => {
            listening.send_replace(Listening::Failed(error.to_string()));
            return;
        }
    };
    loop {
        let wanted = orders.borrow_and_update().listens;
        match (&listener, wanted) {
            (Some(_), false) => {
                listener = None;
                listening.send_replace(Listening::No);
            }
            (None, true) => match TcpListener::bind(address).await {
                Ok(again) => {
                    // Without it the proxy only queues more than it says.
                    let _ = set_socket_recv_buffer_size(&again, RECEIVE_BYTES);
                    listener = Some(again);
                    listening.send_replace(Listening::Yes);
                }
                Err(error) => {
                    listening.send_replace(Listening::Failed(error.to_string()));
                    return;
                }
            },
            _ => {}
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            accepted = accepted => if let Ok((client, _)) = accepted {
                let (number, cut) = {
                    let mut seen = shared.seen();
                    seen.counts.accepted += 1;
                    seen.counts.open += 1;
                    let number = seen.counts.accepted;
                    (number, seen.schedule.as_mut().and_then(|schedule| schedule(number)))
                };
                tokio::spawn(serve(Arc::clone(shared), client, number, cut));
            },
        }
    }
}

/// Serves one connection to its end.
async fn serve(shared: Arc<Shared>, client: TcpStream, number: u64, cut: Option<CutAfter>) {
    match connect(shared.target).await {
        Ok(server) => {
            let ended = pump::pump(&shared, &client, &server, number, cut).await;
            if ended.was_cut {
                shared.seen().counts.cut += 1;
            }
            if ended.reset {
                pump::reset_when_dropped(&client);
                pump::reset_when_dropped(&server);
            }
            shared.note(format!("connection {number} ended: {}", ended.why));
        }
        Err(error) => {
            shared.seen().counts.unreachable += 1;
            shared.note(format!("connection {number}: the target: {error}"));
            pump::reset_when_dropped(&client);
        }
    }
    shared.seen().counts.open -= 1;
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    set_socket_recv_buffer_size(&socket, RECEIVE_BYTES)?;
    socket.connect(target).await
}
