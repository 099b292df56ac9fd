// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections between peers that accept each other, and that do not.

mod renewal;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::Socket;
use tempfile::TempDir;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// The files of an identity called `name`, certified by `by`, that accepts certificates of `accepted_ca`.
fn files(name: &str, by: &Authority, accepted_ca: &Authority) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, by).expect("a certificate");
    let put = |file: &str, text: String| std::fs::write(directory.path().join(file), text).expect("a file");
    put("ca.pem", accepted_ca.pem());
    put("cert.pem", certificate.pem());
    put("key.pem", key.serialize_pem());
    directory
}

fn identity(directory: &TempDir) -> Identity {
    Identity::load(directory.path()).expect("an identity")
}

/// The result of one side.
type Side = Result<(Socket, CloseReason), Error>;

/// Connects to `host`; the results of the client and of the server.
fn handshake(client: &Identity, server: &Identity, host: &str) -> (Side, Side) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = server.clone();
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let socket = TcpStream::connect(address).expect("a connection");
    let connected = client.connect(socket, &format!("{host}:1"), LIMIT);
    (connected, accepting.join().expect("no panic"))
}

#[test]
fn both_directions_carry_data_at_once_and_end_separately() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let (connected, accepted) = handshake(&identity(&ours), &identity(&theirs), "b.test");
    let (connected, accepted) = (connected.expect("a connection").0, accepted.expect("a connection").0);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let talk = |mut socket: Socket, bytes: Vec<u8>| {
        thread::spawn(move || {
            let mut other = socket.try_clone().expect("a socket");
            let sent = bytes.clone();
            let writer = thread::spawn(move || {
                other.write_all(&sent).expect("room");
                other.shutdown(Shutdown::Write).expect("a socket");
            });
            let mut received = Vec::new();
            socket.read_to_end(&mut received).expect("the end");
            writer.join().expect("no panic");
            assert!(received == bytes);
        })
    };
    let (one, two) = (talk(connected, bytes.clone()), talk(accepted, bytes));
    one.join().expect("no panic");
    two.join().expect("no panic");
}

#[test]
fn wrong_name_or_unknown_authority_fails_the_handshake() {
    let (ca, other) = (authority(), authority());
    let (good, server) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let stranger = files("a.test", &other, &ca);
    let impostor = files("b.test", &other, &other);
    let (connected, _) = handshake(&identity(&good), &identity(&server), "c.test");
    assert!(matches!(connected, Err(Error::Handshake(_))), "another name");
    let (connected, accepted) = handshake(&identity(&good), &identity(&impostor), "b.test");
    assert!(connected.is_err() && accepted.is_err(), "an impostor");
    // The client's part of the handshake ends before the server refuses its certificate: it learns of that when it reads.
    let (connected, accepted) = handshake(&identity(&stranger), &identity(&server), "b.test");
    assert!(matches!(accepted, Err(Error::Handshake(_))), "a stranger");
    if let Ok((mut socket, reason)) = connected {
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
        let why = reason.take();
        assert!(matches!(why, Some(Error::Handshake(_))), "{why:?}");
    }
}

#[test]
fn silent_peer_times_out_and_other_protocol_fails_the_handshake() {
    let ca = authority();
    let server = identity(&files("b.test", &ca, &ca));
    for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        client.write_all(words).expect("room");
        let accepted = server.accept(listener.accept().expect("a connection").0, Duration::from_millis(200));
        match words {
            b"" => assert!(matches!(accepted, Err(Error::TimedOut(_))), "{accepted:?}"),
            _ => assert!(matches!(accepted, Err(Error::Handshake(_))), "{accepted:?}"),
        }
    }
}

#[test]
fn cut_connection_closes_the_socket_without_a_tls_error() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let socket = TcpStream::connect(address).expect("a connection");
    let cutter = socket.try_clone().expect("a socket");
    let (mut connected, reason) = identity(&ours).connect(socket, "b.test:1", LIMIT).expect("a connection");
    let (mut accepted, _) = accepting.join().expect("no panic").expect("a connection");
    connected.write_all(b"half").expect("room");
    let mut buffer = [0; 8];
    assert_eq!(accepted.read(&mut buffer).expect("bytes"), 4);
    cutter.shutdown(Shutdown::Both).expect("a socket");
    // The user sees both directions closed, and no call hangs.
    assert_eq!(accepted.read(&mut buffer).unwrap_or(0), 0);
    assert_eq!(connected.read(&mut buffer).unwrap_or(0), 0);
    thread::sleep(Duration::from_millis(50));
    assert!(accepted.write_all(&[0; 1 << 20]).is_err());
    assert!(reason.take().is_none(), "the network failed, not TLS");
}

#[test]
fn host_is_parsed_from_name_ipv4_and_ipv6_addresses() {
    for (address, host) in [
        ("a.test:8637", "a.test"),
        ("192.0.2.1:8637", "192.0.2.1"),
        ("[2001:db8::1]:8637", "2001:db8::1"),
    ] {
        assert_eq!(identity::host_of(address), host);
    }
}

