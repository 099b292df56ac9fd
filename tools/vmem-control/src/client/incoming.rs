// SPDX-License-Identifier: GPL-2.0-or-later
//! What comes on a connection, and from which process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmem_lines::{Lines, TooLong};

use crate::error::Error;
use crate::message::{LONGEST_REPLY, Message, excerpt};

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
    /// On this connection, on which nothing has come yet.
    pub(super) fn new(socket: Arc<UnixStream>) -> Self {
        Self {
            socket,
            lines: Lines::new(LONGEST_REPLY),
            sender: None,
            daemon: None,
        }
    }

    /// Takes the process that has said that it is the daemon for it, if it has sent the latest bytes.
    pub(super) fn expect(&mut self, daemon: i32) -> Result<(), Error> {
        check_sender(self.sender, daemon)?;
        self.daemon = Some(daemon);
        Ok(())
    }

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

/// A daemon must not have another process ended in its place: the kernel says which one has sent the bytes.
fn check_sender(found: Option<i32>, said: i32) -> Result<(), Error> {
    match found {
        Some(found) if found == said => Ok(()),
        Some(found) => Err(Error::Impostor { said, found }),
        None => Err(Error::Nameless),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_must_be_the_process_that_it_says_it_is() {
        check_sender(Some(7), 7).expect("it is");
        assert!(matches!(check_sender(Some(7), 8), Err(Error::Impostor { said: 8, found: 7 })));
        assert!(matches!(check_sender(None, 8), Err(Error::Nameless)));
    }
}
