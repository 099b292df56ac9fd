// SPDX-License-Identifier: GPL-2.0-or-later
//! Which processes vmemctl takes for a vmemd, and which it signals. All of them are fakes.

use std::fs;
use std::process::Command;
use std::sync::Mutex;

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use tempfile::TempDir;
use vmem_control::{Event, Request};

use super::fake::{command, said, shell};
use super::spawned::lock;
use super::*;

const SESSION: &str = "0123456789abcdef0123456789abcdef";
const LONG: Duration = Duration::from_secs(20);

fn state_dir() -> (TempDir, StateDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = StateDir::new(directory.path(), "out", "guest0").expect("a state directory");
    (directory, state_dir)
}

/// Starts a fake vmemd with this script.
fn start(script: &str, state_dir: &StateDir) -> Daemon {
    Daemon::spawn(Path::new("sh"), &shell(script), SESSION, state_dir).expect("a process")
}

fn is_listening(said: &DaemonEvent) -> Option<()> {
    let is = match said {
        DaemonEvent::Event(event) => matches!(event, Event::Listening { .. }),
        DaemonEvent::Status(status) => status.listening.is_some(),
        _ => false,
    };
    is.then_some(())
}

fn wait_ready(daemon: &mut Daemon) {
    daemon.wait_for(LONG, is_listening).expect("it is ready");
}

fn wait_said(daemon: &mut Daemon, word: &str) {
    let wanted = said(word);
    let is = |said: &DaemonEvent| matches!(said, DaemonEvent::Event(event) if *event == wanted).then_some(());
    daemon.wait_for(LONG, is).expect("it says so");
}

fn end_of(daemon: &mut Daemon) -> Ended {
    loop {
        if let DaemonEvent::Ended(ended) = daemon.recv(LONG).expect("its end") {
            return ended;
        }
    }
}

/// Drops the daemon, as after the death of the vmemctl that has started it. Its processes are children of this one. The thread of the
/// conversation stays and reaps them.
fn abandon(daemon: Daemon) -> Process {
    let number = daemon.held().first().number();
    drop(daemon);
    Process::open(number).expect("it lives")
}

#[test]
fn orders_given_before_the_daemon_listens_are_executed() {
    let (_directory, state_dir) = state_dir();
    let mut daemon = start("ready; order; say all; end 2", &state_dir);
    daemon.orders().give(Request::Release);
    wait_ready(&mut daemon);
    wait_said(&mut daemon, "release");
    wait_said(&mut daemon, "all");
    let ended = end_of(&mut daemon);
    assert_eq!(ended.code(), Some(2));
    assert_eq!(ended.said, Some((2, None)));
}

#[test]
fn refused_finish_is_said_and_a_refused_release_is_not() {
    let (_directory, state_dir) = state_dir();
    let mut daemon = start("ready; serve", &state_dir);
    wait_ready(&mut daemon);
    daemon.orders().give(Request::Finish);
    let why = daemon.wait_for(LONG, |said| match said {
        DaemonEvent::Refused(Request::Finish, why) => Some(why.clone()),
        _ => None,
    });
    assert_eq!(why.expect("it is said"), "it sends no rounds");
    daemon.orders().give(Request::Release);
    daemon.orders().give(Request::Set(vmem_control::Change::default()));
    let first = daemon.wait_for(LONG, |said| match said {
        DaemonEvent::Refused(order, _) => Some(order.clone()),
        _ => None,
    });
    assert!(matches!(first, Ok(Request::Set(_))), "{first:?}");
    daemon.end();
}

#[test]
fn left_daemon_of_the_same_session_and_duty_is_taken_over() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; order; order; end 2", &state_dir);
    wait_ready(&mut first);
    let process = abandon(first);
    assert!(
        Daemon::take_over("another", Duty::Serve, &state_dir)
            .expect("it can be found out")
            .is_none(),
        "another session"
    );
    assert!(
        Daemon::take_over(SESSION, Duty::Fetch, &state_dir)
            .expect("it can be found out")
            .is_none(),
        "another duty"
    );
    let mut daemon = Daemon::take_over(SESSION, Duty::Serve, &state_dir)
        .expect("it can be found out")
        .expect("it is there");
    assert_eq!(daemon.held().number(), process.number());
    // The status says so, although the event was sent before.
    wait_ready(&mut daemon);
    daemon.orders().give(Request::Start);
    wait_said(&mut daemon, "start");
    daemon.orders().give(Request::Release);
    let ended = end_of(&mut daemon);
    assert_eq!((ended.status, ended.code()), (None, Some(2)), "it says how it ends");
    assert!(process.wait(LONG));
}

