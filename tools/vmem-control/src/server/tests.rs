// SPDX-License-Identifier: GPL-2.0-or-later
//! Clients that behave, and clients that do not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use tempfile::TempDir;

use super::run::CLIENTS;
use super::*;
use crate::client::{Client, Greeting};
use crate::error::ErrorKind;
use crate::event::{Figures, Region, State};
use crate::message::{Answer, LONGEST_REQUEST, Message, Request};
use crate::migration::Migration;
use crate::socket;

const LONG: Duration = Duration::from_secs(20);

/// Less than the server gives a client for HELLO: a connection that is closed by then is closed for another reason.
const PROMPT: Duration = Duration::from_secs(5);

/// What the daemon is told.
#[derive(PartialEq, Eq, Debug)]
enum Order {
    Start,
    Release,
    Stop,
    Set(Change),
    Abort,
    Abandoned,
}

struct Recorder {
    orders: Sender<Order>,
    /// The answers that wait.
    later: Vec<Later>,
}

impl Service for Recorder {
    fn start(&mut self) -> Result<(), Refusal> {
        let _ = self.orders.send(Order::Start);
        Ok(())
    }

    fn release(&mut self) -> Result<(), Refusal> {
        let _ = self.orders.send(Order::Release);
        Err(Refusal::new("not this time"))
    }

    fn stop(&mut self) {
        let _ = self.orders.send(Order::Stop);
    }

    /// The first change waits for the next one, which is refused; one that switches is never answered.
    fn set(&mut self, change: Change, answer: Later) {
        match (change.switch_now, self.later.pop()) {
            (true, _) => drop(answer),
            (false, None) => self.later.push(answer),
            (false, Some(earlier)) => {
                answer.answer(Err(Refusal::new("one at a time")));
                thread::spawn(move || earlier.answer(Ok(())));
            }
        }
        let _ = self.orders.send(Order::Set(change));
    }

    fn abort(&mut self) -> Result<(), Refusal> {
        let _ = self.orders.send(Order::Abort);
        Ok(())
    }

    fn abandoned(&mut self) {
        let _ = self.orders.send(Order::Abandoned);
    }
}

struct Scene {
    _directory: TempDir,
    path: PathBuf,
    server: Server,
    orders: Receiver<Order>,
}

impl Scene {
    fn new() -> Self {
        Self::with(|about| about)
    }

    fn with(change: impl FnOnce(About) -> About) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = socket::bind(&path).expect("a socket");
        let about = change(About::new("0123", Duty::Fetch).expect("this process"));
        let (sender, orders) = channel();
        let server = Server::start(
            listener,
            about,
            Recorder {
                orders: sender,
                later: Vec::new(),
            },
        )
        .expect("a server");
        Self {
            _directory: directory,
            path,
            server,
            orders,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path, LONG).expect("a client")
    }

    /// A connection on which anything can be sent.
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("a connection");
        stream.set_read_timeout(Some(PROMPT)).expect("a socket");
        stream.set_write_timeout(Some(LONG)).expect("a socket");
        stream
    }

    fn heard(&self) -> Order {
        self.orders.recv_timeout(LONG).expect("an order")
    }
}

/// The kind of the error that is on the next line.
fn error_of(reader: &mut impl BufRead) -> ErrorKind {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    match Message::parse(line.as_bytes()) {
        Ok(Message::Reply(reply)) => match reply.answer {
            Answer::Error { kind, .. } => kind,
            other => panic!("{other:?}"),
        },
        other => panic!("{line:?}: {other:?}"),
    }
}

