// SPDX-License-Identifier: GPL-2.0-or-later
//! The server's side of the transmission phase.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::handshake::{CONTEXT, Chosen};
use super::{Extent, Images, ReadError};
use crate::link::Link;
use crate::wire::{MAX_PAYLOAD, MAX_STRING, Request, STATE_HOLE, STATE_ZERO, chunk, chunk_header, command, errno, simple_reply};

/// Threads of a connection that answer.
const WORKERS: usize = 4;
/// Requests of a connection that wait for one of them. The client's further ones wait in the socket.
const QUEUE: usize = 16;
/// Bytes that are read at a time.
const PIECE: u64 = 256 << 10;
/// A simple reply of up to this many bytes is read as a whole, so that an error can be its answer.
const WHOLE: u64 = 512 << 10;
/// The most descriptors of one answer about extents.
const MAX_EXTENTS: usize = 4096;
/// The pause before something is read again that was away.
const AGAIN: Duration = Duration::from_millis(500);

/// Answers the requests of a client until it disconnects.
pub(super) fn answer(link: &Link, images: &dyn Images, chosen: Chosen) -> io::Result<()> {
    let size = images.exports().get(chosen.export).map_or(0, |export| export.size);
    let session = Session {
        link,
        images,
        chosen,
        size,
        writing: Mutex::new(()),
        ended: AtomicBool::new(false),
    };
    let (sender, requests) = sync_channel(QUEUE);
    let requests = Mutex::new(requests);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            let worker = thread::Builder::new().name("nbd".to_owned());
            worker.spawn_scoped(scope, || session.work(&requests))?;
        }
        let result = loop {
            match session.next_request() {
                Ok(Some(request)) => {
                    if sender.send(request).is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        session.ended.store(true, Ordering::Relaxed);
        drop(sender);
        result
    })
}

struct Session<'a> {
    link: &'a Link,
    images: &'a dyn Images,
    chosen: Chosen,
    size: u64,
    writing: Mutex<()>,
    /// Whether the client has gone, or the server ends.
    ended: AtomicBool,
}

