// SPDX-License-Identifier: GPL-2.0-or-later
//! A server at a socket, and clients that send bytes to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::wire::{Request, command, option, option_message, string};

const PIECE: u64 = 64 << 10;

/// Image `ram`: its pieces are zero, or full of their number; pieces 5 and 15 are lost. Image `video` is empty but for its size.
struct Test(Vec<Export>);

impl Images for Test {
    fn exports(&self) -> &[Export] {
        &self.0
    }

    fn read(&self, export: usize, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        for (at, byte) in (offset..).zip(out) {
            *byte = match (export, at / PIECE) {
                (0, 5 | 15) => return Err(ReadError::Lost("bad".to_owned())),
                (0, piece) if piece % 2 == 1 => piece as u8,
                _ => 0,
            };
        }
        Ok(())
    }

    fn extents(&self, export: usize, offset: u64, bytes: u64) -> Result<Vec<Extent>, ReadError> {
        let zero = export == 1 || (offset / PIECE) % 2 == 0;
        let bytes = bytes.min(PIECE - offset % PIECE);
        Ok(vec![Extent { bytes, zero }])
    }
}

struct Running {
    directory: tempfile::TempDir,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start(limits: Limits) -> Self {
        Self::protected(limits, None)
    }

    fn protected(limits: Limits, protect: Option<Arc<Protect>>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let export = |name: &str, size| Export {
            name: name.to_owned(),
            size,
        };
        let images: Arc<dyn Images> = Arc::new(Test(vec![export("ram", 16 * PIECE), export("video", 4097)]));
        let listener = Listener::Unix(UnixListener::bind(directory.path().join("s")).expect("a socket"));
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        let thread = thread::spawn(move || serve(&listener, &images, limits, protect.as_ref(), &|| end.load(Ordering::Relaxed)));
        let thread = Some(thread);
        Self { directory, ends, thread }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
    }
}

/// A client after the first words.
fn client(path: &Path) -> UnixStream {
    let mut client = UnixStream::connect(path).expect("a server");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert_eq!(take(&mut client, 18), b"NBDMAGICIHAVEOPT\0\x03");
    client.write_all(&3_u32.to_be_bytes()).expect("a server");
    client
}

fn take(client: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    client.read_exact(&mut bytes).expect("an answer");
    bytes
}

