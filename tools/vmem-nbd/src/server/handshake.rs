// SPDX-License-Identifier: GPL-2.0-or-later
//! The server's side of the fixed newstyle handshake.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Export, Protect};
use crate::link::Link;
use crate::wire::{
    ALLOCATION, FIXED_NEWSTYLE, MAX_OPTION, MAX_PAYLOAD, NBD_MAGIC, NO_ZEROES, OPTION_MAGIC, Parser, flag, info, option,
    option_reply, reply, string,
};

/// The most options of a client. Others ask for a handful.
const MAX_OPTIONS: usize = 256;

/// The number of the metadata context.
pub(super) const CONTEXT: u32 = 1;

/// What a client has chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chosen {
    pub(super) export: usize,
    pub(super) structured: bool,
    /// Whether it may ask for extents.
    pub(super) allocation: bool,
}

/// Negotiates with a client, over a connection that is protected before anything else if `protect` is there. Each link that takes the place of the
/// one before is passed to `replace`. [`None`] if the client only wanted to look.
pub(super) fn negotiate(
    mut link: Arc<Link>,
    exports: &[Export],
    protect: Option<&Protect>,
    replace: &dyn Fn(&Arc<Link>),
) -> io::Result<Option<(Arc<Link>, Chosen)>> {
    let deadline = Instant::now() + link.timeout();
    let hello = [
        &NBD_MAGIC.to_be_bytes()[..],
        &OPTION_MAGIC.to_be_bytes(),
        &(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes(),
    ];
    link.write(&hello)?;
    let flags = u32::from_be_bytes(link.read_array()?);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(violation("unknown flags"));
    }
    let mut client = Client {
        exports,
        no_zeroes: flags & u32::from(NO_ZEROES) != 0,
        structured: false,
        allocation_of: None,
        tls: protect.map_or(Tls::None, Tls::Required),
    };
    for _ in 0..MAX_OPTIONS {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let header: [u8; 16] = link.read_array()?;
        let mut parser = Parser(&header);
        let (magic, option, length) = (parser.u64(), parser.u32().unwrap_or(0), parser.u32().unwrap_or(0));
        if magic != Some(OPTION_MAGIC) {
            return Err(violation("an option without its magic number"));
        }
        if length > MAX_OPTION {
            return Err(violation("an option that is too long"));
        }
        let mut data = vec![0; length as usize];
        link.read(&mut data)?;
        match client.reply(option, &data)? {
            Reply::Next(bytes) => link.write(&[&bytes])?,
            Reply::Begin(bytes, chosen) => {
                link.write(&[&bytes])?;
                return Ok(Some((link, chosen)));
            }
            Reply::Protect(bytes, protect) => {
                link.write(&[&bytes])?;
                let left = deadline.saturating_duration_since(Instant::now());
                let socket = protect(link.bare()?, left).map_err(io::Error::other)?;
                link = Arc::new(Link::new(socket, link.timeout())?);
                replace(&link);
            }
            Reply::End(bytes) => {
                link.write(&[&bytes])?;
                return Ok(None);
            }
        }
    }
    Err(violation("too many options"))
}

fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client has sent {what}"))
}

/// What follows an option.
enum Reply<'a> {
    Next(Vec<u8>),
    Protect(Vec<u8>, &'a Protect),
    Begin(Vec<u8>, Chosen),
    End(Vec<u8>),
}

/// Whether a connection is protected.
#[derive(Clone, Copy)]
enum Tls<'a> {
    /// It is not, and need not be.
    None,
    /// It must be before the client learns anything.
    Required(&'a Protect),
    Done,
}

/// What is known of a client so far.
struct Client<'a> {
    exports: &'a [Export],
    no_zeroes: bool,
    structured: bool,
    /// The export that the metadata context was set for.
    allocation_of: Option<usize>,
    tls: Tls<'a>,
}

