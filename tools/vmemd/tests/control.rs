// SPDX-License-Identifier: GPL-2.0-or-later
//! `vmemd serve --control` as a process: clients that behave, and clients that do not, while pages are served.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmem_control::{Change, Client, Duty, Error, ErrorKind, Event, Identity, State, socket};
use vmem_source::endpoint::{Endpoint, Security};
use vmem_source::{Contents, Lane, PageSource};

const LONG: Duration = Duration::from_secs(20);

struct Vmemd {
    child: Child,
    directory: TempDir,
    path: PathBuf,
}

/// A vmemd that serves one page, with these options, and with a socket as its standard input if it shall inherit that.
fn start(options: &[&str], inherits: bool) -> Vmemd {
    let directory = tempfile::tempdir().unwrap();
    let (path, memory) = (directory.path().join("vmemd.sock"), directory.path().join("ram"));
    fs::write(&memory, [7; 4096]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--control"]);
    command.arg(if inherits { Path::new("-") } else { &path });
    command.args(options).arg(format!("ram={}", memory.display()));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    if inherits {
        command.stdin(OwnedFd::from(socket::bind(&path).unwrap()));
    } else {
        command.stdin(Stdio::null());
    }
    let child = command.spawn().unwrap();
    Vmemd { child, directory, path }
}

impl Vmemd {
    fn client(&self) -> Client {
        let until = Instant::now() + LONG;
        loop {
            match Client::connect(&self.path, LONG) {
                Err(error) if error.is_nobody() && Instant::now() < until => {}
                client => return client.unwrap(),
            }
        }
    }

    /// Where it listens.
    fn address(&self) -> String {
        let mut client = self.client();
        let until = Instant::now() + LONG;
        loop {
            match client.status(LONG).unwrap().listening {
                Some(address) => return address.to_string(),
                None => assert!(Instant::now() < until),
            }
        }
    }

    fn end(&mut self) -> ExitStatus {
        let until = Instant::now() + LONG;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < until, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn errors(&mut self) -> String {
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        errors
    }
}

impl Drop for Vmemd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn first_byte(address: &str) -> u8 {
    let endpoint = Endpoint::new(address, Security::Loopback, LONG);
    let mut source = endpoint.connect(Lane::Stream).unwrap();
    source.fetch(0, &[vmem::PageRange::of_len(1).unwrap()]).unwrap();
    let answer = source.next_answer().unwrap();
    let (_, contents) = answer.contents().next().unwrap();
    match contents {
        Contents::Data(data) => data[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn daemon_with_an_inherited_socket_is_found_before_it_runs_and_says_who_it_is() {
    let session = "0123456789abcdef";
    let mut vmemd = start(&["--session", session], true);
    let mut client = Client::connect(&vmemd.path, LONG).expect("the socket was there before");
    let hello = client.hello().clone();
    assert_eq!((hello.session.as_str(), hello.duty), (session, Duty::Serve));
    let pid = i32::try_from(vmemd.child.id()).unwrap();
    assert_eq!(hello.process, Identity::of(pid).unwrap());
    client.subscribe(LONG).unwrap();
    let address = vmemd.address();
    assert_eq!(client.status(LONG).unwrap().state, State::Ready);
    assert_eq!(first_byte(&address), 7);
    let refused = client.start(LONG);
    assert!(
        matches!(
            refused,
            Err(Error::Refused {
                kind: ErrorKind::Refused,
                ..
            })
        ),
        "{refused:?}"
    );
    client.stop(LONG).expect("it answers");
    let until = Instant::now() + LONG;
    let last = std::iter::from_fn(|| client.event(until).ok().flatten()).last();
    assert!(
        matches!(
            last,
            Some(Event::End {
                exit_code: 0,
                error: None,
                ..
            })
        ),
        "{last:?}"
    );
    assert_eq!(vmemd.end().code(), Some(0));
}

#[test]
fn daemon_binds_a_socket_itself_and_leaves_none_in_the_way_of_the_next() {
    let mut vmemd = start(&[], false);
    assert_eq!(vmemd.client().hello().session, "");
    vmemd.child.kill().unwrap();
    vmemd.child.wait().unwrap();
    assert!(vmemd.path.exists(), "it is left");
    let memory = format!("ram={}", vmemd.directory.path().join("ram").display());
    let mut next = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    next.args(["serve", "--listen", "127.0.0.1:0", &memory, "--control"])
        .arg(&vmemd.path);
    vmemd.child = next.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(first_byte(&vmemd.address()), 7);
}

#[test]
fn one_of_several_daemons_on_one_path_serves_and_the_others_say_why_they_do_not() {
    for _ in 0..5 {
        let mut first = start(&[], false);
        let memory = format!("ram={}", first.directory.path().join("ram").display());
        let mut others: Vec<Child> = (0..4)
            .map(|_| {
                let mut other = Command::new(env!("CARGO_BIN_EXE_vmemd"));
                other
                    .args(["serve", "--listen", "127.0.0.1:0", &memory, "--control"])
                    .arg(&first.path);
                other.stdout(Stdio::null()).stderr(Stdio::piped());
                other.spawn().unwrap()
            })
            .collect();
        let mut all: Vec<&mut Child> = others.iter_mut().collect();
        all.push(&mut first.child);
        let until = Instant::now() + LONG;
        // All but one end.
        while all.iter_mut().filter_map(|child| child.try_wait().unwrap()).count() < 4 {
            assert!(Instant::now() < until, "two serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        for child in all {
            match child.try_wait().unwrap() {
                None => served.push(child),
                Some(_) => refused.push(child),
            }
        }
        let [serves] = served.as_slice() else { panic!("{served:?}") };
        let pid = i32::try_from(serves.id()).unwrap();
        for child in refused {
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(1), "{errors}");
            assert!(errors.contains("is in use: another vmemd"), "{errors}");
        }
        let client = Client::connect(&first.path, LONG).expect("the socket is that of the one that serves");
        assert_eq!(client.hello().process.pid, pid);
        for child in &mut others {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }
}

#[test]
fn bad_clients_and_the_end_of_all_clients_disturb_no_pages() {
    let vmemd = start(&[], true);
    let address = vmemd.address();
    let dies = vmemd.client();
    let mut stalls = vmemd.client();
    stalls.subscribe(LONG).unwrap();
    let mut garbage: Vec<_> = (0..20).map(|_| UnixStream::connect(&vmemd.path).unwrap()).collect();
    for stream in &mut garbage {
        stream.set_write_timeout(Some(LONG)).unwrap();
        let _ = stream.write_all(&[b'x'; 100_000]);
    }
    drop(dies);
    assert_eq!(first_byte(&address), 7);
    vmemd.client().status(LONG).expect("another client is heard");
    drop((stalls, garbage));
    // Nobody is there any more.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(first_byte(&address), 7);
    vmemd.client().status(LONG).expect("a later client is heard");
}

#[test]
fn standard_input_that_is_no_listening_socket_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let memory = directory.path().join("ram");
    fs::write(&memory, [7; 4096]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--control", "-"]);
    command.arg(format!("ram={}", memory.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut vmemd = Vmemd {
        child: command.spawn().unwrap(),
        directory,
        path: PathBuf::new(),
    };
    assert_eq!(vmemd.end().code(), Some(1));
    let errors = vmemd.errors();
    assert!(errors.contains("standard input is no Unix stream socket"), "{errors}");
}

#[test]
fn release_is_refused_without_free_and_taken_with_it() {
    let vmemd = start(&[], true);
    assert!(matches!(vmemd.client().release(LONG), Err(Error::Refused { .. })));
    let records = tempfile::tempdir().unwrap();
    let vmemd = start(&["--hold-release", "--free", records.path().to_str().unwrap()], true);
    vmemd.client().release(LONG).expect("it is held");
    // A client that comes later says it again.
    vmemd.client().release(LONG).expect("twice is once");
}

/// How long it takes to fetch so many pages of 1 MiB of memory.
fn fetch(address: &str, pages: u64) -> Duration {
    let endpoint = Endpoint::new(address, Security::Loopback, LONG);
    let mut source = endpoint.connect(Lane::Stream).unwrap();
    let began = Instant::now();
    source.fetch(0, &[vmem::PageRange::from_pgoff(0, pages).unwrap()]).unwrap();
    let mut left = pages;
    while left > 0 {
        left -= source.next_answer().unwrap().pages();
    }
    began.elapsed()
}

#[test]
fn bandwidth_is_that_of_the_option_until_a_client_sets_another_one() {
    let vmemd = start(&["--bandwidth", "1M"], false);
    fs::write(vmemd.directory.path().join("ram"), [7; 4096]).unwrap();
    let mut client = vmemd.client();
    let address = vmemd.address();
    // One page is no more than what is free.
    assert!(fetch(&address, 1) < Duration::from_millis(500));
    let bandwidth = |bandwidth| Change {
        bandwidth: Some(bandwidth),
        ..Change::default()
    };
    client.set(bandwidth(0), LONG).unwrap();
    client.set(bandwidth(1 << 20), LONG).unwrap();
    for (change, reason) in [
        (bandwidth(1), "1 bytes/s is not possible"),
        (Change::default(), "names nothing"),
        (
            Change {
                mode: Some("hybrid".to_owned()),
                bandwidth: Some(0),
                ..Change::default()
            },
            "no rounds",
        ),
        (
            Change {
                switch_now: true,
                ..Change::default()
            },
            "no rounds",
        ),
    ] {
        match client.set(change, LONG) {
            Err(Error::Refused {
                kind: ErrorKind::Refused,
                text,
            }) => assert!(text.contains(reason), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(client.abort(LONG), Err(Error::Refused { .. })));
    client.status(LONG).expect("the connection goes on");
}

#[test]
fn limited_stream_takes_its_time_and_a_change_reaches_it() {
    let directory = tempfile::tempdir().unwrap();
    let (path, memory) = (directory.path().join("vmemd.sock"), directory.path().join("ram"));
    fs::write(&memory, vec![7; 2 << 20]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmemd"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--bandwidth", "1M", "--control"]);
    command.arg(&path).arg(format!("ram={}", memory.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let vmemd = Vmemd { child, directory, path };
    let (mut client, address) = (vmemd.client(), vmemd.address());
    let limited = fetch(&address, 256);
    assert!(limited > Duration::from_millis(500), "{limited:?}");
    let other = address.clone();
    let waits = std::thread::spawn(move || fetch(&other, 512));
    std::thread::sleep(Duration::from_millis(200));
    client
        .set(
            Change {
                bandwidth: Some(0),
                ..Change::default()
            },
            LONG,
        )
        .unwrap();
    let taken = waits.join().unwrap();
    assert!(taken < Duration::from_millis(1200), "it would have taken 2 s: {taken:?}");
}
