// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest moves from a host with a vmemctl of the version before.

use std::net::{TcpListener, TcpStream};
use std::panic::{catch_unwind, resume_unwind};
use std::thread;

use super::*;
use crate::previous::{self, SESSION, Side};
use crate::receive::listener::IncomingConnection;

#[test]
fn guest_moves_from_a_source_of_the_version_before() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut listener = Listener::open(listener, Security::Loopback).expect("a listener");
    let signals = Signals::default();
    let over = signals.clone();
    let source = thread::spawn(move || {
        let connect = || TcpStream::connect(address).expect("a connection");
        let played = catch_unwind(|| previous::play(Side::Source, connect));
        // If the source has ended too early, the destination need not wait for it.
        over.raise();
        played
    });
    let offered = listener.wait_for(Duration::from_secs(20));
    let Some(IncomingConnection::Guest(channel, offer)) = offered else {
        panic!("no offer: {:?}", source.join())
    };
    let mut scene = scene(Phase::Prepared, "paused", "completed");
    assert_eq!(offer.session, SESSION);
    assert_eq!((offer.guest.as_str(), offer.source.as_str()), ("guest0", "127.0.0.1:8636"));
    assert_eq!(offer.memory, scene.incoming.record.memory);
    let (state, _qemu) = UnixStream::pair().expect("sockets");
    let (incoming, report) = (&mut scene.incoming, Report::new(true));
    (incoming.owner, incoming.due) = (Owner::new(State::Prepared), &[]);
    (incoming.channel, incoming.state) = (Some(channel), Some(state));
    incoming.signals = signals.clone();
    incoming.send_ready(&report).expect("room");
    assert_eq!(scene.finish_on(&mut listener), State::Running);
    assert_eq!(scene.qemu.state().status, "running");
    let Scene {
        directory, mut incoming, ..
    } = scene;
    let channel = incoming.channel.as_ref().expect("a connection");
    channel.send(&previous::of_destination("pages")).expect("room");
    for event in [Event::Complete, Event::Recorded] {
        incoming.owner.on(event).expect("a row");
    }
    let last = incoming.into_final_message(previous::of_destination("complete"));
    let sent = last.send(&mut listener, &report, &signals);
    source.join().expect("no panic").unwrap_or_else(|panic| resume_unwind(panic));
    sent.expect("the source has heard it");
    assert!(!directory.path().join("in.guest0/record").exists());
}