/// Whether the server has closed the connection.
fn is_closed(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Sends an option. Returns the replies, each with its kind.
fn ask(client: &mut UnixStream, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    client.write_all(&option_message(option, data)).expect("a server");
    let mut replies = Vec::new();
    loop {
        let header = take(client, 20);
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(number(8), option);
        let data = take(client, number(16) as usize);
        replies.push((number(12), data));
        if number(12) == 1 || number(12) >= 1 << 31 {
            return replies;
        }
    }
}

fn go(name: &str) -> Vec<u8> {
    [&string(name)[..], &[0, 1, 0, 3]].concat()
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries: Vec<Vec<u8>> = queries.iter().map(|query| string(query)).collect();
    let count = (queries.len() as u32).to_be_bytes();
    [&string(name)[..], &count, &queries.concat()].concat()
}

fn request(client: &mut UnixStream, command: u16, offset: u64, length: u32) {
    let request = Request {
        flags: 0,
        command,
        cookie: 7,
        offset,
        length,
    };
    client.write_all(&request.encode()).expect("a server");
}

/// The chunks of the answer to a request: kind and payload.
fn chunks(client: &mut UnixStream) -> Vec<(u16, Vec<u8>)> {
    let mut chunks = Vec::new();
    loop {
        let header = take(client, 20);
        assert_eq!(header[..4], [0x66, 0x8e, 0x33, 0xef]);
        assert_eq!(header[8..16], 7_u64.to_be_bytes());
        let length = u32::from_be_bytes(header[16..].try_into().expect("four bytes"));
        chunks.push((u16::from_be_bytes([header[6], header[7]]), take(client, length as usize)));
        if header[5] & 1 == 1 {
            return chunks;
        }
    }
}

/// A client that can ask for extents of `ram`.
fn structured(path: &Path) -> UnixStream {
    let mut client = client(path);
    assert_eq!(ask(&mut client, option::STRUCTURED_REPLY, b""), [(1, vec![])]);
    let set = ask(
        &mut client,
        option::SET_META_CONTEXT,
        &contexts("ram", &["x:y", "base:allocation"]),
    );
    assert_eq!(set[0], (4, b"\0\0\0\x01base:allocation".to_vec()));
    assert_eq!(ask(&mut client, option::GO, &go("ram")).len(), 3);
    client
}

#[test]
fn options_are_answered() {
    let server = Running::start(Limits::default());
    let mut client = client(&server.path());
    let listed = ask(&mut client, option::LIST, b"");
    assert_eq!(listed, [(2, string("ram")), (2, string("video")), (1, vec![])]);
    assert_eq!(ask(&mut client, 5, b"")[0].0, (1 << 31) + 1, "no TLS");
    assert_eq!(ask(&mut client, option::INFO, &go("none"))[0].0, (1 << 31) + 6);
    assert_eq!(ask(&mut client, option::INFO, b"\0\0\0\x09x")[0].0, (1 << 31) + 3);
    let early = ask(&mut client, option::SET_META_CONTEXT, &contexts("", &["base:allocation"]));
    assert_eq!(early[0].0, (1 << 31) + 3, "structured replies come first");
    let info = ask(&mut client, option::INFO, &go("video"));
    assert_eq!(info[0], (3, [&[0, 0][..], &4097_u64.to_be_bytes(), &[1, 3]].concat()));
    assert_eq!(info[1], (3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec()));
    assert_eq!(ask(&mut client, option::ABORT, b""), [(1, vec![])]);
    assert_eq!(client.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn client_learns_nothing_before_its_connection_is_protected() {
    // What protects it is not the matter of this crate: here, it is nothing.
    let server = Running::protected(Limits::default(), Some(Arc::new(|socket, _| Ok(socket))));
    let mut client = client(&server.path());
    for (option, data) in [
        (option::LIST, vec![]),
        (option::STRUCTURED_REPLY, vec![]),
        (option::INFO, go("ram")),
        (option::GO, go("ram")),
        (99, vec![]),
    ] {
        let replies = ask(&mut client, option, &data);
        assert_eq!((replies.len(), replies[0].0), (1, (1 << 31) + 5), "{option}");
    }
    assert_eq!(ask(&mut client, option::STARTTLS, b"x")[0].0, (1 << 31) + 3);
    assert_eq!(ask(&mut client, option::STARTTLS, b""), [(1, vec![])]);
    assert_eq!(ask(&mut client, option::STARTTLS, b"")[0].0, (1 << 31) + 3, "twice");
    assert_eq!(ask(&mut client, option::STRUCTURED_REPLY, b""), [(1, vec![])]);
    assert_eq!(ask(&mut client, option::GO, &go("ram")).len(), 3);
    request(&mut client, command::READ, PIECE, 1);
    assert_eq!(chunks(&mut client)[0].1[8..], [1]);
    // An option without errors.
    let mut client = self::client(&server.path());
    client
        .write_all(&option_message(option::EXPORT_NAME, b"ram"))
        .expect("a server");
    assert!(is_closed(&mut client));
    let refusing = Running::protected(Limits::default(), Some(Arc::new(|_, _| Err("no".to_owned()))));
    let mut client = self::client(&refusing.path());
    assert_eq!(ask(&mut client, option::STARTTLS, b""), [(1, vec![])]);
    assert!(is_closed(&mut client));
}

#[test]
fn structured_reads_have_holes_and_data_and_the_place_of_an_error() {
    let server = Running::start(Limits::default());
    let mut client = structured(&server.path());
    request(&mut client, command::READ, 10, 2 * PIECE as u32);
    let found = chunks(&mut client);
    let hole = |offset: u64, bytes: u32| [&offset.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
    assert_eq!(found[0], (2, hole(10, PIECE as u32 - 10)));
    assert_eq!((found[1].0, &found[1].1[..9]), (1, &[0, 0, 0, 0, 0, 1, 0, 0, 1][..]));
    assert_eq!(found[1].1.len() as u64, 8 + PIECE);
    assert_eq!(found[2], (2, hole(2 * PIECE, 10)));
    request(&mut client, command::READ, 4 * PIECE, 3 * PIECE as u32);
    let found = chunks(&mut client);
    assert_eq!(found[0].0, 2);
    assert_eq!(
        found[1],
        (0x8002, [&b"\0\0\0\x05\0\x03bad"[..], &(5 * PIECE).to_be_bytes()].concat())
    );
    request(&mut client, command::BLOCK_STATUS, PIECE, 3 * PIECE as u32);
    assert_eq!(
        chunks(&mut client),
        [(
            5,
            b"\0\0\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\x03\0\x01\0\0\0\0\0\0".to_vec()
        )]
    );
}

#[test]
fn what_is_not_allowed_is_refused_and_the_connection_goes_on() {
    let server = Running::start(Limits::default());
    let mut client = structured(&server.path());
    for (command, offset, length, errno) in [
        (command::READ, 16 * PIECE, 1, 22),
        (command::READ, u64::MAX, 2, 22),
        (command::READ, 0, 0, 22),
        (command::READ, 0, u32::MAX, 22),
        (command::TRIM, 0, 4096, 1),
        (99, 0, 1, 22),
        (command::BLOCK_STATUS, 0, u32::MAX, 22),
    ] {
        request(&mut client, command, offset, length);
        let found = chunks(&mut client);
        assert_eq!((found[0].0, found[0].1[3]), (0x8001, errno), "{command} {offset} {length}");
    }
    request(&mut client, command::WRITE, 0, 5);
    client.write_all(b"bytes").expect("a server");
    assert_eq!(chunks(&mut client)[0].1[3], 1);
    request(&mut client, command::READ, PIECE, 1);
    assert_eq!(chunks(&mut client)[0].1[8..], [1]);
}

#[test]
fn simple_replies_are_whole_or_an_error() {
    let server = Running::start(Limits::default());
    let mut client = client(&server.path());
    // As an old client: without structured replies, and by the name alone.
    client.write_all(&option_message(option::EXPORT_NAME, b"")).expect("a server");
    assert_eq!(take(&mut client, 10), [&(16 * PIECE).to_be_bytes()[..], &[1, 3]].concat());
    request(&mut client, command::READ, PIECE - 1, 2);
    assert_eq!(take(&mut client, 18), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x07\0\x01");
    request(&mut client, command::READ, 5 * PIECE - 1, 2);
    assert_eq!(take(&mut client, 16), b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x07");
    // An error after the answer has begun can only end the connection.
    request(&mut client, command::READ, 6 * PIECE, 10 * PIECE as u32);
    let begun = take(&mut client, 16 + 8 * PIECE as usize);
    assert_eq!(begun[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    let mut rest = Vec::new();
    let ended = client.read_to_end(&mut rest);
    assert!(ended.is_ok() && rest.len() < 2 * PIECE as usize, "{ended:?}");
}

#[test]
fn bad_clients_are_disconnected_and_harm_no_other() {
    // One with an option of 4 GiB is not waited for.
    let server = Running::start(Limits::default());
    let mut bad = client(&server.path());
    bad.write_all(&[&b"IHAVEOPT\0\0\0\x07"[..], &u32::MAX.to_be_bytes()].concat())
        .expect("a server");
    assert!(is_closed(&mut bad));
    let limits = Limits {
        connections: 3,
        timeout: Duration::from_millis(300),
    };
    let server = Running::start(limits);
    let mut good = structured(&server.path());
    let mut silent = UnixStream::connect(server.path()).expect("a server");
    take(&mut silent, 18);
    let mut slow = structured(&server.path());
    let third = structured(&server.path());
    // The fourth.
    let mut further = structured(&server.path());
    assert!(is_closed(&mut further), "one too many");
    drop(third);
    for _ in 0..100 {
        request(&mut slow, command::READ, PIECE, PIECE as u32);
    }
    request(&mut good, command::READ, PIECE, 1);
    assert_eq!(chunks(&mut good)[0].1[8..], [1]);
    assert!(is_closed(&mut silent), "a handshake without end");
    thread::sleep(Duration::from_secs(1));
    // Both have been disconnected, and their places are free.
    drop((structured(&server.path()), slow));
    request(&mut good, command::READ, PIECE, 1);
    assert_eq!(chunks(&mut good)[0].1[8..], [1], "an idle client stays");
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let server = Running::start(Limits {
        connections: 2,
        ..Limits::default()
    });
    let mut first = structured(&server.path());
    let silent = |_| {
        let mut silent = UnixStream::connect(server.path()).expect("a server");
        silent.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        take(&mut silent, 18);
        silent
    };
    let mut silent: Vec<_> = (0..connections::MAX_HANDSHAKES + 2).map(silent).collect();
    assert!(is_closed(&mut silent[0]) && is_closed(&mut silent[1]), "the oldest two");
    let mut second = structured(&server.path());
    for client in [&mut first, &mut second] {
        request(client, command::READ, PIECE, 1);
        assert_eq!(chunks(client)[0].1[8..], [1]);
    }
}