impl<'a> Client<'a> {
    fn find(&self, name: &str) -> Option<usize> {
        let found = self.exports.iter().position(|export| export.name == name);
        found.or_else(|| (name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    fn chosen(&self, export: usize) -> Chosen {
        Chosen {
            export,
            structured: self.structured,
            allocation: self.structured && self.allocation_of == Some(export),
        }
    }

    /// Size and flags of an export.
    fn description(&self, export: usize) -> Vec<u8> {
        let size = self.exports.get(export).map_or(0, |export| export.size);
        let flags = flag::HAS_FLAGS | flag::READ_ONLY | flag::CAN_MULTI_CONN;
        [&size.to_be_bytes()[..], &flags.to_be_bytes()].concat()
    }

    fn reply(&mut self, option: u32, data: &[u8]) -> io::Result<Reply<'a>> {
        let error = |kind, text: &str| Ok(Reply::Next(option_reply(option, kind, text.as_bytes())));
        let invalid = || error(reply::INVALID, "the option is not as it should be");
        let unknown = || error(reply::UNKNOWN, "no such export");
        match (option, self.tls) {
            (option::STARTTLS, Tls::Required(_) | Tls::Done) if !data.is_empty() => return invalid(),
            (option::STARTTLS, Tls::Done) => return invalid(),
            (option::STARTTLS, Tls::Required(protect)) => {
                self.tls = Tls::Done;
                return Ok(Reply::Protect(option_reply(option, reply::ACK, b""), protect));
            }
            (option::EXPORT_NAME, Tls::Required(_)) => return Err(violation("the name of an export without TLS")),
            (option::ABORT, _) | (_, Tls::None | Tls::Done) => {}
            (_, Tls::Required(_)) => return error(reply::TLS_REQD, "this server is used over TLS only"),
        }
        match option {
            option::EXPORT_NAME => {
                // This option has no errors.
                let name = std::str::from_utf8(data).map_err(|_| violation("a name that is no text"))?;
                let export = self.find(name).ok_or_else(|| violation("the name of no export"))?;
                let mut bytes = self.description(export);
                bytes.resize(bytes.len() + if self.no_zeroes { 0 } else { 124 }, 0);
                Ok(Reply::Begin(bytes, self.chosen(export)))
            }
            option::ABORT => Ok(Reply::End(option_reply(option, reply::ACK, b""))),
            option::LIST if !data.is_empty() => invalid(),
            option::LIST => {
                let servers = self.exports.iter();
                let servers = servers.flat_map(|export| option_reply(option, reply::SERVER, &string(&export.name)));
                Ok(Reply::Next(servers.chain(option_reply(option, reply::ACK, b"")).collect()))
            }
            option::INFO | option::GO => {
                let Some((name, wants_sizes)) = parse_go(data) else {
                    return invalid();
                };
                let Some(export) = self.find(name) else { return unknown() };
                let kind = info::EXPORT.to_be_bytes();
                let mut bytes = option_reply(option, reply::INFO, &[&kind[..], &self.description(export)].concat());
                if wants_sizes {
                    let sizes = [1_u32, 4096, MAX_PAYLOAD].map(u32::to_be_bytes).concat();
                    let kind = info::BLOCK_SIZE.to_be_bytes();
                    bytes.extend(option_reply(option, reply::INFO, &[&kind[..], &sizes].concat()));
                }
                bytes.extend(option_reply(option, reply::ACK, b""));
                match option {
                    option::GO => Ok(Reply::Begin(bytes, self.chosen(export))),
                    _ => Ok(Reply::Next(bytes)),
                }
            }
            option::STRUCTURED_REPLY if !data.is_empty() => invalid(),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                Ok(Reply::Next(option_reply(option, reply::ACK, b"")))
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let sets = option == option::SET_META_CONTEXT;
                if sets {
                    self.allocation_of = None;
                }
                let Some((name, queries)) = parse_contexts(data).filter(|_| self.structured) else {
                    return invalid();
                };
                let Some(export) = self.find(name) else { return unknown() };
                let is_listed = !sets && (queries.is_empty() || queries.contains(&"base:"));
                let mut bytes = Vec::new();
                if is_listed || queries.contains(&ALLOCATION) {
                    if sets {
                        self.allocation_of = Some(export);
                    }
                    let number = if sets { CONTEXT } else { 0 };
                    let context = [&number.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
                    bytes = option_reply(option, reply::META_CONTEXT, &context);
                }
                bytes.extend(option_reply(option, reply::ACK, b""));
                Ok(Reply::Next(bytes))
            }
            _ => error(reply::UNSUP, "this server does not know the option"),
        }
    }
}

/// The name of an export, and whether its block sizes are asked for.
fn parse_go(data: &[u8]) -> Option<(&str, bool)> {
    let mut parser = Parser(data);
    let name = parser.string()?;
    let count = parser.u16()?;
    if parser.0.len() != usize::from(count) * 2 {
        return None;
    }
    let mut wants_sizes = false;
    while let Some(kind) = parser.u16() {
        wants_sizes |= kind == info::BLOCK_SIZE;
    }
    Some((name, wants_sizes))
}

/// The name of an export, and queries. `data` bounds their number.
fn parse_contexts(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut parser = Parser(data);
    let name = parser.string()?;
    let mut queries = Vec::new();
    for _ in 0..parser.u32()? {
        queries.push(parser.string()?);
    }
    parser.0.is_empty().then_some((name, queries))
}
