//! The two directions of one proxied connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{BUFFER_BYTES_MAX, CutAfter, Direction, End, Faults, Flow, Orders, Shared};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Writes of a limited direction a second, so that it flows and does not jump.
const WRITES_PER_SECOND: u32 = 50;
/// A limited direction holds what passes in this part of a second, but at least so many bytes.
const QUEUES_PER_SECOND: u32 = 4;
const QUEUE_BYTES_MIN: usize = 4 * 1024;

/// How a connection ended.
pub(super) struct Ended {
    pub(super) was_cut: bool,
    /// Both sides are to see a reset.
    pub(super) reset: bool,
    pub(super) why: String,
}

impl Ended {
    fn cut(end: End, why: String) -> Self {
        Self {
            was_cut: true,
            reset: end == End::Reset,
            why,
        }
    }
}

/// Lets the drop of this socket send a reset.
pub(super) fn reset_when_dropped(stream: &TcpStream) {
    // A socket that is gone already cannot be reset.
    let _ = set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
}

/// Passes bytes both ways until both have ended, one breaks, or the connection is to be cut.
pub(super) async fn pump(
    shared: &Shared,
    client: &TcpStream,
    server: &TcpStream,
    number: u64,
    cut: Option<CutAfter>,
) -> Ended {
    // The delays are to be those that were asked for.
    for stream in [client, server] {
        if let Err(error) = stream.set_nodelay(true) {
            return broken(&error);
        }
    }
    let mut orders = shared.orders.subscribe();
    let cut_of = |direction| cut.filter(|cut| cut.direction == direction);
    let up = Way::new(shared, number, Direction::Up, cut_of(Direction::Up));
    let down = Way::new(shared, number, Direction::Down, cut_of(Direction::Down));
    let both = async {
        let (mut up, mut down) = (pin!(up.run(client, server)), pin!(down.run(server, client)));
        // The end of one direction leaves the other one alone.
        let (first, second) = tokio::select! {
            ended = &mut up => match ended {
                None => (None, down.await),
                ended => (ended, None),
            },
            ended = &mut down => match ended {
                None => (None, up.await),
                ended => (ended, None),
            },
        };
        first.or(second).unwrap_or_else(|| Ended {
            was_cut: false,
            reset: false,
            why: "closed by both sides".to_owned(),
        })
    };
    tokio::select! {
        ended = both => ended,
        end = cut_by_order(&mut orders, number) => Ended::cut(end, format!("cut by order: {end:?}")),
    }
}

async fn cut_by_order(orders: &mut watch::Receiver<Orders>, number: u64) -> End {
    loop {
        {
            let orders = orders.borrow_and_update();
            if let Some(end) = orders.cut_how
                && number <= orders.cut_up_to
            {
                return end;
            }
        }
        if orders.changed().await.is_err() {
            return End::Reset;
        }
    }
}

fn broken(error: &io::Error) -> Ended {
    Ended {
        was_cut: false,
        reset: true,
        why: format!("broke: {error}"),
    }
}

/// How much may be under way. A slow path has a queue of its own size and not a fast one's, or
/// everything would be seconds old behind it.
fn room_bytes(faults: Faults) -> usize {
    faults.bytes_per_second.map_or(BUFFER_BYTES_MAX, |rate| {
        let queue = usize::try_from(rate.get() / QUEUES_PER_SECOND).unwrap_or(BUFFER_BYTES_MAX);
        queue.clamp(QUEUE_BYTES_MIN, BUFFER_BYTES_MAX)
    })
}

/// One direction.
struct Way<'a> {
    shared: &'a Shared,
    orders: watch::Receiver<Orders>,
    number: u64,
    direction: Direction,
    cut: Option<CutAfter>,
    /// Bytes on their way, with the moment at which each piece was taken.
    held: VecDeque<(Instant, Vec<u8>)>,
    held_bytes: usize,
    passed: u64,
    /// When the rate lets the next piece go.
    free_at: Instant,
    /// Something was thrown away, so nothing more can follow.
    lossy: bool,
    /// The sender has ended its side.
    read_all: bool,
    /// The receiver was told so.
    closed: bool,
}

