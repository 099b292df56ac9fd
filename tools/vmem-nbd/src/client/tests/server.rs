// SPDX-License-Identifier: GPL-2.0-or-later
//! The client with this crate's server.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::server::{Export, Images, Limits, Listener, ReadError, serve};

/// 64 KiB pieces: those with even numbers are zero, others have their number in each byte, and the fifth one is lost.
struct Pieces([Export; 1]);

const PIECE: u64 = 64 << 10;

impl Images for Pieces {
    fn exports(&self) -> &[Export] {
        &self.0
    }

    fn read(&self, _: usize, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        for (at, byte) in (offset..).zip(out) {
            *byte = match at / PIECE {
                5 => return Err(ReadError::Lost("bad".to_owned())),
                piece if piece % 2 == 1 => piece as u8,
                _ => 0,
            };
        }
        Ok(())
    }

    fn extents(&self, _: usize, offset: u64, bytes: u64) -> Result<Vec<Extent>, ReadError> {
        let zero = (offset / PIECE) % 2 == 0;
        let bytes = bytes.min(PIECE - offset % PIECE);
        Ok(vec![Extent { bytes, zero }])
    }
}

#[test]
fn server_of_this_crate_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let listener = Listener::Unix(UnixListener::bind(&path).expect("a socket"));
    let export = Export {
        name: "ram".to_owned(),
        size: 16 * PIECE,
    };
    let images: Arc<dyn Images> = Arc::new(Pieces([export]));
    let ends = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ends);
    let server = thread::spawn(move || serve(&listener, &images, Limits::default(), None, &|| end.load(Ordering::Relaxed)));
    let stream = UnixStream::connect(&path).expect("a server");
    let session = Session::open(Socket::from(OwnedFd::from(stream)), "ram", LONG, None, || ()).expect("a session");
    let description = session.description();
    assert_eq!((description.size, description.can_multi_conn), (16 * PIECE, true));
    assert!(description.structured && description.has_extents());
    let client = session.client(Priority::Background).expect("a client");
    for piece in 0..16 {
        client.ask(read(piece * PIECE, PIECE as u32), piece).expect("an open session");
    }
    for _ in 0..16 {
        match client.next_reply().expect("a reply") {
            (5, Outcome::Read(Err(failure), _)) => assert_eq!(failure.errno, crate::wire::errno::EIO),
            (piece, Outcome::Read(Ok(Bytes::Zero), wire)) => assert!(piece % 2 == 0 && wire < 100, "{piece}: {wire}"),
            (piece, Outcome::Read(Ok(Bytes::Data(bytes)), _)) => {
                assert!(piece % 2 == 1 && bytes == vec![piece as u8; PIECE as usize], "{piece}");
            }
            other => panic!("{other:?}"),
        }
    }
    let length = (16 * PIECE) as u32;
    client
        .ask(Question::Extents { offset: 0, length }, 0)
        .expect("an open session");
    match client.next_reply().expect("a reply") {
        (0, Outcome::Extents(Ok(extents))) => assert_eq!(
            extents.first(),
            Some(&Extent {
                bytes: PIECE,
                zero: true
            })
        ),
        other => panic!("{other:?}"),
    }
    drop((client, session));
    ends.store(true, Ordering::Relaxed);
    server.join().expect("no panic").expect("a good end");
}
