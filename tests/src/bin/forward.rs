//! Forwards a TCP port, as `ssh -L` does: `forward LISTEN TARGET`.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments
        .next()
        .context("an address to listen at is missing")?;
    let target = arguments.next().context("a target is missing")?;
    let listener = TcpListener::bind(&listen).with_context(|| format!("listen at {listen}"))?;
    for client in listener.incoming() {
        let client = client?;
        let target = target.clone();
        std::thread::spawn(move || {
            // A target that is away closes this connection, as a tunnel does.
            drop(forward(client, &target));
        });
    }
    Ok(())
}

fn forward(client: TcpStream, target: &str) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let there = std::thread::spawn(move || copy(from_client, to_server));
    copy(server, client);
    drop(there.join());
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // A broken connection is the end of both directions.
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
