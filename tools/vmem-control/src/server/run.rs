// SPDX-License-Identifier: GPL-2.0-or-later
//! The server's thread.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Connection, Heard};
use super::{About, Later, Publisher, Service, WAITING, lock};
use crate::backlog::Backlog;
use crate::credentials::judge_peer;
use crate::error::ErrorKind;
use crate::message::{Answer, Call, Duty, Request, VERSIONS, agree};

/// Clients at a time.
pub(super) const CLIENTS: usize = 8;

/// How long a client may take to say HELLO.
const HELLO: Duration = Duration::from_secs(10);

/// How often it is looked whether a time limit is over.
const TICK: Duration = Duration::from_millis(250);

/// What waits for clients and for the daemon.
pub(super) struct Run<S> {
    listener: UnixListener,
    woken: UnixStream,
    publisher: Publisher,
    about: About,
    service: S,
    clients: Vec<Connection>,
    /// The number of the next client.
    next: u64,
    attendance: Attendance,
    finish: Option<bool>,
}

/// Whether somebody is there who may give orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attendance {
    /// Nobody has been yet; somebody has to come until then.
    Expected(Option<Instant>),
    Present,
    /// The daemon knows that nobody is there any more.
    Gone,
}

impl<S: Service> Run<S> {
    pub(super) fn new(listener: UnixListener, woken: UnixStream, publisher: Publisher, about: About, service: S) -> Self {
        let until = about.first_client.map(|limit| Instant::now() + limit);
        Self {
            listener,
            woken,
            publisher,
            about,
            service,
            clients: Vec::new(),
            next: 0,
            attendance: Attendance::Expected(until),
            finish: None,
        }
    }

    /// Until the daemon ends, and the clients know it.
    pub(super) fn run(mut self) {
        loop {
            let Ok((woken, comes, ready)) = self.wait() else { return };
            if woken {
                self.take_events();
            }
            self.attend(&ready);
            if comes {
                self.accept();
            }
            self.look_after();
            if self.finish.is_some() && self.clients.iter().all(|client| !client.writes()) {
                return;
            }
        }
    }

