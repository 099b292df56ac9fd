// SPDX-License-Identifier: GPL-2.0-or-later
//! Daemons that are late, that send what they should not, or that are strangers.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use tempfile::TempDir;
use vmem_process::Identity;

use super::caller::HELLO;
use super::*;
use crate::credentials::own_user;
use crate::event::Region;
use crate::message::{Duty, LONGEST_REPLY};
use crate::socket;

const LONG: Duration = Duration::from_secs(20);

/// A client of a peer that accepts a connection and does this with it.
fn of_peer(peer: impl FnOnce(UnixStream) + Send + 'static) -> Result<Client, Error> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = socket::bind(&path).expect("a socket");
    thread::spawn(move || peer(listener.accept().expect("a client").0));
    Client::connect(&path, LONG)
}

fn say_hello(mut socket: &UnixStream) {
    socket.write_all(hello().as_bytes()).expect("room");
}

/// Writes until nobody reads.
fn flood(mut socket: &UnixStream, bytes: &[u8]) {
    while socket.write_all(bytes).is_ok() {}
}

#[test]
fn peer_that_sends_an_endless_line_ends_the_conversation() {
    let refused = of_peer(|socket| flood(&socket, &[b'x'; 4096]));
    assert!(
        matches!(&refused, Err(Error::TooLong { longest: LONGEST_REPLY, beginning }) if beginning.len() == 80),
        "{refused:?}"
    );
    let mut client = of_peer(|socket| {
        say_hello(&socket);
        flood(&socket, &[b'x'; 4096]);
    })
    .expect("HELLO");
    let error = client.event(Instant::now() + LONG).expect_err("no event");
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn events_that_wait_for_an_answer_are_bounded() {
    let mut client = of_peer(|socket| {
        say_hello(&socket);
        let regions = vec![
            Region {
                name: "x".repeat(31),
                bytes: 0,
                present_bytes: 0,
                unreadable_pages: 0,
                phase: crate::event::Phase::Filling,
                ..Region::default()
            };
            crate::MAX_REGIONS
        ];
        let source = "host".to_owned();
        let line = serde_json::to_string(&Event::Ready { source, regions }).expect("JSON");
        // 8 MiB, and then no answer.
        let line = format!("{line}\n");
        let mut socket = &socket;
        (0..(8 << 20) / line.len()).for_each(|_| socket.write_all(line.as_bytes()).expect("a reader"));
    })
    .expect("HELLO");
    let unanswered = client.status(LONG);
    assert!(matches!(unanswered, Err(Error::Closed)), "{unanswered:?}");
    let mut kept = 0;
    while let Some(event) = client.events.pop() {
        kept += event.size();
    }
    assert!((1 << 20..5 << 20).contains(&kept), "{kept}");
}

#[test]
fn other_process_to_which_the_daemon_has_given_the_connection_is_refused() {
    let mut client = of_peer(|socket| {
        say_hello(&socket);
        let mut other = Command::new("sh");
        other.args(["-c", "echo '{\"event\":\"end\",\"exit_code\":0,\"error\":null}'"]);
        other.stdout(Stdio::from(OwnedFd::from(socket)));
        other.status().expect("a process");
    })
    .expect("HELLO");
    let refused = client.event(Instant::now() + LONG);
    assert!(matches!(refused, Err(Error::Impostor { .. })), "{refused:?}");
}

#[test]
fn daemon_that_does_not_answer_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let _listener = socket::bind(&path).expect("a socket");
    let mut greeting = Greeting::send(&path).expect("it listens");
    let began = Instant::now();
    let answer = greeting.wait(began + Duration::from_millis(50)).expect("a connection");
    assert_eq!(answer, None);
    assert!(began.elapsed() < LONG);
    let limit = Duration::from_millis(50);
    assert!(matches!(Client::connect(&path, limit), Err(Error::TimedOut(_))));
}

/// A daemon that sends `lines` to its first client, whatever that one wants.
fn speaker(lines: &[String]) -> (TempDir, PathBuf, thread::JoinHandle<UnixStream>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = socket::bind(&path).expect("a socket");
    let lines = lines.concat();
    let speaker = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(lines.as_bytes()).expect("room");
        stream
    });
    (directory, path, speaker)
}

fn reply(id: u64, answer: Answer) -> String {
    let reply = serde_json::to_string(&Reply { id, answer }).expect("JSON");
    format!("{reply}\n")
}

fn hello() -> String {
    let hello = Answer::Hello {
        version: 1,
        session: String::new(),
        duty: Duty::Fetch,
        process: Identity::own().expect("this process"),
    };
    reply(HELLO, hello)
}

/// More events of a later version than are read at once.
fn events() -> String {
    "{\"event\":\"later\"}\n".repeat(1000)
}

#[test]
fn events_before_hello_do_not_move_the_time_limit() {
    let (_directory, path, speaker) = speaker(&[events(), hello()]);
    let mut greeting = Greeting::send(&path).expect("it listens");
    let _stream = speaker.join().expect("no panic");
    assert_eq!(greeting.wait(Instant::now()).expect("a connection"), None, "it is late");
    let hello = greeting.wait(Instant::now() + LONG).expect("a connection");
    assert!(hello.is_some(), "nothing is lost");
}

#[test]
fn events_before_an_answer_do_not_move_the_time_limit() {
    let status = reply(2, Answer::Status(Box::default()));
    let (_directory, path, speaker) = speaker(&[hello(), events(), status]);
    let mut client = Client::connect(&path, LONG).expect("a client");
    let _stream = speaker.join().expect("no panic");
    let late = client.status(Duration::ZERO);
    assert!(matches!(late, Err(Error::TimedOut(Duration::ZERO))), "{late:?}");
}

#[test]
fn bytes_of_a_long_line_do_not_move_the_time_limit() {
    let line = format!("{{\"event\":\"later\",\"text\":\"{}\"}}\n", "x".repeat(100_000));
    let (_directory, path, speaker) = speaker(&[line]);
    let greeting = Greeting::send(&path).expect("it listens");
    let _stream = speaker.join().expect("no panic");
    let (_, mut incoming) = greeting.into_parts();
    assert_eq!(incoming.next(Instant::now()).expect("a connection"), None, "it is late");
    let event = incoming.next(Instant::now() + LONG).expect("a connection");
    assert_eq!(event, Some(Message::Event(Event::Unknown)), "nothing is lost");
}

#[test]
fn socket_of_another_user_is_given_no_orders() {
    if own_user() != 0 {
        // Only root can be somebody else.
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("a directory of this user");
    let path = directory.path().join("socket");
    let at = path.clone();
    let other = thread::spawn(move || {
        // Of this thread only.
        let nobody = Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        socket::bind(&at).expect("a socket")
    });
    let _listener = other.join().expect("no panic");
    let refused = Greeting::send(&path);
    assert!(
        matches!(refused, Err(Error::Stranger { uid: 65534, owner: 0 })),
        "{refused:?}"
    );
}
