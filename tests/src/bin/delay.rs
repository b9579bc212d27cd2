//! Delays packets that a packet filter queues: `delay QUEUE MILLISECONDS`.
//!
//! For network namespaces on kernels without netem. Rules such as
//! `iptables -A OUTPUT -o eth0 -j NFQUEUE --queue-num QUEUE` say which packets these are.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nfq::{Queue, Verdict};

/// Packets that wait; the system drops what is more, as a router does.
const PACKETS_MAX: u32 = 4_096;
/// Between two looks: the error of the delay.
const PAUSE: Duration = Duration::from_micros(500);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let number: u16 = arguments.next().context("a queue is missing")?.parse()?;
    let millis: u64 = arguments.next().context("a delay is missing")?.parse()?;
    let delay = Duration::from_millis(millis);
    let mut queue = Queue::open().context("open the packet queues")?;
    queue.bind(number)?;
    queue.set_queue_max_len(number, PACKETS_MAX)?;
    queue.set_nonblocking(true);
    let mut held = VecDeque::new();
    loop {
        match queue.recv() {
            Ok(packet) => {
                held.push_back((Instant::now() + delay, packet));
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // It had to drop some.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {}
            Err(error) => return Err(error).context("take a packet"),
        }
        while held.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            if let Some((_, mut packet)) = held.pop_front() {
                packet.set_verdict(Verdict::Accept);
                queue.verdict(packet).context("let a packet go")?;
            }
        }
        std::thread::sleep(PAUSE);
    }
}
