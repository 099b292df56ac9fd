// SPDX-License-Identifier: GPL-2.0-or-later
//! Authorities in directories, and hosts that accept each other by them.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vmem_tls::Identity;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// An authority in a directory that lives as long as the test.
struct Rig {
    authority: Authority,
    directory: PathBuf,
    _parent: TempDir,
}

impl Rig {
    fn new() -> Self {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("authority");
        Self {
            authority: Authority::create(&directory, "an authority", 30).expect("an authority"),
            directory,
            _parent: parent,
        }
    }

    fn add(&self, host: &str, names: &[&str]) -> Certificate {
        self.authority.add_host(host, &parse(names), 10).expect("a certificate")
    }

    fn identity(&self, host: &str) -> Identity {
        Identity::load(&self.directory.join(host)).expect("an identity")
    }
}

fn parse(names: &[&str]) -> Vec<HostName> {
    names.iter().map(|name| name.parse().expect("a name")).collect()
}

/// The results of a client that connects to `host`, and of the server.
fn handshake(client: &Identity, server: &Identity, host: &str) -> (Result<(), vmem_tls::Error>, Result<(), vmem_tls::Error>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::scope(|scope| {
        let accepted = scope.spawn(|| server.accept(listener.accept().expect("a connection").0, LIMIT).map(drop));
        let socket = TcpStream::connect(address).expect("a connection");
        let connected = client.connect(socket, &format!("{host}:1"), LIMIT).map(drop);
        (connected, accepted.join().expect("no panic"))
    })
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("a file").permissions().mode() & 0o777
}

#[test]
fn hosts_of_one_authority_accept_each_other_by_each_of_their_names() {
    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    rig.add("beta", &["beta", "beta.example.org", "192.0.2.2", "2001:db8::2"]);
    let (alpha, beta) = (rig.identity("alpha"), rig.identity("beta"));
    for host in ["beta", "beta.example.org", "192.0.2.2", "[2001:db8::2]"] {
        let (connected, accepted) = handshake(&alpha, &beta, host);
        assert!(connected.is_ok() && accepted.is_ok(), "{host}: {connected:?} {accepted:?}");
    }
    let (connected, _) = handshake(&alpha, &beta, "192.0.2.3");
    assert!(matches!(connected, Err(vmem_tls::Error::Handshake(_))), "{connected:?}");
}

#[test]
fn hosts_of_another_authority_are_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    rig.add("alpha", &["alpha"]);
    other.add("beta", &["beta"]);
    let (connected, accepted) = handshake(&rig.identity("alpha"), &other.identity("beta"), "beta");
    assert!(connected.is_err() && accepted.is_err());
}

#[test]
fn only_the_owner_reads_keys_and_the_directories() {
    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    for (path, expected) in [
        ("", 0o700),
        ("ca.pem", 0o644),
        ("ca-key.pem", 0o600),
        ("alpha", 0o700),
        ("alpha/ca.pem", 0o644),
        ("alpha/cert.pem", 0o644),
        ("alpha/key.pem", 0o600),
    ] {
        assert_eq!(mode(&rig.directory.join(path)), expected, "{path}");
    }
    assert!(
        rig.identity("alpha")
            .warnings()
            .iter()
            .all(|warning| !warning.contains("key.pem"))
    );
    let names = |directory: &Path| fs::read_dir(directory).expect("a directory").count();
    assert_eq!(
        (names(&rig.directory), names(&rig.directory.join("alpha"))),
        (3, 3),
        "nothing is left over"
    );
}

#[test]
fn an_opened_authority_goes_on() {
    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    let opened = Authority::open(&rig.directory).expect("an authority");
    opened.add_host("beta", &parse(&["beta"]), 10).expect("a certificate");
    let (connected, accepted) = handshake(&rig.identity("alpha"), &rig.identity("beta"), "beta");
    assert!(connected.is_ok() && accepted.is_ok());
    let hosts: Vec<String> = opened.hosts().expect("hosts").into_iter().map(|host| host.name).collect();
    assert_eq!(hosts, ["alpha", "beta"]);
}

#[test]
fn a_renewed_certificate_has_the_key_and_the_names_of_the_old_one() {
    let rig = Rig::new();
    let names = ["alpha", "192.0.2.1"];
    let old = rig.add("alpha", &names);
    rig.add("beta", &["beta"]);
    let path = rig.directory.join("alpha/cert.pem");
    let before = fs::read(&path).expect("a certificate");
    // The key is at the host alone.
    let key = rig.directory.join("alpha/key.pem");
    let away = rig.directory.join("key");
    fs::rename(&key, &away).expect("a file");
    let renewed = rig.authority.renew("alpha", 20).expect("a certificate");
    fs::rename(&away, &key).expect("a file");
    assert_ne!(fs::read(&path).expect("a certificate"), before);
    assert_eq!(renewed.names(), parse(&names));
    assert!(renewed.not_after() - old.not_after() > time::Duration::days(9));
    let serial = |certificate: &Certificate| {
        certificate
            .parsed(|parsed| parsed.raw_serial().to_vec())
            .expect("a certificate")
    };
    assert_ne!(serial(&renewed), serial(&old));
    let (connected, accepted) = handshake(&rig.identity("beta"), &rig.identity("alpha"), "192.0.2.1");
    assert!(connected.is_ok() && accepted.is_ok());
}

#[test]
fn no_certificate_outlives_its_authority() {
    let rig = Rig::new();
    let certificate = rig
        .authority
        .add_host("alpha", &parse(&["alpha"]), 365)
        .expect("a certificate");
    assert_eq!(certificate.not_after(), rig.authority.certificate().not_after());
}

