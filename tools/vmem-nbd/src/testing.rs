// SPDX-License-Identifier: GPL-2.0-or-later
//! A server for the tests of clients: they choose what it has and what fails, and it notes what they ask for.
//!
//! It answers one request after the other, as the simplest servers do, and panics when a client does what it must not do.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::client::Description;
use crate::wire::{
    ALLOCATION, Parser, Request, STATE_HOLE, STATE_ZERO, chunk, chunk_header, command, errno, flag, info, option, option_reply,
    reply, simple_reply,
};

/// What a server has.
#[derive(Clone, Debug)]
pub struct Features {
    /// The bytes of its export, whatever that is called.
    pub contents: Vec<u8>,
    /// Structured replies.
    pub structured: bool,
    /// `base:allocation`, with extents of whole blocks, of 4 KiB at least.
    pub allocation: bool,
    /// Several connections are allowed.
    pub can_multi_conn: bool,
    /// The minimum, preferred and maximum size of a block.
    pub blocks: Option<[u32; 3]>,
    /// Bytes that cannot be read.
    pub bad: Vec<Range<u64>>,
    /// The most extents of a reply.
    pub max_extents: usize,
}

impl Features {
    /// A server that has everything.
    #[must_use]
    pub fn all(contents: Vec<u8>) -> Self {
        Self {
            contents,
            structured: true,
            allocation: true,
            can_multi_conn: true,
            blocks: Some([1, 4096, 32 << 20]),
            bad: Vec::new(),
            max_extents: usize::MAX,
        }
    }

    /// A server that has nothing but what all have.
    #[must_use]
    pub fn none(contents: Vec<u8>) -> Self {
        Self {
            structured: false,
            allocation: false,
            can_multi_conn: false,
            blocks: None,
            ..Self::all(contents)
        }
    }
}

/// What a client knows of an export with such blocks, whose server has everything.
#[must_use]
pub fn description(size: u64, min_block: u32) -> Description {
    Description {
        size,
        can_multi_conn: true,
        min_block,
        max_read: 32 << 20,
        structured: true,
        allocation: Some(1),
    }
}

/// What clients have done.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections so far.
    pub connections: usize,
    /// Bytes that were read, request by request.
    pub reads: Vec<Range<u64>>,
    /// Questions for extents.
    pub maps: Vec<Range<u64>>,
}