fn is_closed(reader: &mut impl BufRead) -> bool {
    match reader.read_line(&mut String::new()) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn progress(present_bytes: u64) -> Event {
    progress_of(1, present_bytes)
}

/// An event of so many regions.
fn progress_of(regions: usize, present_bytes: u64) -> Event {
    let region = Region {
        name: "ram".to_owned(),
        bytes: 1 << 30,
        present_bytes,
        unreadable_pages: 0,
        phase: crate::event::Phase::Filling,
        ..Region::default()
    };
    Event::Progress(Figures {
        regions: vec![region; regions],
        ..Figures::default()
    })
}

fn next_event(client: &mut Client) -> Event {
    client.event(Instant::now() + LONG).expect("a connection").expect("an event")
}

#[test]
fn requests_reach_the_daemon_and_its_answers_the_client() {
    let scene = Scene::new();
    let mut client = scene.client();
    let hello = client.hello().clone();
    assert_eq!((hello.version, hello.session.as_str(), hello.duty), (1, "0123", Duty::Fetch));
    assert_eq!(hello.process, Identity::own().expect("this process"));
    client.start(LONG).expect("an answer");
    assert_eq!(scene.heard(), Order::Start);
    let refused = client.release(LONG);
    assert!(
        matches!(&refused, Err(Error::Refused { kind: ErrorKind::Refused, text }) if text == "not this time"),
        "{refused:?}"
    );
    assert_eq!(client.status(LONG).expect("a status").state, State::Starting);
}

#[test]
fn later_client_learns_where_the_daemon_stands_and_gets_its_events() {
    let scene = Scene::new();
    let publisher = scene.server.publisher();
    let regions = Vec::new();
    let source = "host".to_owned();
    publisher.publish(Event::Ready { source, regions });
    drop(scene.client());
    let mut client = scene.client();
    client.subscribe(LONG).expect("an answer");
    assert_eq!(client.status(LONG).expect("a status").state, State::Ready);
    publisher.publish(progress(7));
    assert_eq!(next_event(&mut client), progress(7));
    let figures = client.status(LONG).expect("a status").figures.expect("figures");
    assert_eq!(figures.regions[0].present_bytes, 7);
}

#[test]
fn stop_is_answered_when_everything_is_let_go_of() {
    let scene = Scene::new();
    let (mut greeting, mut other) = (Greeting::send(&scene.path).expect("a connection"), scene.client());
    greeting.wait(Instant::now() + LONG).expect("a connection").expect("HELLO");
    let (caller, mut incoming) = greeting.into_parts();
    let id = caller.send(Request::Stop).expect("room");
    assert_eq!(scene.heard(), Order::Stop);
    let early = incoming
        .next(Instant::now() + Duration::from_millis(200))
        .expect("a connection");
    assert_eq!(early, None, "not yet");
    other.subscribe(LONG).expect("an answer");
    let end = Event::End {
        exit_code: 6,
        error: None,
        figures: None,
    };
    scene.server.publisher().publish(end.clone());
    scene.server.finish(true, LONG);
    match incoming.next(Instant::now() + LONG).expect("a connection") {
        Some(Message::Reply(reply)) => assert_eq!((reply.id, reply.answer), (id, Answer::Stopped)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(incoming.next(Instant::now() + LONG), Err(Error::Closed)));
    assert_eq!(next_event(&mut other), end, "the last event is not lost");
}

#[test]
fn stop_of_a_daemon_that_keeps_something_is_not_answered() {
    let scene = Scene::new();
    let mut client = scene.client();
    let asks = thread::spawn(move || client.stop(LONG));
    assert_eq!(scene.heard(), Order::Stop);
    scene.server.finish(false, LONG);
    assert!(matches!(asks.join().expect("no panic"), Err(Error::Closed)));
}

#[test]
fn unknown_request_is_answered_and_the_connection_goes_on() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    stream
        .write_all(b"{\"id\":1,\"request\":\"hello\",\"oldest\":1,\"latest\":9,\"later\":true}\n")
        .expect("room");
    reader.read_line(&mut String::new()).expect("HELLO");
    stream
        .write_all(b"{\"id\":2,\"request\":\"rate\",\"bytes\":7}\n")
        .expect("room");
    assert_eq!(error_of(&mut reader), ErrorKind::UnknownRequest);
    stream.write_all(b"{\"id\":3,\"request\":\"start\"}\n").expect("room");
    assert_eq!(scene.heard(), Order::Start);
}

#[test]
fn garbage_is_answered_and_disturbs_no_other_client() {
    let scene = Scene::new();
    let mut good = scene.client();
    let mut stream = scene.raw();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    for garbage in [
        "GET / HTTP/1.1",
        "",
        "\u{0}\u{1}",
        "{\"id\":-1,\"request\":\"stop\"}",
        "{\"request\":\"stop\"}",
    ] {
        stream.write_all(format!("{garbage}\n").as_bytes()).expect("room");
        assert_eq!(error_of(&mut reader), ErrorKind::Malformed, "{garbage}");
    }
    good.status(LONG).expect("it is there");
    // It does not go on for ever.
    for _ in 0..5 {
        stream.write_all(b"x\n").expect("room");
        assert_eq!(error_of(&mut reader), ErrorKind::Malformed);
    }
    assert!(is_closed(&mut reader));
    good.status(LONG).expect("it is there");
    assert!(scene.orders.try_recv().is_err(), "and nothing was obeyed");
}

#[test]
fn line_without_end_is_refused_and_not_kept() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    // The server may have closed before it has all.
    let _ = stream.write_all(&vec![b'x'; 10 * LONGEST_REQUEST]);
    assert_eq!(error_of(&mut reader), ErrorKind::TooLong);
    assert!(is_closed(&mut reader));
    scene.client().status(LONG).expect("it is there");
}