    /// Waits until something happens: whether the daemon has something, whether a client comes, and for each client whether it can be
    /// read from.
    fn wait(&self) -> io::Result<(bool, bool, Vec<bool>)> {
        let mut fds = vec![
            PollFd::new(&self.woken, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for client in &self.clients {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, client.reads());
            wanted.set(PollFlags::OUT, client.writes());
            fds.push(PollFd::new(client, wanted));
        }
        let timeout = self.has_limit().then(|| Timespec::try_from(TICK).ok()).flatten();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let clients = happened.iter().skip(2).map(|flags| !flags.is_empty()).collect();
        let is = |at: usize| happened.get(at).is_some_and(|flags| !flags.is_empty());
        Ok((is(0), is(1), clients))
    }

    /// Whether something is due at some time though nothing happens.
    fn has_limit(&self) -> bool {
        matches!(self.attendance, Attendance::Expected(Some(_))) || self.clients.iter().any(|client| !client.greeted)
    }

    /// Passes on what the daemon says.
    fn take_events(&mut self) {
        while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
        let (mut events, answers) = {
            let mut shared = lock(&self.publisher.shared);
            self.finish = shared.finish;
            let events = std::mem::replace(&mut shared.events, Backlog::new(WAITING));
            (events, std::mem::take(&mut shared.answers))
        };
        for (number, id, result) in answers {
            let asked = self.clients.iter_mut().filter(|client| client.number == number);
            asked.for_each(|client| Self::result(client, id, result.clone()));
        }
        while let Some(event) = events.pop() {
            self.clients.iter_mut().for_each(|client| client.event(&event));
        }
        if let Some(has_let_go) = self.finish {
            for client in &mut self.clients {
                if let Some(id) = client.stop.take().filter(|_| has_let_go) {
                    client.answer(id, Answer::Stopped);
                }
            }
        }
    }

    fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => return,
            // No descriptors, most likely. Clients that are there wait for a moment, and not for ever.
            Err(_) => return thread::sleep(TICK),
        };
        let judged = judge_peer(&socket, self.about.owner);
        self.next += 1;
        let Ok(mut client) = Connection::new(socket, self.next) else {
            return;
        };
        if let Err(error) = judged {
            client.refuse(0, ErrorKind::NotAllowed, error.to_string());
            // If it takes it.
            client.send();
        } else if self.make_room() {
            self.clients.push(client);
        } else {
            client.refuse(0, ErrorKind::Busy, format!("there are {CLIENTS} clients"));
            client.send();
        }
    }

    /// Whether there is room for another client. One that has not said HELLO goes, or one that takes nothing.
    fn make_room(&mut self) -> bool {
        if self.clients.len() < CLIENTS {
            return true;
        }
        let oldest = |is: fn(&Connection) -> bool| {
            let candidates = self.clients.iter().enumerate().filter(|(_, client)| is(client));
            candidates.min_by_key(|(_, client)| client.since).map(|(at, _)| at)
        };
        let goes = oldest(|client| !client.greeted).or_else(|| oldest(Connection::is_stalled));
        goes.map(|at| self.clients.remove(at)).is_some()
    }

    /// Does what those want who have sent something.
    fn attend(&mut self, ready: &[bool]) {
        let mut is_ready = ready.iter().copied();
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| {
            let is_ready = is_ready.next().unwrap_or(false);
            let is_there = !is_ready || !client.reads() || client.receive();
            // What has come already is obeyed as soon as there is room for the answers.
            loop {
                let had_room = client.reads();
                let mut is_idle = true;
                while let Some(heard) = client.next() {
                    is_idle = false;
                    self.obey(client, heard);
                }
                if !client.send() {
                    return false;
                }
                // If its answers have just made room, what has come already is obeyed: nothing else may come and wake this thread.
                if is_idle && (had_room || !client.reads()) {
                    break;
                }
            }
            is_there && (!client.closing || client.writes())
        });
        self.clients = clients;
    }

    fn obey(&mut self, client: &mut Connection, heard: Heard) {
        let Call { id, request } = match heard {
            Heard::Call(call) => call,
            Heard::Garbage => return client.refuse(0, ErrorKind::Malformed, "this line is no request"),
            Heard::TooLong => return client.refuse(0, ErrorKind::TooLong, "a request is not so long"),
        };
        match request {
            Request::Hello { oldest, latest } => self.greet(client, id, (oldest, latest)),
            Request::Unknown => {
                let text = format!("this {} does not know such a request", self.about.duty.program());
                client.refuse(id, ErrorKind::UnknownRequest, text);
            }
            _ if !client.greeted => client.refuse(id, ErrorKind::NoHello, "hello comes first"),
            Request::Status => {
                let status = lock(&self.publisher.shared).status();
                client.answer(id, Answer::Status(Box::new(status)));
            }
            Request::Subscribe => {
                client.subscribed = true;
                client.answer(id, Answer::Done);
            }
            Request::Start => Self::result(client, id, self.service.start()),
            Request::Finish => Self::result(client, id, self.service.finish()),
            Request::Release => Self::result(client, id, self.service.release()),
            Request::Set(change) => self.service.set(change, Later::new(&self.publisher, client.number, id)),
            Request::Abort => Self::result(client, id, self.service.abort()),
            // It would be answered only when the migration has ended.
            Request::Stop if self.about.duty == Duty::Migrate => {
                client.refuse(id, ErrorKind::Refused, "a migration is given up with the request abort");
            }
            Request::Stop => match self.finish {
                Some(true) => client.answer(id, Answer::Stopped),
                Some(false) => {}
                None => {
                    client.stop = Some(id);
                    self.service.stop();
                }
            },
        }
    }

    fn result(client: &mut Connection, id: u64, result: Result<(), super::Refusal>) {
        match result {
            Ok(()) => client.answer(id, Answer::Done),
            Err(super::Refusal(text)) => client.refuse(id, ErrorKind::Refused, text),
        }
    }

    fn greet(&self, client: &mut Connection, id: u64, (oldest, latest): (u32, u32)) {
        let Some(version) = agree(oldest, latest) else {
            let (first, last) = VERSIONS.into_inner();
            let program = self.about.duty.program();
            let text = format!("this {program} speaks versions {first} to {last}, and not one of {oldest} to {latest}");
            client.refuse(id, ErrorKind::Version, text);
            client.closing = true;
            return;
        };
        client.greeted = true;
        client.answer(
            id,
            Answer::Hello {
                version,
                session: self.about.session.clone(),
                duty: self.about.duty,
                process: self.about.process.clone(),
            },
        );
    }

    /// Ends connections that have not greeted in time, and tells the daemon when nobody is there any more.
    fn look_after(&mut self) {
        self.clients
            .retain(|client| client.greeted || client.closing || client.since.elapsed() < HELLO);
        if self.clients.iter().any(|client| client.greeted) {
            self.attendance = Attendance::Present;
            return;
        }
        let is_over = match self.attendance {
            Attendance::Present => true,
            Attendance::Expected(until) => until.is_some_and(|until| Instant::now() >= until),
            Attendance::Gone => false,
        };
        if is_over {
            self.attendance = Attendance::Gone;
            self.service.abandoned();
        }
    }
}
