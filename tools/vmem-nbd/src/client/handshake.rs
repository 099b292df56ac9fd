// SPDX-License-Identifier: GPL-2.0-or-later
//! The client's side of the fixed newstyle handshake.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::link::Link;
use crate::wire::{
    ALLOCATION, FIXED_NEWSTYLE, MAX_OPTION, NBD_MAGIC, NO_ZEROES, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Parser, info,
    option, option_message, reply, string,
};

use super::description::Description;
use super::error::{Error, shown, violation};

/// The most replies to one option. Servers send a handful.
const MAX_REPLIES: usize = 64;

/// What protects a connection: takes its socket and a time limit, and returns the socket to use instead, or why there is none.
pub type Protect<'a> = dyn Fn(Socket, Duration) -> Result<Socket, String> + 'a;

/// Chooses an export, and whatever of structured replies and `base:allocation` the server has, over a connection that is protected if `protect` is there.
/// All of it takes one timeout of the link at most. Returns the link to use from then on.
pub(super) fn negotiate(link: Link, export: &str, protect: Option<&Protect<'_>>) -> Result<(Link, Description), Error> {
    let deadline = Instant::now() + link.timeout();
    let flags = Server { link: &link, deadline }.greet()?;
    let link = match protect {
        Some(protect) => start_tls(&link, deadline, protect)?,
        None => link,
    };
    let server = Server { link: &link, deadline };
    let structured = server.ask(option::STRUCTURED_REPLY, b"", &mut |_, _| Ok(()))?.is_none();
    let mut allocation = None;
    if structured {
        let queries = [&string(export)[..], &1_u32.to_be_bytes(), &string(ALLOCATION)].concat();
        let mut take = |kind, data: &[u8]| {
            let mut data = Parser(data);
            if kind == reply::META_CONTEXT {
                let number = data.u32().ok_or_else(|| violation("a metadata context without a number"))?;
                if data.0 == ALLOCATION.as_bytes() {
                    allocation = Some(number);
                }
            }
            Ok(())
        };
        if server.ask(option::SET_META_CONTEXT, &queries, &mut take)?.is_some() {
            allocation = None;
        }
    }
    let mut description = Description::new(structured, allocation);
    server.go(export, flags, &mut description)?;
    Ok((link, description))
}

/// Has the connection protected, or fails: there is no way on in clear text. Of what the server has said before, only the flags of its greeting count on,
/// which say how an old server ends the handshake. Bytes that somebody has put behind its consent are read as TLS, and fail as such.
fn start_tls(link: &Link, deadline: Instant, protect: &Protect<'_>) -> Result<Link, Error> {
    let server = Server { link, deadline };
    if let Some(refusal) = server.ask(option::STARTTLS, b"", &mut |_, _| Ok(()))? {
        return Err(Error::NoTls(refusal.to_string()));
    }
    let local = |error| Error::Io(Arc::new(error));
    let left = deadline.saturating_duration_since(Instant::now());
    let socket = protect(link.bare().map_err(local)?, left).map_err(Error::Tls)?;
    Link::new(socket, link.timeout()).map_err(local)
}

struct Server<'a> {
    link: &'a Link,
    deadline: Instant,
}

/// Takes a reply that is not the last one: its kind, and its data.
type Take<'a> = dyn FnMut(u32, &[u8]) -> Result<(), Error> + 'a;

/// Why a server does not do what an option asks for.
struct Refusal {
    kind: u32,
    text: String,
}

