// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl listen`: receives guests until it is told to end.
//!
//! This process only accepts connections. Each connection gets a process of its own, which inherits it, and does what `vmemctl receive`
//! does. So the end of this process, whatever its cause, ends no move, and the next `listen` accepts further connections of moves that go on:
//! the process of such a connection hands it over to the process that receives the guest.

mod conversation;
mod place;
mod service;
mod template;

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem_cli::Signals;

use crate::error::{Cause, Error};
use crate::handover;
use crate::network::Security;
use crate::options::{Common, Listen};
use crate::receive::pending::{PendingConnections, PendingSlot};
use crate::report::Report;

/// How often `listen` looks whether a signal was received.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How many connections may be without an accepted offer. A new one replaces the one that has waited longest.
const PLACES: usize = 16;

/// How long `listen` pauses after a connection could not be accepted: this host most likely lacks descriptors or memory.
const PAUSE: Duration = Duration::from_millis(500);

/// Accepts connections until a signal is received. Guests that are on their way arrive nevertheless.
pub fn run(cli: &Common, args: &Listen) -> Result<(), Error> {
    let signals = Signals::catch().map_err(Cause::call("cannot catch signals"))?;
    let mut report = Report::new(cli.json);
    if args.conversation {
        return conversation::run(cli, args, &mut report, &signals);
    }
    template::check(&args.template)?;
    let security = Security::new(cli)?;
    let listener = open(&security, args)?;
    let address = listener
        .local_addr()
        .map_err(Cause::call("cannot get the address of the listening socket"))?;
    report.note(&format!("listening on {address} for guests, {} at a time", args.most));
    service::notify("READY=1");
    let pending = PendingConnections::new(PLACES);
    while signals.check().is_ok() {
        if let Err(error) = accept(&listener, &pending) {
            tracing::warn!("a connection cannot be taken: {error}");
            thread::sleep(PAUSE);
        }
    }
    service::notify("STOPPING=1");
    report.note("no more guests are accepted; those on their way arrive nevertheless");
    Ok(())
}

/// The listening socket: the one that systemd has passed on, or a new one.
fn open(security: &Security, args: &Listen) -> Result<TcpListener, Cause> {
    let listener = match service::socket() {
        None => security.listen(args.listen)?,
        Some(listener) => {
            let address = listener.local_addr();
            security.check(address.map_err(Cause::call("standard input is a listening socket, but not of TCP"))?)?;
            listener
        }
    };
    // A peer may reset its connection between `poll` and `accept`.
    listener
        .set_nonblocking(true)
        .map_err(Cause::call("cannot set up the listening socket"))?;
    Ok(listener)
}

/// Accepts a connection, if there is one, and starts its process.
fn accept(listener: &TcpListener, pending: &PendingConnections) -> io::Result<()> {
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&POLL_INTERVAL)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
        result => result?,
    };
    let stream = match listener.accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        accepted => accepted?.0,
    };
    // Accepted sockets do not inherit O_NONBLOCK on Linux.
    let slot = pending.enter(&stream)?;
    let (child, connection) = start(&stream)?;
    thread::Builder::new()
        .name("conversation".to_owned())
        .spawn(move || attend(child, connection, slot))?;
    Ok(())
}

/// Starts this program again, for one connection. Returns the socket that it closes when the source has offered a guest.
fn start(stream: &TcpStream) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    // After an upgrade, this is still the program that the options are for.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("vmemctl")
        .args(std::env::args_os().skip(1))
        .arg("--conversation");
    service::hide_from(&mut command);
    // A signal of the terminal is for this process only.
    command.process_group(0).stdin(Stdio::from(OwnedFd::from(theirs)));
    let child = command.spawn()?;
    handover::send(&ours, stream, b"connection")?;
    Ok((child, ours))
}

/// Frees the slot when the connection is not pending any more, and waits for the end of its process.
fn attend(mut child: Child, mut connection: UnixStream, slot: PendingSlot) {
    // The process sends nothing. An error ends the waiting as the end of the stream does.
    let _ = connection.read(&mut [0]);
    drop(slot);
    let _ = child.wait();
}
