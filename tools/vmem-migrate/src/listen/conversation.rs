// SPDX-License-Identifier: GPL-2.0-or-later
//! The process of one connection that `listen` has accepted. If the connection offers a guest, this process receives that guest, and then
//! takes the guest's further connections from other such processes.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use socket2::{Domain, SockAddr, Socket, Type};
use vmem_cli::{Signals, chain};
use vmem_process::scope;

use super::place::Place;
use super::{GREETED, template};
use crate::channel::canonical;
use crate::error::{Cause, Error};
use crate::handover;
use crate::message::{FromDestination, Purpose};
use crate::network::{Greeted, Security};
use crate::options::{Common, Listen, Receive};
use crate::receive;
use crate::record::Incoming;
use crate::report::{Report, subject};

/// A connection, and what it is for on this host.
struct Conversation<'a> {
    cli: &'a Common,
    args: &'a Listen,
    signals: &'a Signals,
    /// Who has connected, for messages.
    peer: String,
    /// At which address of this host.
    local: SocketAddr,
    /// `listen` cuts the connection if others come, until this is dropped.
    listen: UnixStream,
}

pub(super) fn run(cli: &Common, args: &Listen, report: &mut Report, signals: &Signals) -> Result<(), Error> {
    // Who was executed as /proc/self/exe is called "exe" otherwise.
    if let Err(error) = fs::write("/proc/self/comm", "vmemctl") {
        tracing::debug!("this process has another name than vmemctl: {error}");
    }
    let (mut listen, stream) = inherited().map_err(Cause::call("this command is run by 'vmemctl listen' only"))?;
    let security = Security::new(cli)?;
    let peer = stream.peer_addr().map(canonical);
    let peer = peer.map_or_else(|_| "a peer that is gone".to_owned(), |peer| peer.to_string());
    let local = stream
        .local_addr()
        .map_err(Cause::call("cannot get the address of a connection"))?;
    let greeted = match security.accept(stream) {
        Ok(greeted) => greeted,
        Err(error) => return tell(listen, &format!("{peer} is refused: {}", chain(&error))),
    };
    // If `listen` has ended, nobody cuts the connection.
    let _ = listen.write_all(&[GREETED]);
    let conversation = Conversation {
        cli,
        args,
        signals,
        peer,
        local,
        listen,
    };
    match greeted.purpose {
        Purpose::Migrate => conversation.take_guest(security, greeted, report),
        Purpose::State | Purpose::Recover => conversation.go_on(security, greeted, report),
    }
}

/// Tells `listen` why the connection has led to no guest. It does not say all that strangers can cause.
fn tell(mut listen: UnixStream, why: &str) -> Result<(), Error> {
    // Without `listen`, nobody wants to know.
    let _ = listen.write_all(why.as_bytes());
    Ok(())
}

/// The socket of `listen`, and the connection that comes through it.
fn inherited() -> io::Result<(UnixStream, TcpStream)> {
    let listen = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (connection, _) = handover::recv(&listen)?;
    // `listen` sees that its socket is closed only if standard input is not a second handle of it.
    rustix::stdio::dup2_stdin(fs::File::open("/dev/null")?)?;
    Ok((listen, TcpStream::from(connection)))
}

impl Conversation<'_> {
    /// Receives the guest that the connection offers.
    fn take_guest(self, security: Security, greeted: Greeted, report: &mut Report) -> Result<(), Error> {
        let Some(arrival) = receive::Arrival::new(security, greeted) else {
            return tell(self.listen, &format!("{} has offered no guest", self.peer));
        };
        let mut place = None;
        let admit = |guest: &str| {
            let receive = template::for_guest(&self.args.template, guest)?;
            place = Some(Place::take(&self.cli.state, guest, self.args.most)?);
            check_socket(&receive, guest)?;
            drop(self.listen);
            prepare_scopes(self.cli);
            Ok(Receive {
                listen: self.local,
                ..receive
            })
        };
        arrival.receive(self.cli, &self.peer, admit, report, self.signals)
    }

    /// Hands a further connection of a guest over to the process that receives the guest. If that process has died, this one goes on with
    /// the move.
    fn go_on(self, security: Security, greeted: Greeted, report: &mut Report) -> Result<(), Error> {
        let failed = || Cause::call(format!("cannot hand over the connection of {}", self.peer));
        if let Some(process) = handover::connect(&self.cli.state, &greeted.session).map_err(failed())? {
            let relay = greeted.relay.clone();
            handover::send_greeted(&process, greeted).map_err(failed())?;
            drop(self.listen);
            if let Some(relay) = relay {
                relay.wait();
            }
            return Ok(());
        }
        let record = Incoming::of_session(&self.cli.state, &greeted.session).map_err(Cause::from)?;
        match record.filter(|_| greeted.purpose == Purpose::Recover) {
            Some(record) => self.resume(record, security, greeted, report),
            None => {
                let reason = "this migration is not known here; 'vmemctl receive --resume' may know it".to_owned();
                // If the source does not receive it, it finds the connection closed.
                let _ = greeted.channel.send(&FromDestination::Refuse { reason });
                tell(
                    self.listen,
                    &format!("{} continues a migration that is not known here", self.peer),
                )
            }
        }
    }

    fn resume(self, record: Incoming, security: Security, greeted: Greeted, report: &mut Report) -> Result<(), Error> {
        let resumable = template::for_resumed(&self.args.template, &record.guest)
            .and_then(|receive| Ok((receive, Place::again(&self.cli.state, &record.guest)?)));
        let (receive, _name) = match resumable {
            Ok(resumable) => resumable,
            Err(cause) => {
                let _ = greeted.channel.send(&FromDestination::Refuse { reason: chain(&cause) });
                return Err(cause.into());
            }
        };
        let receive = Receive {
            qmp: record.qmp,
            listen: self.local,
            resume: true,
            ..receive
        };
        drop(self.listen);
        subject::set(&record.guest, &record.session);
        prepare_scopes(self.cli);
        report.note(&format!(
            "{} continues the move of guest {}, whose process has ended here",
            self.peer, record.guest
        ));
        receive::resume(self.cli, &receive, security, greeted, report, self.signals)
    }
}

/// Refuses a guest whose QEMU is here: a second one would replace its socket. A QEMU that has a client lets others wait, so this does not.
fn check_socket(receive: &Receive, guest: &str) -> Result<(), Cause> {
    let failed = || Cause::call(receive.qmp.display().to_string());
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed())?;
    socket.set_nonblocking(true).map_err(failed())?;
    match socket.connect(&SockAddr::unix(&receive.qmp).map_err(failed())?) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(Cause::other(format!(
            "a QEMU listens at {} already: a guest of the name {guest} is here",
            receive.qmp.display()
        ))),
    }
}

/// The scopes of QEMU and vmemd. They take a while, so no stranger gets as far.
fn prepare_scopes(cli: &Common) {
    if let Some(note) = scope::prepare(!cli.no_scope) {
        tracing::warn!("{note}");
    }
}