impl Server<'_> {
    fn read<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let read = self.link.read_by(self.deadline, bytes);
        read.map_err(|error| self.error(error))
    }

    fn write(&self, parts: &[&[u8]]) -> Result<(), Error> {
        let written = self.link.write_by(self.deadline, parts);
        written.map_err(|error| self.error(error))
    }

    fn error(&self, error: io::Error) -> Error {
        Error::of("finish the handshake", self.link.timeout())(error)
    }

    /// Exchanges the first words. Returns the flags that hold.
    fn greet(&self) -> Result<u16, Error> {
        let greeting: [u8; 18] = self.read()?;
        let mut parser = Parser(&greeting);
        if parser.u64() != Some(NBD_MAGIC) {
            return Err(violation("its first bytes are not those of an NBD server"));
        }
        match parser.u64() {
            Some(OPTION_MAGIC) => {}
            Some(OLDSTYLE_MAGIC) => return Err(Error::Dialect("the oldstyle handshake")),
            _ => return Err(violation("a greeting of no known kind")),
        }
        let flags = parser.u16().unwrap_or(0);
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(Error::Dialect("a newstyle handshake that is not the fixed one"));
        }
        let flags = flags & (FIXED_NEWSTYLE | NO_ZEROES);
        self.write(&[&u32::from(flags).to_be_bytes()])?;
        Ok(flags)
    }

    /// Sends an option, and takes the replies up to the last one. [`None`] if the server does it.
    fn ask(&self, option: u32, data: &[u8], take: &mut Take<'_>) -> Result<Option<Refusal>, Error> {
        self.write(&[&option_message(option, data)])?;
        for _ in 0..MAX_REPLIES {
            let header: [u8; 20] = self.read()?;
            let mut parser = Parser(&header);
            let (magic, of) = (parser.u64(), parser.u32());
            let (kind, length) = (parser.u32().unwrap_or(0), parser.u32().unwrap_or(0));
            if magic != Some(OPTION_REPLY_MAGIC) {
                return Err(violation("a reply to an option without its magic number"));
            }
            if of != Some(option) {
                return Err(violation(format!("a reply to another option than {option}")));
            }
            if length > MAX_OPTION {
                return Err(violation(format!("a reply of {length} bytes to an option")));
            }
            let mut data = vec![0; length as usize];
            self.read_into(&mut data)?;
            match kind {
                reply::ACK => return Ok(None),
                reply::TLS_REQD => return Err(Error::TlsRequired),
                reply::SHUTDOWN => return Err(Error::ShuttingDown),
                kind if kind & reply::ERROR != 0 => {
                    let text = shown(&data);
                    return Ok(Some(Refusal { kind, text }));
                }
                kind => take(kind, &data)?,
            }
        }
        Err(violation(format!("more than {MAX_REPLIES} replies to an option")))
    }

    /// Ends the handshake with the export.
    fn go(&self, export: &str, flags: u16, description: &mut Description) -> Result<(), Error> {
        let request = [&string(export)[..], &1_u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()].concat();
        let mut has_export = false;
        let mut take = |kind, data: &[u8]| {
            let mut data = Parser(data);
            if kind != reply::INFO {
                return Ok(());
            }
            match data.u16() {
                Some(info::EXPORT) => {
                    let short = || violation("an export without size or flags");
                    description.set_export(data).ok_or_else(short)?;
                    has_export = true;
                }
                Some(info::BLOCK_SIZE) => description.set_block_sizes(data)?,
                _ => {}
            }
            Ok(())
        };
        match self.ask(option::GO, &request, &mut take)? {
            None if has_export => Ok(()),
            None => Err(violation("an export without its size")),
            Some(refusal) if refusal.kind == reply::UNSUP => self.choose_by_name(export, flags, description),
            Some(refusal) => Err(Error::Refused {
                export: export.to_owned(),
                why: refusal.to_string(),
            }),
        }
    }

    /// Ends the handshake as old servers have it. They close the connection if they do not have the export.
    fn choose_by_name(&self, export: &str, flags: u16, description: &mut Description) -> Result<(), Error> {
        self.write(&[&option_message(option::EXPORT_NAME, export.as_bytes())])?;
        let bytes: [u8; 10] = self.read()?;
        if flags & NO_ZEROES == 0 {
            self.read::<124>()?;
        }
        let short = || violation("an export without size or flags");
        description.set_export(Parser(&bytes)).ok_or_else(short)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            reply::UNSUP => f.write_str("it does not have that")?,
            reply::UNKNOWN => f.write_str("it has no such export")?,
            reply::POLICY => f.write_str("its policy forbids it")?,
            reply::INVALID => f.write_str("it does not understand the request")?,
            reply::BLOCK_SIZE_REQD => f.write_str("it wants its block sizes to be obeyed, which it was told they are")?,
            kind => write!(f, "error {:#x}", kind)?,
        }
        match self.text.as_str() {
            "" => Ok(()),
            text => write!(f, " ({text})"),
        }
    }
}
