// SPDX-License-Identifier: GPL-2.0-or-later
//! The beginning of a connection: HELLO, and what the daemon says of itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmem_process::Identity;

use super::caller::Caller;
use super::incoming::Incoming;
use crate::credentials::{judge_peer, own_user};
use crate::error::Error;
use crate::message::{Answer, Duty, Message, Request, VERSIONS, agree};
use crate::socket::dial;

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
        let caller = Caller::new(Arc::clone(&socket));
        let hello = Request::Hello {
            oldest: *VERSIONS.start(),
            latest: *VERSIONS.end(),
        };
        match caller.send(hello) {
            // A daemon that refuses a client has said why before it closes the connection.
            Ok(_) | Err(Error::Closed) => {}
            Err(error) => return Err(error),
        }
        let incoming = Incoming::new(socket);
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
                    self.incoming.expect(process.pid)?;
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
