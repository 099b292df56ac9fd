// SPDX-License-Identifier: GPL-2.0-or-later
//! Servers over TLS: those of vmem-nbd.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vmem_nbd::server::{Export, Extent, Images, Limits, Listener, Protect, ReadError, serve};
use vmem_tls::Identity;

use super::*;

struct Memory([Export; 1]);

impl Images for Memory {
    fn exports(&self) -> &[Export] {
        &self.0
    }

    fn read(&self, _export: usize, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        out.copy_from_slice(&contents(usize::MAX)[offset as usize..offset as usize + out.len()]);
        Ok(())
    }

    fn extents(&self, _export: usize, _offset: u64, bytes: u64) -> Result<Vec<Extent>, ReadError> {
        Ok(vec![Extent { bytes, zero: false }])
    }
}

/// A server, until it is dropped.
struct Running {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start(listener: Listener, identity: Option<Identity>) -> Self {
        let size = contents(usize::MAX).len() as u64;
        let export = Export {
            name: "ram".to_owned(),
            size,
        };
        let images: Arc<dyn Images> = Arc::new(Memory([export]));
        let protect = identity.map(|identity| -> Arc<Protect> {
            Arc::new(move |socket, limit| {
                let accepted = identity.accept(socket, limit).map(|(socket, _)| socket);
                accepted.map_err(|error| error.to_string())
            })
        });
        let ends = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ends);
        let run = move || {
            serve(&listener, &images, Limits::default(), protect.as_ref(), &|| {
                end.load(Ordering::Relaxed)
            })
        };
        Self {
            ends,
            thread: Some(thread::spawn(run)),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
    }
}

/// A directory with a certificate for these names, by an authority of its own.
fn certificates(names: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(names, directory.path());
    directory
}

fn identity(directory: &Path) -> Identity {
    Identity::load(directory).expect("an identity")
}

fn connect(uri: &str, security: Security) -> Result<ExportSource, Error> {
    Endpoint::new(uri.parse().expect("a URI"), security, LONG).connect(Lane::Stream)
}

#[test]
fn pages_come_over_tls_by_sockets_and_the_network() {
    let directory = certificates(&["localhost", "127.0.0.1"]);
    let tls = || Security::Tls(identity(directory.path()));
    let path = directory.path().join("s");
    let unix = Listener::Unix(UnixListener::bind(&path).expect("a socket"));
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = tcp.local_addr().expect("an address");
    let _servers = [unix, Listener::Tcp(tcp)].map(|listener| Running::start(listener, Some(identity(directory.path()))));
    for uri in [
        format!("nbds+unix:///ram?socket={}", path.display()),
        format!("nbds+unix:///ram?socket={}&tls-hostname=127.0.0.1", path.display()),
        format!("nbds://{address}/ram"),
        format!("nbds://{address}/ram?tls-hostname=localhost"),
    ] {
        let mut source = connect(&uri, tls()).expect(&uri);
        let found = fetched(&mut source, &[range(0, PAGES)]).expect("pages");
        assert_eq!((found.len() as u64, check(&found)), (PAGES, vec![]), "{uri}");
    }
    // Another name than those of the certificate.
    let error = connect(&format!("nbds://{address}/ram?tls-hostname=host1"), tls()).expect_err("another name");
    assert!(matches!(error, Error::Tls(_)) && !error.is_transient(), "{error}");
    // Certificates of another authority: the server's for the client, and the client's for the server.
    let other = certificates(&["localhost", "127.0.0.1"]);
    let error = connect(&format!("nbds://{address}/ram"), Security::Tls(identity(other.path()))).expect_err("strangers");
    assert!(matches!(error, Error::Tls(_)) && !error.is_transient(), "{error}");
    std::fs::copy(directory.path().join("ca.pem"), other.path().join("ca.pem")).expect("a file");
    let error = connect(&format!("nbds://{address}/ram"), Security::Tls(identity(other.path()))).expect_err("a stranger");
    assert!(matches!(error, Error::Tls(_)) && !error.is_transient(), "{error}");
}

/// What comes of a server that sends these bytes after it was asked for TLS, and closes the connection.
fn told(bytes: &'static [u8]) -> Error {
    let directory = certificates(&["localhost"]);
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = thread::spawn(move || {
        let mut stream = listener.accept().expect("a client").0;
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").expect("a client");
        // Its flags, and an option without data.
        stream.read_exact(&mut [0; 4 + 16]).expect("a client");
        stream.write_all(bytes).expect("a client");
        let _ = stream.shutdown(Shutdown::Write);
        // Until the client has seen it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let uri = format!("nbds+unix:///ram?socket={}", path.display());
    let error = connect(&uri, Security::Tls(identity(directory.path()))).expect_err("no server");
    server.join().expect("no panic");
    error
}

#[test]
fn server_that_closes_is_tried_again_and_one_that_goes_on_in_clear_text_is_not() {
    for bytes in [&b""[..], b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0"] {
        let error = told(bytes);
        assert!(error.is_transient(), "{error:?}");
    }
    // Consent, and the consent to structured replies, which was not asked for yet.
    let error = told(
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\0\0\0\0",
    );
    assert!(
        matches!(error, Error::Tls(vmem_tls::Error::Handshake(_))) && !error.is_transient(),
        "{error:?}"
    );
    // "Unsupported", "policy" and "invalid".
    for kind in [1, 2, 3] {
        let refusal = [&b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\x80\0\0"[..], &[kind], &[0; 4]].concat();
        let error = told(refusal.leak());
        assert!(
            matches!(&error, Error::Nbd(why) if why.to_string().contains("does not protect")) && !error.is_transient(),
            "{error:?}"
        );
    }
}

#[test]
fn neither_side_goes_on_in_clear_text_if_it_should_be_protected() {
    let directory = certificates(&["localhost"]);
    for (name, is_protected) in [("protected", true), ("clear", false)] {
        let path = directory.path().join(name);
        let listener = Listener::Unix(UnixListener::bind(&path).expect("a socket"));
        let _server = Running::start(listener, is_protected.then(|| identity(directory.path())));
        let place = path.display();
        let (uri, security, why) = match is_protected {
            true => (format!("nbd+unix:///ram?socket={place}"), Security::Loopback, "demands TLS"),
            false => (
                format!("nbds+unix:///ram?socket={place}"),
                Security::Tls(identity(directory.path())),
                "does not protect",
            ),
        };
        let error = connect(&uri, security).expect_err("another kind of connection");
        assert!(
            matches!(&error, Error::Nbd(found) if found.to_string().contains(why)) && !error.is_transient(),
            "{error:?}"
        );
    }
}
