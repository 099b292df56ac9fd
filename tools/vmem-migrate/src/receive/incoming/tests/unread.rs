// SPDX-License-Identifier: GPL-2.0-or-later
//! The guest arrives although no process reads the output.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::message::{FromSource, Purpose};
use crate::unread;

#[test]
fn guest_arrives_while_output_is_not_read() {
    let test = concat!(module_path!(), "::guest_arrives_while_output_is_not_read");
    unread::run(test, || [true, false].into_iter().for_each(receive_guest));
}

fn receive_guest(json: bool) {
    let mut scene = scene(Phase::Prepared, "paused", "completed");
    let session = scene.incoming.record.session.clone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut listener = Listener::open(listener, Security::Loopback).expect("a listener");
    listener.reserve_guest(&session);
    // `receive` logs each of these invalid connections, and that the source is back.
    for _ in 0..20 {
        let mut stranger = TcpStream::connect(address).expect("a connection");
        stranger.write_all(b"GET / HTTP/1.1\n").expect("room");
    }
    let mut source = Security::Loopback
        .connect(&address.to_string(), &session, Purpose::Recover)
        .expect("a welcome");
    source.send(&FromSource::Commit { run: true }).expect("room");
    scene.incoming.resumed = true;
    let report = Report::new(json);
    report.note("listening");
    scene.incoming.run(&mut listener, &report);
    assert_eq!(scene.incoming.owner.state(), State::Running);
    assert_eq!(scene.noted(), Phase::Running);
    assert_eq!(scene.qemu.state().status, "running");
    let answer = source
        .recv_within::<FromDestination>(Duration::from_secs(10))
        .expect("an answer");
    assert_eq!(answer, FromDestination::Running);
}