/// A server at a socket, until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    features: Mutex<Features>,
    seen: Mutex<Seen>,
    streams: Mutex<Vec<UnixStream>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// There is something at `path`.
    #[must_use]
    pub fn start(path: &Path, features: Features) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let shared = Arc::new(Shared {
            features: Mutex::new(features),
            seen: Mutex::default(),
            streams: Mutex::default(),
        });
        let of = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                lock(&of.seen).connections += 1;
                lock(&of.streams).extend(stream.try_clone());
                let (of, features) = (Arc::clone(&of), lock(&of.features).clone());
                // A client that has gone is no failure.
                thread::spawn(move || drop(of.attend(stream, &features)));
            }
        });
        Self { shared }
    }

    /// What clients have done so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.shared.seen).clone()
    }

    /// What later connections find.
    pub fn change(&self, change: impl FnOnce(&mut Features)) {
        change(&mut lock(&self.shared.features));
    }

    /// Ends all connections.
    pub fn hang_up(&self) {
        for stream in lock(&self.shared.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Shared {
    fn attend(&self, mut stream: UnixStream, features: &Features) -> io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        assert_eq!(array::<4>(&mut stream)?, [0, 0, 0, 3]);
        let mut structured = false;
        loop {
            let header: [u8; 16] = array(&mut stream)?;
            let mut parser = Parser(&header);
            assert_eq!(parser.bytes(8), Some(&b"IHAVEOPT"[..]));
            let (kind, length) = (parser.u32().unwrap_or(0), parser.u32().unwrap_or(0));
            stream.read_exact(&mut vec![0; length as usize])?;
            let mut answer = Vec::new();
            let mut say = |reply, data: &[u8]| answer.extend(option_reply(kind, reply, data));
            match kind {
                option::STRUCTURED_REPLY if features.structured => {
                    structured = true;
                    say(reply::ACK, b"");
                }
                option::SET_META_CONTEXT if features.allocation => {
                    assert!(structured, "structured replies come first");
                    say(
                        reply::META_CONTEXT,
                        &[&1_u32.to_be_bytes()[..], ALLOCATION.as_bytes()].concat(),
                    );
                    say(reply::ACK, b"");
                }
                option::GO => {
                    let multi = if features.can_multi_conn { flag::CAN_MULTI_CONN } else { 0 };
                    let size = features.contents.len() as u64;
                    let flags = flag::HAS_FLAGS | flag::READ_ONLY | multi;
                    say(
                        reply::INFO,
                        &[&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat(),
                    );
                    if let Some(blocks) = features.blocks {
                        let blocks = blocks.map(u32::to_be_bytes).concat();
                        say(reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &blocks].concat());
                    }
                    say(reply::ACK, b"");
                }
                _ => say(reply::UNSUP, b""),
            }
            stream.write_all(&answer)?;
            if kind == option::GO {
                break;
            }
        }
        loop {
            let request = Request::decode(&array(&mut stream)?).expect("a request");
            let range = request.offset..request.offset + u64::from(request.length);
            let size = features.contents.len() as u64;
            let [block, _, max] = features.blocks.unwrap_or([1, 4096, 32 << 20]);
            let is_aligned = |offset: u64| offset % u64::from(block) == 0 || offset == size;
            match request.command {
                command::DISC => return Ok(()),
                command::READ => {
                    assert!(request.length <= max, "{request:?}");
                    lock(&self.seen).reads.push(range.clone());
                }
                command::BLOCK_STATUS => {
                    assert!(features.allocation, "{request:?}");
                    lock(&self.seen).maps.push(range.clone());
                }
                _ => panic!("{request:?}"),
            }
            assert!(
                is_aligned(range.start) && is_aligned(range.end) && !range.is_empty() && range.end <= size,
                "{request:?}"
            );
            stream.write_all(&reply_to(request, range, features))?;
        }
    }
}

fn reply_to(request: Request, range: Range<u64>, features: &Features) -> Vec<u8> {
    let cookie = request.cookie;
    let chunk = |kind, parts: &[&[u8]]| {
        let payload = parts.concat();
        [
            &chunk_header(chunk::FLAG_DONE, kind, cookie, payload.len() as u32)[..],
            &payload,
        ]
        .concat()
    };
    if request.command == command::BLOCK_STATUS {
        let mut extents = 1_u32.to_be_bytes().to_vec();
        for (length, is_zero) in extents_of(&range, features) {
            extents.extend(length.to_be_bytes());
            extents.extend((if is_zero { STATE_HOLE | STATE_ZERO } else { 0 }).to_be_bytes());
        }
        return chunk(chunk::BLOCK_STATUS, &[&extents]);
    }
    let bytes = features
        .contents
        .get(range.start as usize..range.end as usize)
        .unwrap_or_default();
    let is_bad = features.bad.iter().any(|bad| bad.start < range.end && range.start < bad.end);
    match (features.structured, is_bad) {
        (true, true) => chunk(chunk::ERROR, &[&errno::EIO.to_be_bytes(), &[0, 3], b"bad"]),
        (true, false) if bytes.iter().all(|byte| *byte == 0) => chunk(
            chunk::OFFSET_HOLE,
            &[&range.start.to_be_bytes(), &request.length.to_be_bytes()],
        ),
        (true, false) => chunk(chunk::OFFSET_DATA, &[&range.start.to_be_bytes(), bytes]),
        (false, true) => simple_reply(errno::EIO, cookie).to_vec(),
        (false, false) => [&simple_reply(0, cookie), bytes].concat(),
    }
}

/// Extents of whole blocks, of a page at least.
fn extents_of(range: &Range<u64>, features: &Features) -> Vec<(u32, bool)> {
    let block: u32 = features.blocks.map_or(4096, |[block, ..]| block.max(4096));
    let (mut at, mut extents) = (range.start, Vec::<(u32, bool)>::new());
    let block = u64::from(block);
    while at < range.end {
        let end = ((at / block + 1) * block).min(range.end);
        let bytes = features.contents.get(at as usize..end as usize).unwrap_or_default();
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        let is_full = extents.len() >= features.max_extents;
        match extents.last_mut() {
            Some((length, same)) if *same == is_zero => *length += (end - at) as u32,
            _ if is_full => break,
            _ => extents.push(((end - at) as u32, is_zero)),
        }
        at = end;
    }
    extents
}
