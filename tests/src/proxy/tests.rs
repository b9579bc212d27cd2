use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::{BUFFER_BYTES_MAX, CutAfter, Direction, End, Faults, Flow, Proxy};
use crate::wait::{SOON, until_true};

const QUIET: Duration = Duration::from_millis(150);

/// A connection through a proxy, seen from both sides.
struct Pair {
    proxy: Proxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (client, server) = open(&proxy, &listener);
        Self {
            proxy,
            listener,
            client,
            server,
        }
    }
}

fn open(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (client, server)
}

fn hears(stream: &mut TcpStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, expected);
}

fn hears_nothing(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    stream.set_read_timeout(Some(SOON)).unwrap();
}

#[test]
fn without_faults_bytes_and_ends_pass_both_ways() {
    let mut pair = Pair::new();
    pair.client.write_all(b"there").unwrap();
    hears(&mut pair.server, b"there");
    pair.server.write_all(b"back").unwrap();
    hears(&mut pair.client, b"back");
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(pair.server.read(&mut [0; 1]).unwrap(), 0);
    pair.server.write_all(b"more").unwrap();
    hears(&mut pair.client, b"more");
    drop(pair.server);
    assert_eq!(pair.client.read(&mut [0; 1]).unwrap(), 0);
    until_true("the connection is over", SOON, || {
        Ok(pair.proxy.counts().open == 0)
    })
    .unwrap();
    let counts = pair.proxy.counts();
    assert_eq!((counts.accepted, counts.cut), (1, 0));
    assert_eq!((counts.passed, counts.lost), ([5, 8], [0, 0]));
}

#[test]
fn a_delay_holds_for_its_direction_only() {
    let mut pair = Pair::new();
    let delay = Duration::from_millis(200);
    pair.proxy.set(
        Direction::Up,
        Faults {
            delay,
            ..Faults::NONE
        },
    );
    let begun = Instant::now();
    pair.client.write_all(b"slow").unwrap();
    pair.server.write_all(b"quick").unwrap();
    hears(&mut pair.client, b"quick");
    assert!(begun.elapsed() < delay, "{:?}", begun.elapsed());
    hears(&mut pair.server, b"slow");
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
}

#[test]
fn a_stall_keeps_everything_in_order_and_lets_the_other_direction_pass() {
    let mut pair = Pair::new();
    pair.proxy.set(Direction::Down, Faults::STALLED);
    pair.server.write_all(b"one ").unwrap();
    hears_nothing(&mut pair.client);
    pair.client.write_all(b"heard").unwrap();
    hears(&mut pair.server, b"heard");
    pair.server.write_all(b"two").unwrap();
    pair.proxy.heal();
    hears(&mut pair.client, b"one two");
}

#[test]
fn what_a_stall_holds_back_is_bounded() {
    let mut pair = Pair::new();
    pair.proxy.set(Direction::Up, Faults::STALLED);
    pair.client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let begun = Instant::now();
    // Until it takes nothing more for a while.
    while begun.elapsed() < Duration::from_secs(1) {
        match pair.client.write(&[7; 64 * 1024]) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 64 << 20, "no bound");
    }
    let held = pair.proxy.counts().held_bytes_max;
    assert!(held < 2 * BUFFER_BYTES_MAX, "{held}");
    assert!(held >= BUFFER_BYTES_MAX, "{held}");
}

#[test]
fn a_black_hole_swallows_and_the_connection_never_recovers() {
    let mut pair = Pair::new();
    pair.proxy.set(Direction::Up, Faults::BLACK_HOLE);
    pair.client.write_all(b"lost").unwrap();
    until_true("it is swallowed", SOON, || {
        Ok(pair.proxy.counts().lost == [4, 0])
    })
    .unwrap();
    pair.proxy.heal();
    pair.client.write_all(b"too late").unwrap();
    hears_nothing(&mut pair.server);
    pair.server.write_all(b"still").unwrap();
    hears(&mut pair.client, b"still");
    let (mut client, mut server) = open(&pair.proxy, &pair.listener);
    client.write_all(b"new").unwrap();
    hears(&mut server, b"new");
}

#[test]
fn a_cut_is_seen_by_both_sides_as_what_it_is() {
    let mut pair = Pair::new();
    pair.client.write_all(b"x").unwrap();
    hears(&mut pair.server, b"x");
    pair.proxy.cut(End::Reset);
    for stream in [&mut pair.client, &mut pair.server] {
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let (mut client, mut server) = open(&pair.proxy, &pair.listener);
    client.write_all(b"new").unwrap();
    hears(&mut server, b"new");
    pair.proxy.cut(End::Finish);
    for stream in [&mut client, &mut server] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!(pair.proxy.counts().cut, 2);
}

#[test]
fn a_scheduled_cut_comes_at_its_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    proxy.schedule(Some(Box::new(|number| {
        (number == 1).then_some(CutAfter {
            direction: Direction::Up,
            bytes: 3,
            end: End::Finish,
        })
    })));
    let (mut client, mut server) = open(&proxy, &listener);
    client.write_all(b"abcdef").unwrap();
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"abc");
    let (mut client, mut server) = open(&proxy, &listener);
    client.write_all(b"abcdef").unwrap();
    hears(&mut server, b"abcdef");
}

#[test]
fn a_half_close_ends_one_direction() {
    let mut pair = Pair::new();
    pair.client.write_all(b"last").unwrap();
    hears(&mut pair.server, b"last");
    pair.proxy.half_close(Direction::Up);
    assert_eq!(pair.server.read(&mut [0; 1]).unwrap(), 0);
    pair.server.write_all(b"on").unwrap();
    hears(&mut pair.client, b"on");
}

#[test]
fn a_limited_direction_is_as_slow_as_that() {
    let mut pair = Pair::new();
    let bytes_per_second = NonZeroU32::new(20_000);
    pair.proxy.set(
        Direction::Up,
        Faults {
            bytes_per_second,
            ..Faults::NONE
        },
    );
    let begun = Instant::now();
    let sent = vec![9; 10_000];
    pair.client.write_all(&sent).unwrap();
    hears(&mut pair.server, &sent);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(450), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_refused_port_comes_back() {
    let mut pair = Pair::new();
    pair.proxy.refuse().unwrap();
    let error = TcpStream::connect(pair.proxy.address()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    // Open connections go on.
    pair.client.write_all(b"on").unwrap();
    hears(&mut pair.server, b"on");
    pair.proxy.accept().unwrap();
    let (mut client, mut server) = open(&pair.proxy, &pair.listener);
    client.write_all(b"new").unwrap();
    hears(&mut server, b"new");
}

#[test]
fn an_unreachable_target_is_counted_and_closes_the_connection() {
    let gone: SocketAddr = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = Proxy::start(gone).unwrap();
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    assert!(client.read(&mut [0; 1]).is_err());
    until_true(
        "it is counted",
        SOON,
        || Ok(proxy.counts().unreachable == 1),
    )
    .unwrap();
    assert!(proxy.story().contains("the target"), "{}", proxy.story());
    assert_eq!(Faults::default().flow, Flow::Open);
}