#[test]
fn version_that_is_not_spoken_is_refused_with_those_that_are() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    stream
        .write_all(b"{\"id\":1,\"request\":\"hello\",\"oldest\":2,\"latest\":9}\n")
        .expect("room");
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut line).expect("a line");
    assert!(line.contains("\"version\"") && line.contains("1 to 1"), "{line}");
    assert!(is_closed(&mut reader));
}

#[test]
fn nothing_is_done_for_who_has_not_said_hello() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    for request in ["start", "release", "stop", "status", "subscribe"] {
        let line = format!("{{\"id\":1,\"request\":\"{request}\"}}\n");
        stream.write_all(line.as_bytes()).expect("room");
        assert_eq!(error_of(&mut reader), ErrorKind::NoHello, "{request}");
    }
    assert!(scene.orders.try_recv().is_err());
}

#[test]
fn process_of_another_user_is_told_that_it_is_refused() {
    if own_user() != 0 {
        // Only root can be somebody else.
        return;
    }
    let scene = Scene::new();
    // As if the directory and the socket let everybody in.
    let directory = scene.path.parent().expect("a directory");
    for (path, mode) in [(directory, 0o755), (scene.path.as_path(), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a file of this user");
    }
    let path = scene.path.clone();
    let other = thread::spawn(move || {
        // Of this thread only.
        let nobody = Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        Client::connect(&path, LONG)
    });
    let refused = other.join().expect("no panic");
    assert!(
        matches!(&refused, Err(Error::Refused { kind: ErrorKind::NotAllowed, text }) if text.contains("65534")),
        "{refused:?}"
    );
    scene.client().status(LONG).expect("root is let in");
}

#[test]
fn client_that_takes_nothing_blocks_nobody_and_loses_events_only() {
    let scene = Scene::new();
    let publisher = scene.server.publisher();
    let mut stalled = scene.client();
    stalled.subscribe(LONG).expect("an answer");
    let mut good = scene.client();
    good.subscribe(LONG).expect("an answer");
    const EVENTS: u64 = 30_000;
    let began = Instant::now();
    for number in 0..EVENTS {
        publisher.publish(progress(number));
        if number % 1000 == 0 {
            while next_event(&mut good) != progress(number) {}
        }
    }
    good.start(LONG).expect("an answer");
    assert_eq!(scene.heard(), Order::Start);
    // A client that takes nothing would hold up each of the events.
    assert!(began.elapsed() < 6 * LONG, "nobody waits");
    // It wakes up: what it has missed is said, and it gets what comes then.
    let mut missing = 0;
    let mut last = 0;
    let wanted = thread::spawn(move || {
        while last < EVENTS {
            match next_event(&mut stalled) {
                Event::Dropped { lines } => missing += lines,
                Event::Progress(figures) => last = figures.regions[0].present_bytes,
                other => panic!("{other:?}"),
            }
        }
        missing
    });
    while !wanted.is_finished() {
        publisher.publish(progress(EVENTS));
        thread::sleep(Duration::from_millis(10));
    }
    assert!(wanted.join().expect("no panic") > 0, "it was left out, and not kept");
}

#[test]
fn clients_are_bounded_and_those_that_say_nothing_give_way() {
    let scene = Scene::new();
    let silent: Vec<_> = (0..3 * CLIENTS).map(|_| scene.raw()).collect();
    let good: Vec<_> = (0..CLIENTS).map(|_| scene.client()).collect();
    for stream in silent {
        assert!(is_closed(&mut BufReader::new(stream)));
    }
    let refused = Client::connect(&scene.path, LONG);
    assert!(
        matches!(
            &refused,
            Err(Error::Refused {
                kind: ErrorKind::Busy,
                ..
            })
        ),
        "{refused:?}"
    );
    drop(good);
    let until = Instant::now() + LONG;
    while Client::connect(&scene.path, LONG).is_err() {
        assert!(Instant::now() < until, "there is room again");
    }
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let scene = Scene::new();
    // The answers to the requests that are read at once are more than the server keeps for a client.
    scene.server.publisher().publish(progress_of(100, 0));
    let mut stream = scene.raw();
    let reader = BufReader::new(stream.try_clone().expect("a socket"));
    const REQUESTS: usize = 5000;
    let writer = thread::spawn(move || {
        let hello = b"{\"id\":1,\"request\":\"hello\",\"oldest\":1,\"latest\":1}\n";
        stream.write_all(hello).expect("room");
        let all = "{\"id\":2,\"request\":\"status\"}\n".repeat(REQUESTS);
        stream.write_all(all.as_bytes()).expect("room");
        stream
    });
    let answers = reader.lines().map(|line| line.expect("a line")).take(REQUESTS + 1);
    let last = answers.last().expect("answers");
    assert!(last.contains("\"status\""), "{last}");
    drop(writer.join().expect("no panic"));
}

#[test]
fn daemon_hears_when_its_last_client_has_gone() {
    let scene = Scene::new();
    let (first, second) = (scene.client(), scene.client());
    drop(first);
    assert!(scene.orders.recv_timeout(Duration::from_millis(200)).is_err(), "one is there");
    drop(second);
    assert_eq!(scene.heard(), Order::Abandoned);
    let mut third = scene.client();
    third.start(LONG).expect("an answer");
    assert_eq!(scene.heard(), Order::Start);
    drop(third);
    assert_eq!(scene.heard(), Order::Abandoned);
}

#[test]
fn daemon_hears_when_no_client_comes_in_time() {
    let scene = Scene::with(|about| About {
        first_client: Some(Duration::from_millis(100)),
        ..about
    });
    // A client that says nothing does not count, and is not waited for.
    let silent = scene.raw();
    assert_eq!(scene.orders.recv_timeout(PROMPT), Ok(Order::Abandoned));
    drop(silent);
    let without = Scene::new();
    assert!(without.orders.recv_timeout(Duration::from_millis(500)).is_err(), "no limit");
}

#[test]
fn end_of_a_connection_in_the_middle_of_a_line_is_only_the_end_of_that() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    stream.write_all(b"{\"id\":1,\"request\":\"sto").expect("room");
    stream.shutdown(Shutdown::Write).expect("a socket");
    assert!(is_closed(&mut BufReader::new(stream)));
    // It stays until the end: when it goes, the daemon is told.
    let mut other = scene.client();
    other.status(LONG).expect("it is there");
    assert!(scene.orders.try_recv().is_err());
}

