// SPDX-License-Identifier: GPL-2.0-or-later
//! Servers that do what they should, and servers that do not.

mod answers;
mod handshake;
mod noise;
mod server;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::*;
use crate::wire::{
    ALLOCATION, MAX_PAYLOAD, Request, chunk, chunk_header, flag, info, option, option_message, option_reply, reply, string,
};

/// More than any answer of a server on this host takes.
const LONG: Duration = Duration::from_secs(30);
const SIZE: u64 = 1 << 20;
/// The number of the metadata context.
const CONTEXT: u32 = 7;
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

/// A session with a server that runs `script` on its end of the connection.
fn session(timeout: Duration, script: impl FnOnce(UnixStream) + Send + 'static) -> Result<std::sync::Arc<Session>, Error> {
    let (near, far) = UnixStream::pair().expect("sockets");
    thread::spawn(move || script(far));
    Session::open(Socket::from(OwnedFd::from(near)), "ram", timeout, None, || ())
}

/// A server that sends these bytes, whatever it is told, and stays silent after that.
fn says(bytes: Vec<u8>) -> impl FnOnce(UnixStream) + Send + 'static {
    move |mut stream| {
        // The client may have had enough.
        let _ = stream.write_all(&bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// What a server has.
#[derive(Clone, Copy)]
struct Features {
    structured: bool,
    allocation: bool,
    blocks: Option<[u32; 3]>,
    flags: u16,
}

const MODERN: Features = Features {
    structured: true,
    allocation: true,
    blocks: Some([1, 4096, MAX_PAYLOAD]),
    flags: flag::HAS_FLAGS,
};
const OLD: Features = Features {
    structured: false,
    allocation: false,
    blocks: None,
    flags: flag::HAS_FLAGS,
};

fn export_info(flags: u16) -> Vec<u8> {
    [&info::EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat()
}

/// All that such a server says in the handshake.
fn handshake(features: Features) -> Vec<u8> {
    let mut bytes = GREETING.to_vec();
    let or_not = |has| if has { reply::ACK } else { reply::UNSUP };
    bytes.extend(option_reply(option::STRUCTURED_REPLY, or_not(features.structured), b""));
    if features.structured {
        if features.allocation {
            let context = [&CONTEXT.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
            bytes.extend(option_reply(option::SET_META_CONTEXT, reply::META_CONTEXT, &context));
        }
        bytes.extend(option_reply(option::SET_META_CONTEXT, or_not(features.allocation), b""));
    }
    bytes.extend(option_reply(option::GO, reply::INFO, &export_info(features.flags)));
    if let Some(blocks) = features.blocks {
        let blocks = blocks.map(u32::to_be_bytes).concat();
        let data = [&info::BLOCK_SIZE.to_be_bytes()[..], &blocks].concat();
        bytes.extend(option_reply(option::GO, reply::INFO, &data));
    }
    bytes.extend(option_reply(option::GO, reply::ACK, b""));
    bytes
}

/// How many bytes a client says in the handshake with such a server.
fn client_bytes(features: Features) -> usize {
    let name = string("ram");
    let queries = [&name[..], &[0; 4], &string(ALLOCATION)].concat();
    let go = option_message(option::GO, &[&name[..], &[0; 4]].concat());
    let structured = option_message(option::STRUCTURED_REPLY, b"");
    let context = match features.structured {
        true => option_message(option::SET_META_CONTEXT, &queries),
        false => Vec::new(),
    };
    4 + structured.len() + context.len() + go.len()
}

/// Runs the handshake, and then `script`.
fn after_handshake(
    features: Features,
    script: impl FnOnce(&mut UnixStream) + Send + 'static,
) -> impl FnOnce(UnixStream) + Send + 'static {
    move |mut stream| {
        stream.write_all(&handshake(features)).expect("a client");
        stream.read_exact(&mut vec![0; client_bytes(features)]).expect("a client");
        script(&mut stream);
    }
}

fn request(stream: &mut UnixStream) -> Request {
    let mut bytes = [0; Request::SIZE];
    stream.read_exact(&mut bytes).expect("a request");
    Request::decode(&bytes).expect("a request")
}

/// A chunk that begins with an offset.
fn at(flags: u16, kind: u16, cookie: u64, offset: u64, rest: &[u8]) -> Vec<u8> {
    let length = 8 + rest.len() as u32;
    [&chunk_header(flags, kind, cookie, length)[..], &offset.to_be_bytes(), rest].concat()
}

const DONE: u16 = chunk::FLAG_DONE;

fn read(offset: u64, length: u32) -> Question {
    Question::Read { offset, length }
}

/// Whether the text of the error, with those of its sources, has `part`.
#[track_caller]
fn check_error(error: &Error, part: &str) {
    let text = error.to_string();
    assert!(text.contains(part), "{text:?} has no {part:?}");
}