#[test]
fn unusable_file_is_named_in_the_error() {
    let ca = authority();
    let good = files("a.test", &ca, &ca);
    let other = files("b.test", &ca, &ca);
    let error = |path: &Path| Identity::load(path).expect_err("a refusal").to_string();
    std::fs::copy(other.path().join("key.pem"), good.path().join("key.pem")).expect("a file");
    assert!(
        matches!(Identity::load(good.path()), Err(Error::Identity(_))),
        "the key of another certificate"
    );
    // As "openssl pkey -aes256" and "openssl ec -aes256" begin them.
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHsMFcGCSqGSIb3DQEFDTBK\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,1F5A\n\nMIHs\n-----END EC PRIVATE KEY-----\n",
    ] {
        std::fs::write(good.path().join("key.pem"), encrypted).expect("a file");
        let error = error(good.path());
        assert!(error.contains("key.pem: the key is encrypted"), "{error}");
    }
    std::fs::write(good.path().join("key.pem"), "nothing").expect("a file");
    assert!(!error(good.path()).contains("encrypted"));
    std::fs::write(good.path().join("cert.pem"), "nothing").expect("a file");
    assert!(error(good.path()).contains("cert.pem"));
    std::fs::remove_file(good.path().join("ca.pem")).expect("a file");
    assert!(error(good.path()).contains("ca.pem"));
}

/// Connects, and sends `words` in the same segment as the last message of the handshake.
fn connect_with_early_data(directory: &TempDir, address: SocketAddr, words: &[u8]) -> (TcpStream, ClientConnection) {
    let mut socket = TcpStream::connect(address).expect("a connection");
    let name = ServerName::try_from("b.test").expect("a name");
    let config = Arc::clone(&identity(directory).renewal().current().client);
    let mut client = ClientConnection::new(config, name).expect("a client");
    let mut out = Vec::new();
    while client.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut out).expect("room");
        }
        if client.is_handshaking() {
            socket.write_all(&out).expect("a peer");
            out.clear();
            client.read_tls(&mut socket).expect("an answer");
            client.process_new_packets().expect("a good answer");
        }
    }
    client.writer().write_all(words).expect("room");
    while client.wants_write() {
        client.write_tls(&mut out).expect("room");
    }
    socket.write_all(&out).expect("a peer");
    (socket, client)
}

#[test]
fn data_sent_with_the_last_handshake_message_is_received() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let talking = connect_with_early_data(&ours, address, b"hello");
    let (mut accepted, _) = accepting.join().expect("no panic").expect("a connection");
    accepted.set_read_timeout(Some(LIMIT)).expect("a time-out");
    let mut heard = [0; 5];
    accepted.read_exact(&mut heard).expect("words");
    assert_eq!(&heard, b"hello");
    drop(talking);
}

#[test]
fn peer_that_keeps_its_direction_open_is_closed_at_the_limit() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let limit = Duration::from_millis(300);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, limit));
    let (mut socket, _client) = connect_with_early_data(&ours, address, b"");
    drop(accepting.join().expect("no panic").expect("a connection"));
    // The server sends close_notify, waits for ours until the limit, and closes.
    socket.set_read_timeout(Some(LIMIT)).expect("a time-out");
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
}

#[test]
fn certified_peer_without_an_allowed_name_is_refused() {
    let ca = authority();
    let (ours, other) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let allowing = |directory: &TempDir, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Identity::load_allowing(directory.path(), &names)
    };
    for (names, good) in [
        (&["a.test"][..], true),
        (&["c.test", "a.test"], true),
        (&["c.test", "192.0.2.1"], false),
    ] {
        // The server checks the names, and so does the client.
        let server = allowing(&other, names).expect("an identity");
        let (connected, accepted) = handshake(&identity(&ours), &server, "b.test");
        assert_eq!(accepted.is_ok(), good, "{names:?}");
        if let (Ok((mut socket, reason)), false) = (connected, good) {
            assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
            assert!(matches!(reason.take(), Some(Error::Handshake(_))), "the server sent an alert");
        }
        let client = allowing(&other, names).expect("an identity");
        let (connected, _) = handshake(&client, &identity(&ours), "a.test");
        assert_eq!(connected.is_ok(), good, "{names:?}");
    }
    assert!(matches!(allowing(&ours, &["a b"]), Err(Error::Name(_))));
}

#[test]
fn key_readable_by_others_and_expiring_certificate_give_warnings() {
    use std::os::unix::fs::PermissionsExt;

    let ca = authority();
    let directory = files("a.test", &ca, &ca);
    let warnings = |mode: u32| {
        let key = directory.path().join("key.pem");
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(mode)).expect("a mode");
        identity(&directory).warnings().join("\n")
    };
    assert_eq!(warnings(0o600), "");
    assert_eq!(warnings(0o640), "");
    assert!(warnings(0o644).contains("key.pem has mode 644"));
    assert!(warnings(0o660).contains("key.pem has mode 660"));
    warnings(0o600);
    let until = |year| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("parameters");
        params.not_after = year;
        // The expiry of a certificate for servers is checked, too.
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &ca).expect("a certificate");
        std::fs::write(directory.path().join("cert.pem"), certificate.pem()).expect("a file");
        std::fs::write(directory.path().join("key.pem"), key.serialize_pem()).expect("a file");
        identity(&directory).warnings().join("\n")
    };
    assert!(until(rcgen::date_time_ymd(2020, 1, 1)).contains("has expired"));
    assert_eq!(until(rcgen::date_time_ymd(2090, 1, 1)), "");
    let soon = std::time::SystemTime::now() + Duration::from_secs(5 * 24 * 3600);
    assert!(until(soon.into()).contains("within 14 days"));
}
