// SPDX-License-Identifier: GPL-2.0
//! The client against a QEMU that says what it is told to.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// A QEMU that greets, and then answers each line with the next of `answers`; gives the commands that it got.
fn qemu(answers: &'static [&'static str]) -> (UnixStream, JoinHandle<Vec<Value>>) {
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
fn commands_are_carried_out_one_after_the_other() {
    let (socket, thread) = qemu(&[r#"{"return": {"status": "running"}}"#, r#"{"return": []}"#]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    let status = qmp.run("query-status", json!({})).expect("a status");
    assert_eq!(status, json!({"status": "running"}));
    qmp.run("stop", json!({"a": 1})).expect("a reply");
    let commands = thread.join().expect("no panic");
    assert_eq!(commands[0]["execute"], "qmp_capabilities");
    assert_eq!(commands[2], json!({"execute": "stop", "arguments": {"a": 1}, "id": 3}));
}

#[test]
fn events_wait_until_they_are_asked_for() {
    let (socket, _thread) = qemu(&[
        "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"event\": \"MIGRATION\", \"data\": {\"status\": \"active\"}}\n{\"return\": {}}",
        "never asked for",
    ]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    qmp.run("migrate", json!({})).expect("a reply");
    let now = Instant::now();
    let event = qmp.event(now).expect("a connection").expect("an event");
    assert_eq!((event.name.as_str(), event.data), ("STOP", Value::Null));
    let event = qmp.event(now).expect("a connection").expect("an event");
    assert_eq!(event.data["status"], "active");
    assert!(
        qmp.event(Instant::now() + Duration::from_millis(10))
            .is_ok_and(|event| event.is_none())
    );
}

#[test]
fn a_late_reply_is_not_taken_for_another() {
    let (socket, _thread) = qemu(&["{\"return\": {\"late\": true}, \"id\": 1}\n{\"return\": {}, \"id\": 2}"]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    assert_eq!(qmp.run("query-status", json!({})).expect("a reply"), json!({}));
}

#[test]
fn late_reply_is_not_taken_for_the_end_while_events_are_waited_for() {
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    writeln!(theirs, "{GREETING}\n{{\"return\": {{}}, \"id\": 1}}").expect("room");
    let mut qmp = Qmp::new(ours, Duration::from_millis(100)).expect("a QEMU");
    assert!(matches!(qmp.run("stop", json!({})), Err(QmpError::TimedOut { .. })));
    assert!(matches!(qmp.run("cont", json!({})), Err(QmpError::TimedOut { .. })));
    for late in [
        r#"{"return": {}, "id": 2}"#,
        r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 3}"#,
        r#"{"event": "STOP", "timestamp": {}}"#,
    ] {
        writeln!(theirs, "{late}").expect("room");
    }
    let event = qmp.event(Instant::now() + LIMIT).expect("a connection").expect("an event");
    assert_eq!(event.name, "STOP");
    let late = r#"{"return": {}, "id": 3}"#;
    writeln!(theirs, "{late}").expect("room");
    let none = qmp.event(Instant::now() + Duration::from_millis(10)).expect("a connection");
    assert_eq!(none, None);
}

#[test]
fn a_refusal_has_qemu_s_words() {
    let (socket, _thread) = qemu(&[r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    let error = qmp.run("qom-get", json!({})).expect_err("a refusal");
    assert_eq!(error.to_string(), "QEMU refuses qom-get: no such thing");
}

#[test]
fn a_file_is_given_with_its_name() {
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
    qmp.give("state", &given).expect("a reply");
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
fn silence_and_the_end_are_told_apart() {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    assert!(matches!(
        Qmp::new(ours, Duration::from_millis(50)),
        Err(QmpError::TimedOut { .. })
    ));
    drop(theirs);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    drop(theirs);
    assert!(matches!(Qmp::new(ours, LIMIT), Err(QmpError::Closed)));
    let (socket, thread) = qemu(&[]);
    let mut qmp = Qmp::new(socket, LIMIT).expect("a QEMU");
    thread.join().expect("no panic");
    assert!(matches!(qmp.run("stop", json!({})), Err(QmpError::Closed)));
}

#[test]
fn a_socket_that_nobody_is_let_in_at_is_not_waited_for() {
    let path = std::env::temp_dir().join(format!("vmem-qmp-test.{}", std::process::id()));
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
    let address = SockAddr::unix(&path).expect("an address");
    listener.bind(&address).expect("a path");
    listener.listen(0).expect("a socket");
    let _first = UnixStream::connect(&path).expect("room for one");
    let second = Qmp::connect(&path, Duration::from_millis(50));
    std::fs::remove_file(&path).expect("a file");
    assert!(matches!(second, Err(QmpError::TimedOut { .. })));
    assert!(matches!(Qmp::connect(&path, LIMIT), Err(QmpError::Connect { .. })));
}

#[test]
fn other_programs_are_no_qemu() {
    for line in ["hello", "{}", "[1]"] {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        writeln!(theirs, "{line}").expect("room");
        assert!(matches!(Qmp::new(ours, LIMIT), Err(QmpError::NotQmp(_))), "{line}");
    }
}
