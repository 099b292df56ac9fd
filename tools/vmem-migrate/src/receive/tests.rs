// SPDX-License-Identifier: GPL-2.0-or-later
//! Well-formed offers of guests that this host cannot receive. `receive` refuses them and waits for the next one.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use clap::Parser;

use super::*;
use crate::fake;
use crate::message::{Backend, FromSource, Purpose};
use crate::options::cli::{Cli, Command};

const SESSION: &str = "0123456789abcdef0123456789abcdef";

/// OFFER of a guest with these memory backends.
fn offer(memory: &[(&str, u64)]) -> FromSource {
    let backend = |(number, (id, bytes)): (usize, &(&str, u64))| Backend {
        id: (*id).to_owned(),
        bytes: *bytes,
        export: format!("ram.{number}.{}", &SESSION[..16]),
    };
    FromSource::Offer {
        guest: "guest0".to_owned(),
        key: None,
        memory: memory.iter().enumerate().map(backend).collect(),
        // No vmemd listens at this port.
        pages: "1".to_owned(),
        release: false,
        rounds: false,
        verify: false,
        streams: None,
        compress: None,
    }
}

/// Offers a guest with this memory; returns why it is refused.
fn refusal(address: SocketAddr, memory: &[(&str, u64)]) -> String {
    let mut source = Security::Loopback
        .connect(&address.to_string(), SESSION, Purpose::Migrate)
        .expect("a welcome");
    source.send(&offer(memory)).expect("room");
    match source.recv_within(Duration::from_secs(20)).expect("an answer") {
        FromDestination::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Runs `take` with the arguments `words` while `offers` makes offers. Refused offers must not end it. The signal after them must.
fn take_until_signal(words: &[&str], offers: impl FnOnce(SocketAddr) + Send) {
    let signals = Signals::default();
    let cli = Cli::parse_from(["vmemctl", "receive"].iter().chain(words));
    let Command::Receive(args) = &cli.command else {
        panic!("not receive")
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut listener = Listener::open(listener, Security::Loopback).expect("a listener");
    let host = Host {
        args,
        files: &vmem::Files::NotWanted,
        make_regions: &|_, memory| Ok((memory.iter().map(|backend| backend.id.clone()).collect(), Vec::new())),
        security: &Security::Loopback,
        signals: &signals,
    };
    thread::scope(|scope| {
        let source = scope.spawn(|| {
            // The signal must be raised even if `offers` panics.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| offers(address)));
            signals.raise();
            outcome
        });
        let taken = take(&cli.common, &host, &mut listener, &Report::new(true)).map(drop);
        source.join().expect("no panic").expect("a guest that is refused");
        assert!(
            matches!(taken, Err(Error::Local(Cause::Command(vmem_cli::Error::Stopped(_))))),
            "{taken:?}"
        );
    });
}

#[test]
fn unsuitable_guest_is_refused_and_the_next_is_awaited() {
    let state = tempfile::tempdir().expect("a directory");
    let path = state.path().join("qmp");
    let qemu = fake::Qemu::start(&path, "inmigrate", "none");
    let (state, qmp) = (state.path().to_str().expect("a path"), path.to_str().expect("a path"));
    take_until_signal(&["--qmp", qmp, "--state", state], |address| {
        for (memory, why) in [
            (&[("ram", 8192)][..], "has 4096 bytes here and 8192 at the source"),
            (&[("ram", 0)], "has 4096 bytes here and 0 at the source"),
            (&[("other", 4096)], "has no memory backend"),
            (&[], "more memory backends than at the source"),
            (&[("ram", 4096), ("other", 4096)], "has no memory backend"),
            (&[("ram", u64::MAX)], "are available here"),
            (&[("ram", u64::MAX), ("other", 1)], "more memory than there can be"),
            // A valid offer, but QEMU's region does not exist here.
            (&[("ram", 4096)], "region guest0.ram: cannot read its state"),
        ] {
            let reason = refusal(address, memory);
            assert!(reason.contains(why), "{memory:?}: {reason}");
        }
    });
    assert!(!qemu.has_heard("stop"), "it waits for another guest");
    assert!(qemu.lives());
}

#[test]
fn guest_is_refused_and_the_next_is_awaited_if_qemu_cannot_start() {
    let state = tempfile::tempdir().expect("a directory");
    let words = [
        "--qmp",
        "/nobody/qmp",
        "--state",
        state.path().to_str().expect("a path"),
        "--",
    ];
    let command = ["sh", "-c", "echo no such size: $0 >&2; exit 3", "{memory:ram}"];
    take_until_signal(&[&words[..], &command].concat(), |address| {
        for _ in 0..2 {
            let reason = refusal(address, &[("ram", 8192)]);
            assert!(reason.contains("no such size: /dev/vmem/ram"), "{reason}");
        }
        let reason = refusal(address, &[("other", 8192)]);
        assert!(reason.contains("ram"), "{reason}");
    });
    let left = std::fs::read_dir(state.path()).expect("a directory").flatten();
    let left: Vec<_> = left
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("in."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