#[test]
fn what_exists_is_not_replaced() {
    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    let (authority, host) = (rig.directory.join("ca.pem"), rig.directory.join("alpha/cert.pem"));
    let before = [&authority, &host].map(|path| fs::read(path).expect("a certificate"));
    let again = Authority::create(&rig.directory, "another authority", 30).map(drop);
    assert!(matches!(again, Err(Error::Exists(_))), "{again:?}");
    let again = rig.authority.add_host("alpha", &parse(&["alpha"]), 10);
    assert!(matches!(again, Err(Error::Exists(_))), "{again:?}");
    assert_eq!([&authority, &host].map(|path| fs::read(path).expect("a certificate")), before);
}

#[test]
fn a_certificate_of_another_authority_is_not_renewed() {
    let (rig, other) = (Rig::new(), Rig::new());
    rig.add("alpha", &["alpha"]);
    other.add("alpha", &["alpha"]);
    let (ours, theirs) = (rig.directory.join("alpha/cert.pem"), other.directory.join("alpha/cert.pem"));
    fs::copy(&theirs, &ours).expect("a copy");
    let renewed = rig.authority.renew("alpha", 10);
    assert!(matches!(renewed, Err(Error::Foreign(_))), "{renewed:?}");
    assert_eq!(
        fs::read(&ours).expect("a certificate"),
        fs::read(&theirs).expect("a certificate")
    );
}

#[test]
fn a_certificate_with_names_of_other_kinds_is_not_renewed() {
    use rcgen::{CertificateParams, Issuer, KeyPair, SanType};

    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    let text = |file: &str| fs::read_to_string(rig.directory.join(file)).expect("a file");
    let key = KeyPair::from_pem(&text("ca-key.pem")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&text("ca.pem"), key).expect("an issuer");
    let mut params = CertificateParams::new(vec!["alpha".to_owned()]).expect("parameters");
    let other = SanType::URI("spiffe://alpha".try_into().expect("a URI"));
    params.subject_alt_names.push(other);
    let made = params
        .signed_by(&KeyPair::generate().expect("a key"), &issuer)
        .expect("a certificate");
    fs::write(rig.directory.join("alpha/cert.pem"), made.pem()).expect("a file");
    let renewed = rig.authority.renew("alpha", 10);
    assert!(matches!(renewed, Err(Error::OtherNames(_))), "{renewed:?}");
}

#[test]
fn a_long_name_of_a_host_is_a_name_of_its_certificate() {
    let rig = Rig::new();
    let long = format!("{}.example.org", "a".repeat(60));
    assert_eq!(rig.add(&long, &[&long]).names(), parse(&[&long]));
}

#[test]
fn a_key_of_another_authority_is_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    fs::copy(other.directory.join("ca-key.pem"), rig.directory.join("ca-key.pem")).expect("a copy");
    let opened = Authority::open(&rig.directory).map(drop);
    assert!(matches!(opened, Err(Error::File { .. })), "{opened:?}");
}

#[test]
fn files_that_are_damaged_or_missing_are_errors() {
    let rig = Rig::new();
    rig.add("alpha", &["alpha"]);
    let cert = rig.directory.join("alpha/cert.pem");
    let whole = fs::read_to_string(&cert).expect("a certificate");
    for damaged in ["", "no certificate", &whole[..whole.len() / 2], &whole.replace('M', "!")] {
        fs::write(&cert, damaged).expect("a file");
        let renewed = rig.authority.renew("alpha", 10);
        assert!(matches!(renewed, Err(Error::File { .. })), "{damaged:?}: {renewed:?}");
    }
    let renewed = rig.authority.renew("beta", 10);
    assert!(matches!(renewed, Err(Error::Read { .. })), "{renewed:?}");
    rig.add("gamma", &["gamma"]);
    let hosts = rig.authority.hosts().expect("hosts");
    let states: Vec<_> = hosts
        .iter()
        .map(|host| (host.name.as_str(), host.certificate.is_ok()))
        .collect();
    assert_eq!(states, [("alpha", false), ("gamma", true)], "the others are still listed");
    fs::write(rig.directory.join("ca-key.pem"), [0xff; 40]).expect("a file");
    let opened = Authority::open(&rig.directory).map(drop);
    assert!(matches!(opened, Err(Error::File { .. })), "{opened:?}");
}

#[test]
fn names_that_no_certificate_can_have_are_refused() {
    let long = format!("{}.org", "a".repeat(64));
    for bad in [
        "",
        ".",
        "a..b",
        "../a",
        "a/b",
        "-a",
        "a-",
        "*.example.org",
        "a b",
        "ä",
        "192.0.2",
        "1",
        &long,
    ] {
        assert!(matches!(bad.parse::<HostName>(), Err(Error::Name(_))), "{bad:?}");
    }
    let rig = Rig::new();
    for host in ["192.0.2.1", "..", ""] {
        let added = rig.authority.add_host(host, &parse(&["alpha"]), 10);
        assert!(matches!(added, Err(Error::Host(_))), "{host:?}: {added:?}");
    }
    for name in [String::new(), "a".repeat(65)] {
        let made = Authority::create(&rig.directory.join("another"), &name, 10).map(drop);
        assert!(matches!(made, Err(Error::AuthorityName(_))), "{made:?}");
    }
    let added = rig.authority.add_host("alpha", &[], 10);
    assert!(matches!(added, Err(Error::NoNames)), "{added:?}");
    for days in [0, 36_501, u32::MAX] {
        let added = rig.authority.add_host("alpha", &parse(&["alpha"]), days);
        assert!(matches!(added, Err(Error::Days(_))), "{days}: {added:?}");
    }
    assert!(!rig.directory.join("alpha").exists());
}