#[test]
fn daemon_behind_a_script_is_taken_over_and_both_are_ended() {
    let (_directory, state_dir) = state_dir();
    // Not exec: the shell waits for it.
    let script = ["-c".to_owned(), format!("{}; true", command("ready; serve"))];
    let mut first = Daemon::spawn(Path::new("sh"), &script, SESSION, &state_dir).expect("a process");
    wait_ready(&mut first);
    let shell = abandon(first);
    let daemon = Daemon::take_over(SESSION, Duty::Serve, &state_dir)
        .expect("it can be found out")
        .expect("it is there");
    let Held::Left(processes) = daemon.held() else {
        panic!("it was left")
    };
    assert_eq!(processes.len(), 2);
    assert_eq!(processes[1].number(), shell.number());
    daemon.end();
    assert!(daemon.held().wait(Duration::ZERO));
}

/// Stops all threads of a process.
fn stop(process: &Process) {
    process.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", process.number());
    let is_stopped = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status.contains("State:\tT")
    };
    while !fs::read_dir(&tasks).expect("a process").flatten().all(is_stopped) {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn stopped_daemon_is_taken_over_and_can_be_ended() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    let process = abandon(first);
    stop(&process);
    let mut daemon = Daemon::take_over(SESSION, Duty::Serve, &state_dir)
        .expect("it can be found out")
        .expect("it was recorded");
    let said = daemon.recv(Duration::from_millis(100));
    assert!(said.is_none(), "{said:?}");
    // The process continues, and answers what was sent meanwhile.
    process.signal(Signal::CONT);
    wait_ready(&mut daemon);
    stop(&process);
    daemon.end();
    assert!(process.wait(Duration::ZERO));
}

#[test]
fn stopped_daemon_is_ended_by_a_later_vmemctl() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    let process = abandon(first);
    stop(&process);
    end_leftovers(&state_dir);
    assert!(process.wait(Duration::ZERO));
}

#[test]
fn daemon_without_a_record_is_found_by_its_socket_and_asked_to_end() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    fs::remove_file(state_dir.path(PID)).expect("a record");
    end_leftovers(&state_dir);
    let ended = end_of(&mut first);
    assert_eq!(ended.code(), Some(0), "no signal has ended it");
}

#[test]
fn daemon_of_another_guest_is_not_ended() {
    let ((_one, here), (_other, there)) = (state_dir(), state_dir());
    let mut daemon = start("ready; serve", &there);
    wait_ready(&mut daemon);
    end_leftovers(&here);
    assert!(
        Daemon::take_over(SESSION, Duty::Serve, &here)
            .expect("it can be found out")
            .is_none()
    );
    assert!(!daemon.held().wait(Duration::from_millis(100)));
    daemon.end();
}

#[test]
fn socket_of_an_ended_daemon_is_ignored() {
    let (_directory, state_dir) = state_dir();
    let mut daemon = start("ready; serve", &state_dir);
    wait_ready(&mut daemon);
    daemon.end();
    assert!(state_dir.path(SOCKET).exists());
    assert!(
        Daemon::take_over(SESSION, Duty::Serve, &state_dir)
            .expect("it can be found out")
            .is_none()
    );
    let mut next = start("ready; serve", &state_dir);
    wait_ready(&mut next);
    next.end();
}

#[test]
fn daemon_whose_script_has_ended_still_gets_orders_and_is_ended() {
    let (_directory, state_dir) = state_dir();
    let background = format!("exec 3<&0; {} <&3 & exit 3", command("ready; order; serve"));
    let mut daemon = Daemon::spawn(Path::new("sh"), &["-c".to_owned(), background], SESSION, &state_dir).expect("a process");
    wait_ready(&mut daemon);
    assert!(daemon.held().wait(LONG), "the script has ended");
    daemon.orders().give(Request::Start);
    wait_said(&mut daemon, "start");
    daemon.end();
    assert_eq!(end_of(&mut daemon).code(), Some(3), "of the script");
}

#[test]
fn daemon_that_has_the_socket_is_ended_before_the_next_is_started() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    let mut next = start("ready; serve", &state_dir);
    wait_ready(&mut next);
    assert!(first.held().wait(Duration::ZERO));
    assert!(!next.held().wait(Duration::ZERO));
    next.end();
}

