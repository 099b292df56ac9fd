// SPDX-License-Identifier: GPL-2.0-or-later
//! The client against a scripted QEMU.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use super::*;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// A QEMU that sends its greeting and answers each line with the next of `answers`. The thread returns the commands that it received.
pub(crate) fn qemu(answers: &'static [&'static str]) -> (UnixStream, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let thread = thread::spawn(move || {
        let mut commands = Vec::new();
        let mut out = theirs.try_clone().expect("a socket");
        writeln!(out, "{GREETING}").expect("room");
        let mut lines = BufReader::new(theirs).lines();
        for answer in ["{\"return\": {}}"].iter().chain(answers) {
            let Some(Ok(line)) = lines.next() else { break };
            commands.push(serde_json::from_str(&line).expect("JSON"));
            writeln!(out, "{answer}").expect("room");
        }
        commands
    });
    (ours, thread)
}

#[test]
fn commands_are_sent_with_ids_and_their_results_returned() {
    let (socket, thread) = qemu(&[r#"{"return": {"status": "running"}}"#, r#"{"return": []}"#]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    let status = qmp.execute("query-status", json!({})).expect("a status");
    assert_eq!(status, json!({"status": "running"}));
    qmp.execute("stop", json!({"a": 1})).expect("a reply");
    let commands = thread.join().expect("no panic");
    assert_eq!(commands[0]["execute"], "qmp_capabilities");
    assert_eq!(commands[2], json!({"execute": "stop", "arguments": {"a": 1}, "id": 3}));
}

#[test]
fn event_between_command_and_reply_is_queued() {
    let (socket, _thread) = qemu(&[
        "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}, \"timestamp\": {\"seconds\": 7, \"microseconds\": 250000}}\n{\"return\": {}}",
        "never asked for",
    ]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    qmp.execute("migrate", json!({})).expect("a reply");
    let now = Instant::now();
    let event = qmp.next_event(now).expect("a connection").expect("an event");
    assert_eq!((event.name.as_str(), event.data, event.time), ("STOP", Value::Null, None));
    let event = qmp.next_event(now).expect("a connection").expect("an event");
    assert_eq!(event.data["status"], "active");
    assert_eq!(event.time, Some(Duration::from_millis(7250)));
    assert!(
        qmp.next_event(Instant::now() + Duration::from_millis(10))
            .is_ok_and(|event| event.is_none())
    );
}

#[test]
fn late_reply_is_not_taken_for_that_of_the_next_command() {
    let (socket, _thread) = qemu(&["{\"return\": {\"late\": true}, \"id\": 1}\n{\"return\": {}, \"id\": 2}"]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    assert_eq!(qmp.execute("query-status", json!({})).expect("a reply"), json!({}));
}

#[test]
fn late_reply_does_not_end_the_wait_for_an_event() {
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    writeln!(theirs, "{GREETING}\n{{\"return\": {{}}, \"id\": 1}}").expect("room");
    let mut qmp = Qmp::new(ours, Duration::from_millis(100)).expect("a QEMU");
    assert!(matches!(qmp.execute("stop", json!({})), Err(Error::TimedOut { .. })));
    assert!(matches!(qmp.execute("cont", json!({})), Err(Error::TimedOut { .. })));
    for late in [
        r#"{"return": {}, "id": 2}"#,
        r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 3}"#,
        r#"{"event": "STOP", "timestamp": {}}"#,
    ] {
        writeln!(theirs, "{late}").expect("room");
    }
    let event = qmp
        .next_event(Instant::now() + LIMIT)
        .expect("a connection")
        .expect("an event");
    assert_eq!(event.name, "STOP");
    let late = r#"{"return": {}, "id": 3}"#;
    writeln!(theirs, "{late}").expect("room");
    let none = qmp
        .next_event(Instant::now() + Duration::from_millis(10))
        .expect("a connection");
    assert_eq!(none, None);
}

#[test]
fn refusal_has_the_description_of_qemu() {
    let (socket, _thread) = qemu(&[r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    let error = qmp.execute("qom-get", json!({})).expect_err("a refusal");
    assert_eq!(error.to_string(), "QEMU refuses qom-get: no such thing");
}

#[test]
fn send_fd_passes_the_file_with_getfd() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let (given, mut other) = UnixStream::pair().expect("sockets");
    let thread = thread::spawn(move || {
        let mut out = theirs.try_clone().expect("a socket");
        writeln!(
            out,
            "{GREETING}\n{{\"return\": {{}}, \"id\": 1}}\n{{\"return\": {{}}, \"id\": 2}}"
        )
        .expect("room");
        let mut files = Vec::new();
        let mut text = Vec::new();
        while text.iter().filter(|byte| **byte == b'\n').count() < 2 {
            let mut bytes = [0; 256];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut with = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg(&theirs, &mut pieces, &mut with, RecvFlags::empty()).expect("a message");
            for message in with.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    files.extend(rights);
                }
            }
            text.extend_from_slice(&bytes[..got.bytes]);
        }
        (files, String::from_utf8(text).expect("text"))
    });
    let mut qmp = Qmp::new(ours, LIMIT).expect("a QEMU");
    qmp.send_fd("state", &given).expect("a reply");
    drop(given);
    let (mut files, text) = thread.join().expect("no panic");
    assert!(text.contains(r#""arguments":{"fdname":"state"},"execute":"getfd""#), "{text}");
    assert_eq!(files.len(), 1);
    let mut file = UnixStream::from(files.remove(0));
    writeln!(file, "through").expect("room");
    drop(file);
    let mut through = String::new();
    other.read_to_string(&mut through).expect("the end");
    assert_eq!(through, "through\n");
}

#[test]
fn silent_qemu_times_out_and_ended_qemu_is_closed() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    assert!(matches!(
        Qmp::new(ours, Duration::from_millis(50)),
        Err(Error::TimedOut { .. })
    ));
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    drop(theirs);
    assert!(matches!(Qmp::new(ours, LIMIT), Err(Error::Closed)));
    let (socket, thread) = qemu(&[]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    thread.join().expect("no panic");
    assert!(matches!(qmp.execute("stop", json!({})), Err(Error::Closed)));
}

#[test]
fn full_backlog_times_out_and_missing_socket_cannot_connect() {
    let path = std::env::temp_dir().join(format!("vmem-qemu-test.{}", std::process::id()));
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
    let address = SockAddr::unix(&path).expect("an address");
    listener.bind(&address).expect("a path");
    listener.listen(0).expect("a socket");
    let _first = UnixStream::connect(&path).expect("room for one");
    let second = Qmp::connect(&path, Duration::from_millis(50));
    std::fs::remove_file(&path).expect("a file");
    assert!(matches!(second, Err(Error::TimedOut { .. })));
    assert!(matches!(Qmp::connect(&path, LIMIT), Err(Error::Connect { .. })));
}

#[test]
fn peer_without_qmp_greeting_is_refused() {
    for line in ["hello", "{}", "[1]"] {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        writeln!(theirs, "{line}").expect("room");
        assert!(matches!(Qmp::new(ours, LIMIT), Err(Error::NotQmp(_))), "{line}");
    }
}