#[test]
fn answer_that_comes_later_goes_to_the_client_that_has_asked() {
    let scene = Scene::new();
    let (mut first, mut second) = (scene.client(), scene.client());
    let change = |bandwidth| Change {
        bandwidth: Some(bandwidth),
        ..Change::default()
    };
    let waits = thread::spawn(move || first.set(change(1), LONG));
    assert_eq!(scene.heard(), Order::Set(change(1)));
    second.status(LONG).expect("it is answered meanwhile");
    let refused = second.set(change(2), LONG);
    assert!(
        matches!(&refused, Err(Error::Refused { text, .. }) if text == "one at a time"),
        "{refused:?}"
    );
    waits.join().expect("no panic").expect("it is done");
    // Whatever becomes of it, the client does not wait in vain.
    let change = Change {
        switch_now: true,
        ..Change::default()
    };
    let dropped = second.set(change, LONG);
    assert!(matches!(dropped, Err(Error::Refused { .. })), "{dropped:?}");
    second.abort(LONG).expect("it is done");
    assert!(std::iter::from_fn(|| scene.orders.recv_timeout(PROMPT).ok()).any(|order| order == Order::Abort));
}

#[test]
fn change_that_is_none_is_malformed_and_the_connection_continues() {
    let scene = Scene::new();
    let mut stream = scene.raw();
    let lines = concat!(
        r#"{"id":1,"request":"hello","oldest":1,"latest":1}"#,
        "\n",
        r#"{"id":2,"request":"set","bandwidth":"fast"}"#,
        "\n",
        r#"{"id":3,"request":"set","bandwidth":-1}"#,
        "\n",
        r#"{"id":4,"request":"abort"}"#,
        "\n"
    );
    stream.write_all(lines.as_bytes()).expect("room");
    let mut reader = BufReader::new(stream);
    reader.read_line(&mut String::new()).expect("HELLO");
    assert_eq!(error_of(&mut reader), ErrorKind::Malformed);
    assert_eq!(error_of(&mut reader), ErrorKind::Malformed);
    assert_eq!(scene.heard(), Order::Abort);
}

#[test]
fn migration_is_told_as_it_is_when_it_is_asked_for_and_a_vmemctl_is_not_stopped() {
    let scene = Scene::with(|about| About {
        duty: Duty::Migrate,
        ..about
    });
    let mut client = scene.client();
    assert_eq!(client.status(LONG).expect("an answer").migration, None);
    scene.server.publisher().publish(Event::Migration(Box::new(Migration {
        seconds: 7.0,
        idle_seconds: 2.0,
        ..Migration::default()
    })));
    thread::sleep(Duration::from_millis(300));
    let migration = client.status(LONG).expect("an answer").migration.expect("it is told");
    assert!(migration.seconds >= 7.3 && migration.idle_seconds >= 2.3, "{migration:?}");
    assert!(migration.seconds < 27.0, "{migration:?}");
    let refused = client.stop(LONG);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
}
