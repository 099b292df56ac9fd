// SPDX-License-Identifier: GPL-2.0
//! The end that gives orders.

use std::io::{ErrorKind as IoErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmem_lines::{Lines, TooLong};
use vmem_process::Identity;

use crate::backlog::Backlog;
use crate::credentials::{judge_peer, own_user};
use crate::error::Error;
use crate::event::{Event, Status};
use crate::message::{Answer, Call, Duty, LONGEST_REPLY, Message, Reply, Request, VERSIONS, agree, excerpt};
use crate::rounds::Change;
use crate::socket::dial;

/// The number of the first request.
const HELLO: u64 = 1;

/// The most events that wait for [`Client::event`].
const EVENTS: usize = 1024;

/// What a daemon says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The version that is spoken.
    pub version: u32,
    /// The daemon was started for this session; empty if for none.
    pub session: String,
    /// What it does.
    pub duty: Duty,
    /// Which process it is. The kernel has said the same number.
    pub process: Identity,
}

/// What sends requests without waiting for answers. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Caller {
    socket: Arc<UnixStream>,
    next: Arc<AtomicU64>,
}

impl Caller {
    /// Sends a request; returns the number that the answer will have. Waits for nobody.
    ///
    /// # Errors
    ///
    /// The daemon is gone, or has not taken earlier requests.
    pub fn send(&self, request: Request) -> Result<u64, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Call { id, request }).map_err(|error| Error::Io(error.into()))?;
        line.push(b'\n');
        // A request takes a hundred bytes: the kernel takes it as a whole or not at all, as long as others are as short.
        match (&*self.socket).write(&line) {
            Ok(count) if count == line.len() => Ok(id),
            Ok(_) => Err(Error::Io(IoErrorKind::WriteZero.into())),
            Err(error) if matches!(error.kind(), IoErrorKind::BrokenPipe | IoErrorKind::ConnectionReset) => Err(Error::Closed),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

/// What comes on a connection.
#[derive(Debug)]
pub struct Incoming {
    socket: Arc<UnixStream>,
    lines: Lines,
    /// The process that has sent the latest bytes.
    sender: Option<i32>,
    /// The process that has answered HELLO. No other one may send anything afterwards: it may have given the connection away.
    daemon: Option<i32>,
}

impl Incoming {
    /// The next message; waits for it until `deadline`. `None` if there is none.
    ///
    /// # Errors
    ///
    /// No message will come any more.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<Message>, Error> {
        let mut is_late = false;
        loop {
            match self.lines.next() {
                Ok(Some(line)) => return Message::parse(&line).map(Some),
                Err(TooLong(line)) => {
                    return Err(Error::TooLong {
                        longest: LONGEST_REPLY,
                        beginning: excerpt(&line),
                    });
                }
                Ok(None) => {}
            }
            // A peer that sends without a pause does not move the deadline.
            if is_late || !self.receive(deadline)? {
                return Ok(None);
            }
            is_late = Instant::now() > deadline;
        }
    }

    /// Whether bytes have come until `deadline`.
    fn receive(&mut self, deadline: Instant) -> Result<bool, Error> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&*self.socket, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) if message.bytes == 0 => return Err(Error::Closed),
                Ok(message) => {
                    for part in ancillary.drain() {
                        if let RecvAncillaryMessage::ScmCredentials(sender) = part {
                            self.sender = Some(sender.pid.as_raw_nonzero().get());
                        }
                    }
                    if let Some(daemon) = self.daemon {
                        check_sender(self.sender, daemon)?;
                    }
                    self.lines.push(&bytes[..message.bytes]);
                    return Ok(true);
                }
                Err(Errno::AGAIN) => {
                    if !wait(self.socket.as_fd(), deadline)? {
                        return Ok(false);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(Error::Closed),
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
    }
}

/// Whether something can be read until `deadline`.
fn wait(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool, Error> {
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::Io(error.into())),
        }
    }
}

/// A connection on which HELLO has been said and not answered yet: the daemon may not have begun to listen.
#[derive(Debug)]
pub struct Greeting {
    caller: Caller,
    incoming: Incoming,
}

impl Greeting {
    /// Connects to the daemon at `path`, and says HELLO. Waits for nobody.
    ///
    /// # Errors
    ///
    /// Nobody listens there, or a process of another user does.
    pub fn send(path: &Path) -> Result<Self, Error> {
        let socket = Arc::new(dial(path)?);
        judge_peer(&socket, own_user())?;
        let caller = Caller {
            socket: Arc::clone(&socket),
            next: Arc::new(AtomicU64::new(HELLO)),
        };
        let hello = Request::Hello {
            oldest: *VERSIONS.start(),
            latest: *VERSIONS.end(),
        };
        match caller.send(hello) {
            // A daemon that refuses a client has said why before it closes the connection.
            Ok(_) | Err(Error::Closed) => {}
            Err(error) => return Err(error),
        }
        let incoming = Incoming {
            socket,
            lines: Lines::new(LONGEST_REPLY),
            sender: None,
            daemon: None,
        };
        Ok(Self { caller, incoming })
    }

