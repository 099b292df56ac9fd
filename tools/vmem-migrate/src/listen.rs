// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemctl listen`: receives guests until it is told to end.
//!
//! This process only accepts connections. Each connection gets a process of its own, and that does what `vmemctl receive` does. So the end of
//! this process, whatever its cause, ends no move, and the next `listen` accepts further connections of moves that go on: the process of
//! such a connection hands it over to the process that receives the guest.

mod conversation;
mod passed_on;
mod place;
mod template;

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmem_cli::Signals;
use vmem_process::printable;
use vmem_service::Service;
use vmem_wait::MessageLimit;

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

/// How many connections may be without a greeting. A new one replaces the one that has waited longest.
const STRANGERS: usize = 16;

/// How many greeted connections may be without an accepted offer, at least.
const SOURCES: usize = 16;

/// What the process of a connection sends once its source has sent a greeting. Anything else that it sends is why there is no guest.
const GREETED: u8 = 0;

/// The longest of these reasons, in bytes.
const LONGEST_REASON: usize = 4096;

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
    let service = Service::of_this_process();
    service.ready();
    let door = Door::new(args.most);
    while signals.check().is_ok() {
        if let Err(error) = door.accept(&listener) {
            say(&format!("a connection cannot be taken: {error}"));
            thread::sleep(PAUSE);
        }
    }
    service.stopping();
    report.note("no more guests are accepted; those on their way arrive nevertheless");
    Ok(())
}

/// The listening socket: the one that systemd has passed on, or a new one.
fn open(security: &Security, args: &Listen) -> Result<TcpListener, Cause> {
    let listener = match passed_on::listener() {
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

/// The connections that have not led to a guest yet.
#[derive(Clone)]
struct Door {
    strangers: PendingConnections,
    sources: PendingConnections,
    /// The processes of these connections. One whose connection was replaced counts until it has ended.
    processes: Arc<AtomicUsize>,
    most_processes: usize,
}

impl Door {
    /// For so many guests that are on their way.
    fn new(most: u16) -> Self {
        let sources = SOURCES.max(most.into());
        Self {
            strangers: PendingConnections::new(STRANGERS),
            sources: PendingConnections::new(sources),
            processes: Arc::default(),
            most_processes: 2 * (STRANGERS + sources),
        }
    }

    /// Accepts a connection, if there is one, and starts its process in a thread.
    fn accept(&self, listener: &TcpListener) -> io::Result<()> {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&POLL_INTERVAL)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            result => result?,
        };
        if self.processes.load(Ordering::Relaxed) >= self.most_processes {
            // Those that were replaced end soon.
            thread::sleep(Duration::from_millis(10));
            return Ok(());
        }
        let stream = match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // Accepted sockets do not inherit O_NONBLOCK on Linux.
            accepted => accepted?.0,
        };
        let slot = self.strangers.enter(&stream)?;
        let process = Counted::new(&self.processes);
        let door = self.clone();
        let thread = thread::Builder::new().name("conversation".to_owned());
        thread.spawn(move || {
            if let Err(error) = door.attend(stream, slot, process) {
                say(&format!("a connection cannot be taken: {error}"));
            }
        })?;
        Ok(())
    }

    /// Starts the process of a connection, and waits for its end. The connection is pending until the process closes its end of the socket.
    fn attend(&self, stream: TcpStream, stranger: PendingSlot, process: Counted) -> io::Result<()> {
        let (mut child, connection) = start()?;
        let sent = handover::send(&connection, &stream, b"connection");
        if sent.is_err() {
            let _ = child.kill();
        }
        let mut slot = stranger;
        let mut why = Vec::new();
        for byte in connection.bytes().map_while(Result::ok).take(LONGEST_REASON) {
            match byte {
                // Assigning frees the place among strangers. A connection that cannot be entered keeps that place.
                GREETED => slot = self.sources.enter(&stream).unwrap_or(slot),
                byte => why.push(byte),
            }
        }
        drop((stream, slot, process));
        if !why.is_empty() {
            say(&printable(&String::from_utf8_lossy(&why)));
        }
        child.wait()?;
        sent
    }
}

/// A process that counts until this is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts this program again, for one connection. Returns the socket at which it gets the connection, and says how far it is.
fn start() -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    // After an upgrade, this is still the program that the options are for.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("vmemctl")
        .args(std::env::args_os().skip(1))
        .arg("--conversation");
    vmem_service::hide_from(&mut command);
    // A signal of the terminal is for this process only.
    command.process_group(0).stdin(Stdio::from(OwnedFd::from(theirs)));
    Ok((command.spawn()?, ours))
}

/// Says what anybody can cause who can connect.
fn say(line: &str) {
    static STRANGERS: MessageLimit = MessageLimit::new();
    if let Some(line) = STRANGERS.pass(line) {
        tracing::info!("{line}");
    }
}