#[test]
fn other_process_with_the_recorded_number_is_not_ended() {
    let (directory, state_dir) = state_dir();
    let program = directory.path().join("vmemd");
    fs::copy("/bin/sleep", &program).expect("a program");
    let mut other = Command::new(program).arg("1000").spawn().expect("a process");
    // As recorded for a process that has ended since, and whose number this one has got.
    let identity = Process::of_child(&other).and_then(|process| process.identity());
    let mut recorded = serde_json::to_value(identity.expect("it lives")).expect("JSON");
    recorded["start"] = 1.into();
    for text in [recorded.to_string(), other.id().to_string()] {
        fs::write(state_dir.path(PID), &text).expect("a file");
        end_leftovers(&state_dir);
        assert!(other.try_wait().expect("a child").is_none(), "it was ended for {text}");
    }
    other.kill().and_then(|()| other.wait()).expect("a child");
}

#[test]
fn left_program_without_control_socket_is_ended() {
    let (_directory, state_dir) = state_dir();
    let daemon = Daemon::spawn(
        Path::new("sh"),
        &["-c".to_owned(), "exec sleep 1000".to_owned()],
        SESSION,
        &state_dir,
    );
    let daemon = daemon.expect("a process");
    end_leftovers(&state_dir);
    assert!(daemon.held().wait(Duration::ZERO));
}

#[test]
fn children_of_a_script_are_ended_with_it() {
    let (directory, state_dir) = state_dir();
    let note = directory.path().join("number");
    // Not exec: the shell waits for it.
    let script = format!("sleep 1000 & echo $! >'{}'; wait; true", note.display());
    let mut daemon = Daemon::spawn(Path::new("sh"), &["-c".to_owned(), script], SESSION, &state_dir).expect("a process");
    let until = Instant::now() + LONG;
    let number = loop {
        let text = fs::read_to_string(&note).unwrap_or_default();
        match text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
            Some(number) => break number,
            None => assert!(Instant::now() < until),
        }
    };
    let inner = Process::open(number).expect("it lives");
    daemon.end();
    assert!(inner.wait(LONG));
    assert!(matches!(daemon.recv(LONG), Some(DaemonEvent::Ended(_))));
}

#[test]
fn process_with_a_reused_number_is_not_signalled() {
    let mut child = Command::new("true").spawn().expect("a process");
    let ended = Process::of_child(&child).expect("a pidfd");
    child.wait().expect("a child");
    let mut other = Command::new("sleep").arg("1000").process_group(0).spawn().expect("a process");
    let number = Process::of_child(&other).expect("a pidfd");
    let held = Held::Spawned(Spawned {
        process: ended.with_number_of(&number),
        reaped: Mutex::new(true),
    });
    held.signal(Signal::TERM);
    held.end();
    assert!(!number.wait(Duration::from_millis(100)), "another process was signalled");
    other.kill().and_then(|()| other.wait()).expect("a child");
}

#[test]
fn end_of_a_child_is_reported_after_it_is_reaped() {
    let (_directory, state_dir) = state_dir();
    let arguments = ["-c", "exit 0"].map(str::to_owned);
    let mut daemon = Daemon::spawn(Path::new("sh"), &arguments, SESSION, &state_dir).expect("a process");
    assert_eq!(end_of(&mut daemon).code(), Some(0));
    let Held::Spawned(spawned) = daemon.held() else {
        panic!("it was started here")
    };
    assert!(*lock(&spawned.reaped), "its number may be another's from now on");
}

#[test]
fn process_that_does_not_speak_the_protocol_has_no_hello() {
    let (_directory, state_dir) = state_dir();
    // This test itself listens at the socket.
    let listener = socket::bind(&state_dir.path(SOCKET)).expect("a socket");
    let answers = thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = listener.accept().expect("a client");
        client.write_all(b"HTTP/1.1 400 Bad Request\n").expect("room");
        client
    });
    let own = Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process");
    left::record(&own, &state_dir.path(PID)).expect("a record");
    assert!(
        Left::find(&state_dir)
            .expect("it can be found out")
            .expect("it was recorded")
            .hello
            .is_none()
    );
    drop(answers.join().expect("no panic"));
}

#[test]
fn daemon_that_cannot_be_taken_over_goes_on() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    let process = abandon(first);
    // No address space has room for this stack.
    let thread = thread::Builder::new().stack_size(1 << 60);
    let refused = Daemon::take_over_in(thread, SESSION, Duty::Serve, &state_dir);
    let error = refused.err().expect("there is no thread");
    assert_eq!(
        error.to_string(),
        format!("cannot supervise vmemd (process {}), which goes on", process.number())
    );
    assert!(!process.wait(Duration::from_millis(200)), "it was ended");
    // What takes it over does not need its log.
    let logs = state_dir.log("vmemd.log").expect("a directory");
    let logs = logs.parent().expect("a directory");
    fs::remove_dir_all(logs).expect("a directory");
    fs::write(logs, "a file").expect("a file");
    let daemon = Daemon::take_over(SESSION, Duty::Serve, &state_dir).expect("it can be found out");
    daemon.expect("it is there").end();
    assert!(process.wait(Duration::ZERO));
}

