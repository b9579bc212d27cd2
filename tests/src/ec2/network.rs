//! The network of a machine: nothing but itself, the metadata service, and the coordinator.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How soon a listener notices that it is to end.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A network namespace; removed with its value, after everything in it has ended.
#[derive(Debug)]
pub(super) struct Network {
    name: String,
}

impl Network {
    /// Makes one in which `addresses` are the machine's own.
    pub(super) fn new(addresses: &[Ipv4Addr]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mu{}c{count}", std::process::id());
        run(&["netns", "add", &name])?;
        let network = Self { name };
        let name = network.name.as_str();
        run(&["-n", name, "link", "set", "lo", "up"])?;
        for address in addresses {
            let address = format!("{address}/32");
            run(&["-n", name, "addr", "add", &address, "dev", "lo"])?;
        }
        Ok(network)
    }

    /// Words that let a program use it.
    pub(super) fn words(&self) -> [String; 2] {
        [
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.name),
        ]
    }

    /// Gives what connects to it from outside.
    pub(super) fn dialer(&self) -> Dialer {
        Dialer {
            name: self.name.clone(),
        }
    }

    /// Listens inside of it; what is accepted may be served from outside.
    pub(super) fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        inside(&self.name, move || TcpListener::bind(address))
            .with_context(|| format!("listen at {address} of a machine"))
    }
}

/// Connects to a machine, as long as its network is there.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    name: String,
}

impl Dialer {
    /// Connects to one of its addresses.
    pub(super) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        inside(&self.name, move || TcpStream::connect(address))
    }
}

/// Does something in a network. Sockets stay in the one in which they were made.
fn inside<T: Send + 'static>(
    name: &str,
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = File::open(format!("/run/netns/{name}"))?;
    // Only a thread that ends afterwards may move.
    let made = std::thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        make()
    });
    made.join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

impl Drop for Network {
    fn drop(&mut self) {
        // What cannot be removed now is in use by a process that is about to end.
        let _ = run(&["netns", "del", &self.name]);
    }
}

/// Something that accepts connections until it is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    end: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Hands each connection to `serve`, in a thread of its own.
    pub(super) fn new(
        listener: TcpListener,
        serve: impl Fn(TcpStream) + Clone + Send + 'static,
    ) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let end = Arc::new(AtomicBool::new(false));
        let open = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
        let (ending, opened) = (Arc::clone(&end), Arc::clone(&open));
        let thread = std::thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                let mut wanted = [PollFd::new(&listener, PollFlags::IN)];
                // An interrupted wait is only a shorter one.
                let _ = poll(&mut wanted, Some(&TICK));
                let Ok((stream, _)) = listener.accept() else {
                    continue;
                };
                if stream.set_nonblocking(false).is_err() {
                    continue;
                }
                if let Ok(copy) = stream.try_clone() {
                    opened
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(copy);
                }
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self {
            end,
            open,
            thread: Some(thread),
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.iter() {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Passes a connection on to `to`, until both sides are done.
pub(super) fn forward(from: &TcpStream, to: io::Result<TcpStream>) {
    let Ok(to) = to else {
        // Others hold it open too.
        let _ = from.shutdown(Shutdown::Both);
        return;
    };
    let both = || Some((from.try_clone().ok()?, to.try_clone().ok()?));
    let (Some((mut up, mut up_to)), Some((mut down_to, mut down))) = (both(), both()) else {
        return;
    };
    let back = std::thread::spawn(move || {
        let _ = io::copy(&mut down, &mut down_to);
        let _ = down_to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut up, &mut up_to);
    let _ = up_to.shutdown(Shutdown::Write);
    let _ = back.join();
}

fn run(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}`: {said}", words.join(" "));
    Ok(())
}