impl Session<'_> {
    /// The next request that a worker has to answer. [`None`] at the end.
    fn next_request(&self) -> io::Result<Option<Request>> {
        // A client may ask for nothing as long as it likes.
        self.link.wait(None)?;
        let bytes = match self.link.read_array() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let request = Request::decode(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the client has sent no request"))?;
        match request.command {
            command::DISC => return Ok(None),
            command::WRITE if request.length > MAX_PAYLOAD => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the client has sent too much"));
            }
            command::WRITE => self.link.discard(request.length.into())?,
            _ => {}
        }
        Ok(Some(request))
    }

    fn work(&self, requests: &Mutex<Receiver<Request>>) {
        // A worker that panics must not leave a request without an answer: the client would wait for it.
        let hang_up = HangUp(self.link);
        loop {
            let next = requests.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(request) = next else { break };
            if let Err(error) = self.reply(&request) {
                tracing::debug!("a client does not take its answer: {error}");
                self.ended.store(true, Ordering::Relaxed);
                self.link.shut_down(Shutdown::Both);
            }
        }
        std::mem::forget(hang_up);
    }

    fn reply(&self, request: &Request) -> io::Result<()> {
        let end = request.offset.checked_add(request.length.into());
        let fits = request.length > 0 && end.is_some_and(|end| end <= self.size);
        match request.command {
            command::READ if request.flags != 0 || !fits || request.length > MAX_PAYLOAD => {
                self.refuse(request, errno::EINVAL, "no such bytes")
            }
            command::READ if self.chosen.structured => self.read_structured(request),
            command::READ => self.read_simple(request),
            command::BLOCK_STATUS if self.chosen.allocation && fits && request.flags & !command::FLAG_REQ_ONE == 0 => {
                self.block_status(request)
            }
            command::WRITE | command::TRIM | command::WRITE_ZEROES => {
                self.refuse(request, errno::EPERM, "the export is read-only")
            }
            _ => self.refuse(request, errno::EINVAL, "not a request that this server answers"),
        }
    }

    fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.link.write(parts)
    }

    fn refuse(&self, request: &Request, error: u32, text: &str) -> io::Result<()> {
        if !self.chosen.structured {
            return self.send(&[&simple_reply(error, request.cookie)]);
        }
        let payload = error_payload(error, text);
        let header = chunk_header(chunk::FLAG_DONE, chunk::ERROR, request.cookie, payload.len() as u32);
        self.send(&[&header, &payload])
    }

    /// Reads something again as long as it is away and the client waits.
    fn retry<T>(&self, mut read: impl FnMut() -> Result<T, ReadError>) -> Result<T, ReadError> {
        loop {
            match read() {
                Err(ReadError::Away(why)) if !self.ended.load(Ordering::Relaxed) => {
                    tracing::warn!("a client waits: {why}");
                    thread::sleep(AGAIN);
                }
                ended => return ended,
            }
        }
    }

    /// What is known of the first of these bytes. What the index cannot say is read.
    fn extents(&self, offset: u64, bytes: u64) -> Vec<Extent> {
        let known = self.retry(|| self.images.extents(self.chosen.export, offset, bytes));
        known
            .ok()
            .filter(|extents| !extents.is_empty())
            .unwrap_or_else(|| vec![Extent { bytes, zero: false }])
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.retry(|| self.images.read(self.chosen.export, offset, out))
    }

    fn read_structured(&self, request: &Request) -> io::Result<()> {
        let (mut at, end) = (request.offset, request.offset + u64::from(request.length));
        let mut buffer = Vec::new();
        while at < end {
            for extent in self.extents(at, (end - at).min(PIECE)) {
                let bytes = extent.bytes.min(end - at);
                let flags = if at + bytes == end { chunk::FLAG_DONE } else { 0 };
                let offset = at.to_be_bytes();
                if extent.zero {
                    let header = chunk_header(flags, chunk::OFFSET_HOLE, request.cookie, 12);
                    self.send(&[&header, &offset, &(bytes as u32).to_be_bytes()])?;
                } else {
                    buffer.resize(bytes as usize, 0);
                    if let Err(error) = self.read(at, &mut buffer) {
                        return self.fail_at(request, at, &error);
                    }
                    let header = chunk_header(flags, chunk::OFFSET_DATA, request.cookie, bytes as u32 + 8);
                    self.send(&[&header, &offset, &buffer])?;
                }
                at += bytes;
                if at == end {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The error of a read, with the offset at which it was noticed.
    fn fail_at(&self, request: &Request, offset: u64, error: &ReadError) -> io::Result<()> {
        let mut payload = error_payload(number(error), &error.to_string());
        payload.extend(offset.to_be_bytes());
        let header = chunk_header(chunk::FLAG_DONE, chunk::ERROR_OFFSET, request.cookie, payload.len() as u32);
        self.send(&[&header, &payload])
    }

    fn read_simple(&self, request: &Request) -> io::Result<()> {
        let (mut at, end) = (request.offset, request.offset + u64::from(request.length));
        let mut buffer = vec![0; (end - at).min(WHOLE) as usize];
        if let Err(error) = self.read(at, &mut buffer) {
            return self.send(&[&simple_reply(number(&error), request.cookie)]);
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.link.write(&[&simple_reply(0, request.cookie), &buffer])?;
        at += buffer.len() as u64;
        while at < end {
            buffer.truncate((end - at).min(WHOLE) as usize);
            // Now that the answer has begun, only the end of the connection says that it cannot be had.
            self.read(at, &mut buffer).map_err(io::Error::other)?;
            self.link.write(&[&buffer])?;
            at += buffer.len() as u64;
        }
        Ok(())
    }

    fn block_status(&self, request: &Request) -> io::Result<()> {
        let one = request.flags & command::FLAG_REQ_ONE != 0;
        let (mut at, end) = (request.offset, request.offset + u64::from(request.length));
        let mut found: Vec<Extent> = Vec::new();
        while at < end && found.len() <= MAX_EXTENTS {
            for extent in self.extents(at, end - at) {
                let bytes = extent.bytes.min(end - at);
                match found.last_mut().filter(|last| last.zero == extent.zero) {
                    Some(last) => last.bytes += bytes,
                    None => found.push(Extent { bytes, ..extent }),
                }
                at += bytes;
            }
            if one && found.len() > 1 {
                break;
            }
        }
        found.truncate(if one { 1 } else { MAX_EXTENTS });
        let mut payload = CONTEXT.to_be_bytes().to_vec();
        for extent in found {
            let state = if extent.zero { STATE_HOLE | STATE_ZERO } else { 0 };
            // At most the length of the request.
            payload.extend((extent.bytes as u32).to_be_bytes());
            payload.extend(state.to_be_bytes());
        }
        let header = chunk_header(chunk::FLAG_DONE, chunk::BLOCK_STATUS, request.cookie, payload.len() as u32);
        self.send(&[&header, &payload])
    }
}

/// Ends the connection when it is dropped.
struct HangUp<'a>(&'a Link);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        self.0.shut_down(Shutdown::Both);
    }
}

fn number(error: &ReadError) -> u32 {
    match error {
        // Only when the server ends, or the client has gone.
        ReadError::Away(_) => errno::ESHUTDOWN,
        ReadError::Lost(_) => errno::EIO,
    }
}

fn error_payload(error: u32, text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_STRING / 4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    [&error.to_be_bytes()[..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}