    /// What sends requests. Those that are sent before HELLO is answered are answered after it.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// What the daemon says of itself, if it does so until `deadline`.
    ///
    /// # Errors
    ///
    /// It will not any more; or it is not the process that it says it is.
    pub fn wait(&mut self, deadline: Instant) -> Result<Option<Hello>, Error> {
        loop {
            let reply = match self.incoming.next(deadline)? {
                None => return Ok(None),
                Some(Message::Event(_)) if Instant::now() > deadline => return Ok(None),
                Some(Message::Event(_)) => continue,
                Some(Message::Reply(reply)) => reply,
            };
            return match reply.answer {
                Answer::Hello {
                    version,
                    session,
                    duty,
                    process,
                } => {
                    agree(version, version).ok_or_else(|| Error::Foreign(format!("it answers in version {version}")))?;
                    check_sender(self.incoming.sender, process.pid)?;
                    self.incoming.daemon = Some(process.pid);
                    Ok(Some(Hello {
                        version,
                        session,
                        duty,
                        process,
                    }))
                }
                Answer::Error { kind, text } => Err(Error::Refused { kind, text }),
                other => Err(Error::Foreign(format!("{other:?}"))),
            };
        }
    }

    /// The two directions of the connection, to be used after [`wait`](Self::wait) by different threads.
    #[must_use]
    pub fn into_parts(self) -> (Caller, Incoming) {
        (self.caller, self.incoming)
    }
}

/// A daemon must not have another process ended in its place: the kernel says which one has sent the bytes.
fn check_sender(found: Option<i32>, said: i32) -> Result<(), Error> {
    match found {
        Some(found) if found == said => Ok(()),
        Some(found) => Err(Error::Impostor { said, found }),
        None => Err(Error::Nameless),
    }
}

/// A connection to a daemon, for one thread.
#[derive(Debug)]
pub struct Client {
    hello: Hello,
    caller: Caller,
    incoming: Incoming,
    /// Events that came before answers.
    events: Backlog,
}