impl<'a> Way<'a> {
    fn new(shared: &'a Shared, number: u64, direction: Direction, cut: Option<CutAfter>) -> Self {
        Self {
            shared,
            orders: shared.orders.subscribe(),
            number,
            direction,
            cut,
            held: VecDeque::new(),
            held_bytes: 0,
            passed: 0,
            free_at: Instant::now(),
            lossy: false,
            read_all: false,
            closed: false,
        }
    }

    /// Runs to the end; `None` when the direction was closed in order and the other may go on.
    async fn run(mut self, from: &TcpStream, to: &TcpStream) -> Option<Ended> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let faults = self.faults();
            if faults.flow == Flow::BlackHole {
                self.lossy |= self.held_bytes > 0;
                self.lose_held();
            }
            if self.closed || self.ends(faults) {
                if !self.closed && !self.lossy {
                    self.closed = true;
                    // The receiver may be gone.
                    let _ = rustix::net::shutdown(to.as_fd(), rustix::net::Shutdown::Write);
                }
                if self.read_all {
                    return None;
                }
            }
            let room = self.held_bytes < room_bytes(faults) && !self.read_all;
            let due = self.due(faults);
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.orders.changed() => if changed.is_err() { return None },
                readable = from.readable(), if room => {
                    match readable.and_then(|()| from.try_read(&mut buffer)) {
                        Ok(0) => self.read_all = true,
                        Ok(count) => self.take(&buffer[..count]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Some(broken(&error)),
                    }
                }
                () = wait => {
                    if let Err(error) = to.writable().await {
                        return Some(broken(&error));
                    }
                    match self.pass(to, faults) {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Some(broken(&error)),
                    }
                    if let Some(cut) = self.cut.filter(|cut| self.passed >= cut.bytes) {
                        let Self { direction, passed, .. } = self;
                        let why = format!("cut after byte {passed} {direction:?}: {:?}", cut.end);
                        return Some(Ended::cut(cut.end, why));
                    }
                }
            }
        }
    }

    fn faults(&mut self) -> Faults {
        let orders = self.orders.borrow_and_update();
        let index = self.direction.index();
        if self.number <= orders.half_closed_up_to[index] {
            self.read_all = true;
        }
        orders.faults[index]
    }

    /// Tells whether the receiver is to be told that nothing follows.
    fn ends(&self, faults: Faults) -> bool {
        self.read_all && self.held.is_empty() && faults.flow == Flow::Open
    }

    fn take(&mut self, bytes: &[u8]) {
        self.held.push_back((Instant::now(), bytes.to_vec()));
        self.held_bytes += bytes.len();
        if self.lossy || self.closed {
            self.lose_held();
            return;
        }
        let mut seen = self.shared.seen();
        let most = seen.counts.held_bytes_max.max(self.held_bytes);
        seen.counts.held_bytes_max = most;
    }

    fn lose_held(&mut self) {
        self.held.clear();
        let lost = std::mem::take(&mut self.held_bytes) as u64;
        self.shared.seen().counts.lost[self.direction.index()] += lost;
    }

    /// When the next piece may go.
    fn due(&self, faults: Faults) -> Option<Instant> {
        let (taken, _) = self.held.front()?;
        (faults.flow == Flow::Open).then(|| (*taken + faults.delay).max(self.free_at))
    }

    /// Sends what may go now, of the first piece.
    fn pass(&mut self, to: &TcpStream, faults: Faults) -> io::Result<()> {
        let Some((taken, mut piece)) = self.held.pop_front() else {
            return Ok(());
        };
        let mut most = piece.len();
        if let Some(rate) = faults.bytes_per_second {
            let share = usize::try_from(rate.get() / WRITES_PER_SECOND).unwrap_or(most);
            most = most.min(share.max(1));
        }
        if let Some(cut) = self.cut {
            let left = usize::try_from(cut.bytes.saturating_sub(self.passed)).unwrap_or(most);
            most = most.min(left);
        }
        let written = to.try_write(&piece[..most]);
        let count = *written.as_ref().unwrap_or(&0);
        piece.drain(..count);
        if !piece.is_empty() {
            self.held.push_front((taken, piece));
        }
        self.held_bytes -= count;
        self.passed += count as u64;
        if let Some(rate) = faults.bytes_per_second {
            let took = Duration::from_secs_f64(count as f64 / f64::from(rate.get()));
            self.free_at = self.free_at.max(Instant::now()) + took;
        }
        self.shared.seen().counts.passed[self.direction.index()] += count as u64;
        written.map(drop)
    }
}
