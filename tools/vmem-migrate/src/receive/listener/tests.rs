// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections that send nothing, and sources that send nothing or a wrong message.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Instant;

use super::*;
use crate::message::Backend;

const SESSION: &str = "0123456789abcdef0123456789abcdef";

/// More connections than there are slots.
const MANY: usize = 2 * PLACES;

fn open(address: &str) -> (Listener, SocketAddr) {
    open_as(Security::Insecure, address)
}

fn open_as(security: Security, address: &str) -> (Listener, SocketAddr) {
    let address: SocketAddr = address.parse().expect("an address");
    let listener = TcpListener::bind(address).expect("a port");
    let address = listener.local_addr().expect("an address");
    (Listener::open(listener, security).expect("a listener"), address)
}

fn connect(to: SocketAddr, session: &str, purpose: Purpose) -> Channel {
    connect_as(&Security::Loopback, to, session, purpose)
}

fn connect_as(security: &Security, to: SocketAddr, session: &str, purpose: Purpose) -> Channel {
    security.connect(&to.to_string(), session, purpose).expect("a welcome")
}

/// TLS with a new authority, and a certificate for 127.0.0.1.
fn certified() -> Security {
    use clap::Parser;
    let directory = tempfile::tempdir().expect("a directory");
    vmem_tls::testing::write(&["127.0.0.1"], directory.path());
    let path = directory.path().to_str().expect("a path");
    let words = ["vmemctl", "--tls", path, "forget", "guest0"];
    Security::new(&crate::options::cli::Cli::parse_from(words).common).expect("an identity")
}

fn offer(export: &str) -> FromSource {
    FromSource::Offer {
        guest: "guest0".to_owned(),
        key: None,
        memory: vec![Backend {
            id: "ram".to_owned(),
            bytes: 4096,
            export: export.to_owned(),
        }],
        pages: "8636".to_owned(),
        release: false,
        rounds: false,
        verify: false,
        streams: None,
        compress: None,
    }
}

fn good() -> FromSource {
    offer(&format!("ram.0.{}", &SESSION[..16]))
}

fn wait(listener: &mut Listener) -> Offer {
    match listener.wait_for(Duration::from_secs(10)) {
        Some(IncomingConnection::Guest(_, offer)) => offer,
        _ => panic!("no guest"),
    }
}

#[test]
fn silent_connections_do_not_block_a_source() {
    lets_the_source_in(Security::Loopback);
}

#[test]
fn connections_without_certificate_do_not_block_a_source() {
    lets_the_source_in(certified());
}

fn lets_the_source_in(security: Security) {
    let (mut listener, address) = open_as(security.clone(), "127.0.0.1:0");
    let mut silent: Vec<TcpStream> = (0..MANY)
        .map(|_| TcpStream::connect(address).expect("a connection"))
        .collect();
    let source = connect_as(&security, address, SESSION, Purpose::Migrate);
    source.send(&good()).expect("room");
    wait(&mut listener);
    // The oldest connection was closed for the newest one, long before its time limit.
    let first = &mut silent[0];
    first.set_read_timeout(Some(TIMEOUT / 2)).expect("a socket");
    assert_eq!(first.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn failed_accept_is_retried_after_a_pause() {
    const ERRORS: usize = 3;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let tries = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&tries);
    let accept = move || {
        let mut tries = noted.lock().expect("no panic");
        tries.push(Instant::now());
        if tries.len() <= ERRORS {
            return Err(rustix::io::Errno::MFILE.into());
        }
        drop(tries);
        Ok(listener.accept()?.0)
    };
    let mut listener = Listener::with(accept, Security::Loopback).expect("a listener");
    connect(address, SESSION, Purpose::Migrate).send(&good()).expect("room");
    wait(&mut listener);
    let tries = tries.lock().expect("no panic").clone();
    let pauses: Vec<_> = tries.windows(2).take(ERRORS).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses.len() == ERRORS && pauses.iter().all(|pause| *pause >= PAUSE),
        "{pauses:?}"
    );
}

#[test]
fn sources_without_offer_do_not_block_another_source() {
    let (mut listener, address) = open("127.0.0.1:0");
    let began = Instant::now();
    let _silent: Vec<Channel> = (0..MANY).map(|_| connect(address, SESSION, Purpose::Migrate)).collect();
    connect(address, SESSION, Purpose::Migrate).send(&good()).expect("room");
    wait(&mut listener);
    assert!(began.elapsed() < OFFER / 2);
}

#[test]
fn invalid_offer_is_refused_and_the_next_is_taken() {
    let (mut listener, address) = open("127.0.0.1:0");
    for bogus in [offer("ram"), FromSource::Start] {
        let mut source = connect(address, SESSION, Purpose::Migrate);
        source.send(&bogus).expect("room");
        let answer = source.recv_within::<FromDestination>(TIMEOUT);
        assert!(!matches!(answer, Ok(FromDestination::Ready { .. })), "{answer:?}");
    }
    assert!(listener.poll().is_none());
    connect(address, SESSION, Purpose::Migrate).send(&good()).expect("room");
    wait(&mut listener);
}

#[test]
fn second_offer_is_refused() {
    let (mut listener, address) = open("127.0.0.1:0");
    let (first, mut second) = (
        connect(address, SESSION, Purpose::Migrate),
        connect(address, SESSION, Purpose::Migrate),
    );
    first.send(&good()).expect("room");
    wait(&mut listener);
    second.send(&good()).expect("room");
    let answer = second.recv_within(TIMEOUT).expect("an answer");
    assert!(matches!(answer, FromDestination::Failed { reason } if reason.contains("another guest")));
    let third = Security::Loopback.connect(&address.to_string(), SESSION, Purpose::Migrate);
    assert!(third.is_err(), "and so is a third one, at once");
}

/// The certificate of the source's vmemd must have this address, too.
#[test]
fn ipv4_source_on_an_ipv6_socket_has_its_ipv4_address() {
    for security in [Security::Insecure, certified()] {
        let (mut listener, address) = open_as(security.clone(), "[::]:0");
        let address = SocketAddr::from(([127, 0, 0, 1], address.port()));
        let source = connect_as(&security, address, SESSION, Purpose::Migrate);
        source.send(&good()).expect("room");
        assert_eq!(wait(&mut listener).source, "127.0.0.1:8636");
    }
}