impl Client {
    /// Connects to the daemon at `path`, which must answer within `limit`.
    ///
    /// # Errors
    ///
    /// There is none, it does not answer, or it refuses.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let mut greeting = Greeting::send(path)?;
        let hello = greeting.wait(Instant::now() + limit)?.ok_or(Error::TimedOut(limit))?;
        let (caller, incoming) = greeting.into_parts();
        Ok(Self {
            hello,
            caller,
            incoming,
            events: Backlog::new(EVENTS),
        })
    }

    /// What the daemon has said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Sends a request, and waits for its answer. Events that come meanwhile are kept for [`event`](Self::event), the latest
    /// 1024 of them and 4 MiB.
    ///
    /// # Errors
    ///
    /// The daemon refuses ([`Error::Refused`]), does not answer within `limit`, or is gone.
    pub fn call(&mut self, request: Request, limit: Duration) -> Result<Answer, Error> {
        let until = Instant::now() + limit;
        let id = self.caller.send(request)?;
        loop {
            match self.incoming.next(until)?.ok_or(Error::TimedOut(limit))? {
                Message::Event(_) if Instant::now() > until => return Err(Error::TimedOut(limit)),
                Message::Event(event) => self.events.push(event),
                Message::Reply(Reply {
                    id: of,
                    answer: Answer::Error { kind, text },
                }) if of == id || of == 0 => return Err(Error::Refused { kind, text }),
                Message::Reply(Reply { id: of, answer }) if of == id => return Ok(answer),
                // To a request whose answer was not waited for any longer.
                Message::Reply(_) => {}
            }
        }
    }

    /// Where the daemon stands.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn status(&mut self, limit: Duration) -> Result<Status, Error> {
        match self.call(Request::Status, limit)? {
            Answer::Status(status) => Ok(*status),
            other => Err(Error::Foreign(format!("{other:?}"))),
        }
    }

    /// Has it end its hold.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn start(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Start, limit).map(drop)
    }

    /// Has it let the source give back what has been delivered.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn release(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Release, limit).map(drop)
    }

    /// Has a source change how it sends.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn set(&mut self, change: Change, limit: Duration) -> Result<(), Error> {
        self.call(Request::Set(change), limit).map(drop)
    }

    /// Has a vmemctl give its migration up. It ends later, with the event [`Event::End`].
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn abort(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Abort, limit).map(drop)
    }

    /// Has it send events from now on.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn subscribe(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Subscribe, limit).map(drop)
    }

    /// Has it end; when this returns without an error, it has let go of everything.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call); [`Error::Closed`]: it has ended before it could answer.
    pub fn stop(&mut self, limit: Duration) -> Result<(), Error> {
        self.call(Request::Stop, limit).map(drop)
    }

    /// The next event, if there is one until `deadline`.
    ///
    /// # Errors
    ///
    /// No event will come any more.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<Event>, Error> {
        if let Some(event) = self.events.pop() {
            return Ok(Some(event));
        }
        loop {
            match self.incoming.next(deadline)? {
                None => return Ok(None),
                Some(Message::Event(event)) => return Ok(Some(event)),
                Some(Message::Reply(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};
    use std::thread;

    use super::*;
    use crate::event::Region;
    use crate::message::Answer;
    use crate::socket;
    use vmem_process::Identity;

    const LONG: Duration = Duration::from_secs(20);

    /// A client of a peer that accepts a connection and does this with it.
    fn of_peer(peer: impl FnOnce(UnixStream) + Send + 'static) -> Result<Client, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = socket::bind(&path).expect("a socket");
        thread::spawn(move || peer(listener.accept().expect("a client").0));
        Client::connect(&path, LONG)
    }

    fn hello(mut socket: &UnixStream) {
        let answer = Answer::Hello {
            version: 1,
            session: String::new(),
            duty: Duty::Fetch,
            process: Identity::own().expect("this process"),
        };
        let line = serde_json::to_string(&Reply { id: HELLO, answer }).expect("JSON");
        socket.write_all(format!("{line}\n").as_bytes()).expect("room");
    }

    /// Writes until nobody reads.
    fn flood(mut socket: &UnixStream, bytes: &[u8]) {
        while socket.write_all(bytes).is_ok() {}
    }

    #[test]
    fn peer_that_sends_an_endless_line_ends_the_conversation() {
        let refused = of_peer(|socket| flood(&socket, &[b'x'; 4096]));
        assert!(
            matches!(&refused, Err(Error::TooLong { longest: LONGEST_REPLY, beginning }) if beginning.len() == 80),
            "{refused:?}"
        );
        let mut client = of_peer(|socket| {
            hello(&socket);
            flood(&socket, &[b'x'; 4096]);
        })
        .expect("HELLO");
        let error = client.event(Instant::now() + LONG).expect_err("no event");
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    }

    #[test]
    fn events_that_wait_for_an_answer_are_bounded() {
        let mut client = of_peer(|socket| {
            hello(&socket);
            let regions = vec![
                Region {
                    name: "x".repeat(31),
                    bytes: 0,
                    present_bytes: 0,
                    unreadable_pages: 0,
                    phase: crate::event::Phase::Filling,
                    ..Region::default()
                };
                crate::MAX_REGIONS
            ];
            let source = "host".to_owned();
            let line = serde_json::to_string(&Event::Ready { source, regions }).expect("JSON");
            // 8 MiB, and then no answer.
            let line = format!("{line}\n");
            let mut socket = &socket;
            (0..(8 << 20) / line.len()).for_each(|_| socket.write_all(line.as_bytes()).expect("a reader"));
        })
        .expect("HELLO");
        let unanswered = client.status(LONG);
        assert!(matches!(unanswered, Err(Error::Closed)), "{unanswered:?}");
        let mut kept = 0;
        while let Some(event) = client.events.pop() {
            kept += event.size();
        }
        assert!((1 << 20..5 << 20).contains(&kept), "{kept}");
    }

    #[test]
    fn other_process_to_which_the_daemon_has_given_the_connection_is_refused() {
        let mut client = of_peer(|socket| {
            hello(&socket);
            let mut other = Command::new("sh");
            other.args(["-c", "echo '{\"event\":\"end\",\"exit_code\":0,\"error\":null}'"]);
            other.stdout(Stdio::from(OwnedFd::from(socket)));
            other.status().expect("a process");
        })
        .expect("HELLO");
        let refused = client.event(Instant::now() + LONG);
        assert!(matches!(refused, Err(Error::Impostor { .. })), "{refused:?}");
    }

    #[test]
    fn sender_must_be_the_process_that_it_says_it_is() {
        check_sender(Some(7), 7).expect("it is");
        assert!(matches!(check_sender(Some(7), 8), Err(Error::Impostor { said: 8, found: 7 })));
        assert!(matches!(check_sender(None, 8), Err(Error::Nameless)));
    }
}
