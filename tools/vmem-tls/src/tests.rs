// SPDX-License-Identifier: GPL-2.0
//! Two sides that know each other, and those who do not.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
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

/// The files of one who is called `name`, certified by `by`, and believes `believed`.
fn files(name: &str, by: &Authority, believed: &Authority) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, by).expect("a certificate");
    let put = |file: &str, text: String| std::fs::write(directory.path().join(file), text).expect("a file");
    put("ca.pem", believed.pem());
    put("cert.pem", certificate.pem());
    put("key.pem", key.serialize_pem());
    directory
}

fn identity(directory: &TempDir) -> Identity {
    Identity::load(directory.path()).expect("an identity")
}

/// What becomes of a side.
type Met = Result<(Socket, Trouble), TlsError>;

/// The two ends of a connection to `host`, as each side sees it.
fn meet(client: &Identity, server: &Identity, host: &str) -> (Met, Met) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = server.clone();
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let socket = TcpStream::connect(address).expect("a connection");
    let connected = client.connect(socket, &format!("{host}:1"), LIMIT);
    (connected, accepting.join().expect("no panic"))
}

#[test]
fn both_directions_at_once_and_their_ends() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let (connected, accepted) = meet(&identity(&ours), &identity(&theirs), "b.test");
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
fn who_is_not_known_is_not_let_in() {
    let (ca, other) = (authority(), authority());
    let (good, server) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let stranger = files("a.test", &other, &ca);
    let impostor = files("b.test", &other, &other);
    let (connected, _) = meet(&identity(&good), &identity(&server), "c.test");
    assert!(matches!(connected, Err(TlsError::Handshake(_))), "another name");
    let (connected, accepted) = meet(&identity(&good), &identity(&impostor), "b.test");
    assert!(connected.is_err() && accepted.is_err(), "an impostor");
    // A stranger learns it only when it hears nothing: its own part of the handshake is over before.
    let (connected, accepted) = meet(&identity(&stranger), &identity(&server), "b.test");
    assert!(matches!(accepted, Err(TlsError::Handshake(_))), "a stranger");
    if let Ok((mut socket, trouble)) = connected {
        assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
        let why = trouble.take();
        assert!(matches!(why, Some(TlsError::Handshake(_))), "{why:?}");
    }
}

#[test]
fn one_that_says_nothing_or_something_else_is_no_peer() {
    let ca = authority();
    let server = identity(&files("b.test", &ca, &ca));
    for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        client.write_all(words).expect("room");
        let accepted = server.accept(listener.accept().expect("a connection").0, Duration::from_millis(200));
        match words {
            b"" => assert!(matches!(accepted, Err(TlsError::TimedOut(_))), "{accepted:?}"),
            _ => assert!(matches!(accepted, Err(TlsError::Handshake(_))), "{accepted:?}"),
        }
    }
}

#[test]
fn a_connection_that_is_cut_is_no_end() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let socket = TcpStream::connect(address).expect("a connection");
    let scissors = socket.try_clone().expect("a socket");
    let (mut connected, trouble) = identity(&ours).connect(socket, "b.test:1", LIMIT).expect("a connection");
    let (mut accepted, _) = accepting.join().expect("no panic").expect("a connection");
    connected.write_all(b"half").expect("room");
    let mut buffer = [0; 8];
    assert_eq!(accepted.read(&mut buffer).expect("bytes"), 4);
    scissors.shutdown(Shutdown::Both).expect("a socket");
    // For the user it is closed in both directions, and nothing hangs.
    assert_eq!(accepted.read(&mut buffer).unwrap_or(0), 0);
    assert_eq!(connected.read(&mut buffer).unwrap_or(0), 0);
    thread::sleep(Duration::from_millis(50));
    assert!(accepted.write_all(&[0; 1 << 20]).is_err());
    assert!(trouble.take().is_none(), "it was the network");
}

#[test]
fn the_host_of_an_address_is_found() {
    for (address, host) in [
        ("a.test:8637", "a.test"),
        ("192.0.2.1:8637", "192.0.2.1"),
        ("[2001:db8::1]:8637", "2001:db8::1"),
    ] {
        assert_eq!(identity::host_of(address), host);
    }
}

#[test]
fn files_that_are_none_are_named() {
    let ca = authority();
    let good = files("a.test", &ca, &ca);
    let other = files("b.test", &ca, &ca);
    let error = |path: &Path| Identity::load(path).expect_err("a refusal").to_string();
    std::fs::copy(other.path().join("key.pem"), good.path().join("key.pem")).expect("a file");
    assert!(
        matches!(Identity::load(good.path()), Err(TlsError::Identity(_))),
        "another's key"
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

/// A client that sends its last words of the handshake and its first of the conversation at once, as a quick one does.
fn talk_at_once(directory: &TempDir, address: SocketAddr, words: &[u8]) -> (TcpStream, ClientConnection) {
    let mut socket = TcpStream::connect(address).expect("a connection");
    let name = ServerName::try_from("b.test").expect("a name");
    let config = identity(directory).client_config();
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
fn words_that_come_with_the_end_of_the_handshake_are_heard() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, LIMIT));
    let talking = talk_at_once(&ours, address, b"hello");
    let (mut accepted, _) = accepting.join().expect("no panic").expect("a connection");
    accepted.set_read_timeout(Some(LIMIT)).expect("a time-out");
    let mut heard = [0; 5];
    accepted.read_exact(&mut heard).expect("words");
    assert_eq!(&heard, b"hello");
    drop(talking);
}

#[test]
fn a_peer_that_keeps_its_end_open_is_left() {
    let ca = authority();
    let (ours, theirs) = (files("a.test", &ca, &ca), files("b.test", &ca, &ca));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = identity(&theirs);
    let limit = Duration::from_millis(300);
    let accepting = thread::spawn(move || server.accept(listener.accept().expect("a connection").0, limit));
    let (mut socket, _client) = talk_at_once(&ours, address, b"");
    drop(accepting.join().expect("no panic").expect("a connection"));
    // It says goodbye, waits for ours for a while, and goes.
    socket.set_read_timeout(Some(LIMIT)).expect("a time-out");
    let mut rest = Vec::new();
    let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
    assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
}

#[test]
fn of_those_who_are_certified_only_the_allowed_names_are_let_in() {
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
        // The one who is connected to chooses, and so does the one who connects.
        let server = allowing(&other, names).expect("an identity");
        let (connected, accepted) = meet(&identity(&ours), &server, "b.test");
        assert_eq!(accepted.is_ok(), good, "{names:?}");
        if let (Ok((mut socket, trouble)), false) = (connected, good) {
            assert_eq!(socket.read(&mut [0]).unwrap_or(0), 0);
            assert!(matches!(trouble.take(), Some(TlsError::Handshake(_))), "it is told");
        }
        let client = allowing(&other, names).expect("an identity");
        let (connected, _) = meet(&client, &identity(&ours), "a.test");
        assert_eq!(connected.is_ok(), good, "{names:?}");
    }
    assert!(matches!(allowing(&ours, &["a b"]), Err(TlsError::Name(_))));
}

#[test]
fn files_that_should_be_looked_after_are_warned_about() {
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
        // A server's certificate is looked at, too.
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