#[test]
fn unreadable_record_is_not_taken_for_none() {
    let (_directory, state_dir) = state_dir();
    fs::create_dir(state_dir.path(PID)).expect("a directory");
    let refused = Daemon::take_over(SESSION, Duty::Serve, &state_dir);
    assert!(matches!(refused, Err(DaemonError::Unknown(..))));
}

#[test]
fn unrecorded_daemon_that_is_stuck_is_named_and_not_ended() {
    let (_directory, state_dir) = state_dir();
    let mut first = start("ready; serve", &state_dir);
    wait_ready(&mut first);
    let process = abandon(first);
    stop(&process);
    fs::remove_file(state_dir.path(PID)).expect("a record");
    let refused = Daemon::spawn(Path::new("sh"), &shell("ready; serve"), SESSION, &state_dir);
    let error = refused.err().expect("the socket is in use").to_string();
    let expected = [
        state_dir.path(SOCKET).display().to_string(),
        format!("it is process {}: end it by hand", process.number()),
    ];
    assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    assert!(!process.wait(Duration::ZERO), "it was ended");
    process.signal(Signal::KILL);
    assert!(process.wait(LONG));
    let mut next = start("ready; serve", &state_dir);
    wait_ready(&mut next);
    next.end();
}

#[test]
fn end_of_a_daemon_that_has_passed_its_connection_on_is_noticed() {
    let (_directory, state_dir) = state_dir();
    let mut daemon = start("ready; serve", &state_dir);
    wait_ready(&mut daemon);
    let process = daemon.held().first();
    // This process now has the other end of its own connection.
    let files = fs::read_dir(format!("/proc/{}/fd", process.number())).expect("a process");
    let numbers = files.flatten().filter_map(|file| file.file_name().to_str()?.parse().ok());
    let passed: Vec<OwnedFd> = numbers
        .filter_map(|number| pidfd_getfd(process, number, PidfdGetfdFlags::empty()).ok())
        .collect();
    assert!(passed.len() > 3, "{passed:?}");
    process.signal(Signal::KILL);
    let ended = end_of(&mut daemon);
    assert_eq!((ended.code(), ended.said), (None, None), "it was killed");
}

/// Records this test as the vmemd of `state_dir`, which answers HELLO and then sends these bytes without an end.
fn flood(state_dir: &StateDir, bytes: Vec<u8>) {
    let listener = socket::bind(&state_dir.path(SOCKET)).expect("a socket");
    let own = Process::open(i32::try_from(std::process::id()).expect("a number")).expect("this process");
    left::record(&own, &state_dir.path(PID)).expect("a record");
    let process = own.identity().expect("it lives");
    thread::spawn(move || {
        use std::io::Write;
        let (mut client, _) = listener.accept().expect("a client");
        let hello = vmem_control::Answer::Hello {
            version: 1,
            session: SESSION.to_owned(),
            duty: Duty::Serve,
            process,
        };
        let reply = vmem_control::Reply { id: 1, answer: hello };
        let line = serde_json::to_string(&reply).expect("JSON");
        client.write_all(format!("{line}\n").as_bytes()).expect("room");
        while client.write_all(&bytes).is_ok() {}
    });
}

#[test]
fn daemon_that_sends_more_than_a_message_may_have_is_refused() {
    let regions = vec!["{}"; vmem_control::MAX_REGIONS + 1].join(",");
    let regions = format!("{{\"event\":\"ready\",\"source\":\"\",\"regions\":[{regions}]}}\n");
    for (bytes, why) in [
        (vec![b'x'; 4096], "a line of more than 1048576 bytes"),
        (regions.into_bytes(), "more than 1024 regions"),
    ] {
        let (_directory, state_dir) = state_dir();
        flood(&state_dir, bytes);
        let daemon = Daemon::take_over(SESSION, Duty::Serve, &state_dir).expect("it can be found out");
        match daemon.expect("it is there").recv(LONG) {
            Some(DaemonEvent::Refuses(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn error_names_the_log_if_it_cannot_be_written() {
    let (_directory, state_dir) = state_dir();
    // The file cannot be created, as on a full file system.
    fs::create_dir(state_dir.log("vmemd.log").expect("a directory")).expect("a directory");
    let error = Daemon::start(&[], SESSION, &state_dir).err().expect("an error").to_string();
    let log = state_dir.log("vmemd.log").expect("a directory");
    assert_eq!(
        error,
        format!("vmemd is not started, because {} cannot be written", log.display())
    );
}
