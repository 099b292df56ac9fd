// SPDX-License-Identifier: GPL-2.0
//! Which processes are signalled, with programs that are no vmemd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use super::*;

const SESSION: &str = "0123456789abcdef0123456789abcdef";
const LONG: Duration = Duration::from_secs(10);

fn place() -> (TempDir, Place) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::new(directory.path(), "out", "guest0").expect("a place");
    (directory, place)
}

fn shell(script: &str) -> Vec<String> {
    ["-c", script].map(str::to_owned).to_vec()
}

/// A process that is none of ours, whose program is called like this.
fn stranger(directory: &TempDir, name: &str) -> Child {
    let program = directory.path().join(name);
    fs::copy("/bin/sleep", &program).expect("a program");
    Command::new(program).arg("1000").spawn().expect("a process")
}

#[test]
fn vmemd_of_another_guest_with_the_noted_number_is_not_ended() {
    let (directory, place) = place();
    let mut other = stranger(&directory, "vmemd");
    // As it was noted of a process that has ended since, and whose number this one has got.
    let mut noted = serde_json::to_value(
        Process::of_child(&other)
            .and_then(|process| process.identity())
            .expect("it lives"),
    )
    .expect("JSON");
    noted["start"] = 1.into();
    for text in [noted.to_string(), other.id().to_string()] {
        fs::write(place.path(PID), &text).expect("a file");
        end_left_over(&place, Some(SESSION), Duty::Serve);
        assert!(other.try_wait().expect("a child").is_none(), "it was ended for {text}");
    }
    other.kill().and_then(|()| other.wait()).expect("a child");
}

#[test]
fn left_over_program_of_another_name_is_ended() {
    let (_directory, place) = place();
    let daemon = Daemon::spawn(Path::new("sleep"), &["1000".to_owned()], &place).expect("a process");
    end_left_over(&place, None, Duty::Serve);
    assert!(daemon.process().process.wait(Duration::ZERO));
}

#[test]
fn left_over_without_a_note_is_found_by_its_session() {
    /// Nobody else's: other tests look for what is left over of theirs, in all of the machine.
    const LEFT_OVER: &str = "7c1e0ff2b35d9a48e6620193c4adf875";
    let (directory, place) = place();
    let script = directory.path().join("wrapper");
    fs::write(&script, "#!/bin/sh\nsleep 1000\n").expect("a file");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("a file");
    let export = format!("ram.0.{}=/dev/shm/x", &LEFT_OVER[..16]);
    let arguments = ["serve", "--listen", "127.0.0.1:0", &export].map(str::to_owned);
    let daemon = Daemon::spawn(&script, &arguments, &place).expect("a process");
    fs::remove_file(place.path(PID)).expect("a note");
    // The kernel shows them a moment after the program has begun.
    while daemon.process().process.arguments().expect("it lives") == [""] {}
    end_left_over(&place, Some("fedcba98765432100123456789abcdef"), Duty::Serve);
    assert!(!daemon.process().process.wait(Duration::ZERO), "another session");
    end_left_over(&place, Some(LEFT_OVER), Duty::Fetch);
    assert!(!daemon.process().process.wait(Duration::ZERO), "the other side");
    end_left_over(&place, Some(LEFT_OVER), Duty::Serve);
    assert!(daemon.process().process.wait(Duration::ZERO));
}

#[test]
fn words_of_a_session_are_told_from_others() {
    let of = |line: &str| {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        [Duty::Serve, Duty::Fetch].map(|duty| is_of_session(&words, "0123456789abcdef", duty))
    };
    let source = "vmemd serve --listen [::1]:0 ram.0.0123456789abcdef=/dev/shm/ram";
    assert_eq!(of(source), [true, false]);
    let destination = "sh wrapper --source h:1 --resume --region ram.0.0123456789abcdef=guest0.ram";
    assert_eq!(of(destination), [false, true]);
    for other in [
        "grep ram.0.0123456789abcdef= record",
        "vmemd serve ram.0.0123456789abcdee=/dev/shm/ram",
        "vmemd serve ram.0.0123456789abcdef",
        "vmemctl recover --state 0123456789abcdef",
        "",
    ] {
        assert_eq!(of(other), [false, false], "{other}");
    }
}

#[test]
fn what_a_script_has_started_is_stopped_with_it() {
    let (_directory, place) = place();
    // Not exec: the shell waits for it.
    let mut daemon = Daemon::spawn(Path::new("sh"), &shell("sleep 1000 & echo $!; wait; true"), &place).expect("a process");
    let inner = daemon.wait_for(LONG, |line| line.parse().ok()).expect("a number");
    let inner = Process::open(inner).expect("it lives");
    daemon.process().end();
    assert!(inner.wait(LONG));
    assert!(matches!(daemon.hear(LONG), Some(Says::Ended(_))));
}

#[test]
fn process_that_has_got_the_number_of_an_ended_one_is_not_signalled() {
    let mut child = Command::new("true").spawn().expect("a process");
    let ended = Process::of_child(&child).expect("a pidfd");
    child.wait().expect("a child");
    let mut other = Command::new("sleep").arg("1000").process_group(0).spawn().expect("a process");
    let number = Process::of_child(&other).expect("a pidfd");
    let spawned = Spawned {
        process: ended.with_number_of(&number),
        reaped: Mutex::new(true),
    };
    spawned.signal(Signal::TERM);
    spawned.end();
    assert!(!number.wait(Duration::from_millis(100)), "another process was signalled");
    other.kill().and_then(|()| other.wait()).expect("a child");
}

#[test]
fn end_of_one_is_heard_when_it_is_reaped() {
    let (_directory, place) = place();
    let mut daemon = Daemon::spawn(Path::new("true"), &[], &place).expect("a process");
    assert!(matches!(daemon.hear(LONG), Some(Says::Ended(status)) if status.success()));
    assert!(*lock(&daemon.process().reaped), "its number may be another's from now on");
}

#[test]
fn a_directory_that_cannot_be_written_is_not_taken_for_a_vmemd_that_cannot_be_started() {
    let (_directory, place) = place();
    // As on a file system that is full, the file cannot be made.
    fs::create_dir(place.log("vmemd.log").expect("a directory")).expect("a directory");
    let error = Daemon::start(&[], &place).err().expect("an error").to_string();
    let log = place.log("vmemd.log").expect("a directory");
    assert_eq!(
        error,
        format!("vmemd is not started, because {} cannot be written", log.display())
    );
}
