// SPDX-License-Identifier: GPL-2.0-or-later
//! For tests: a service, and the socket at which its systemd listens. Variables of the environment are set in a process of its own: a test runs itself
//! again.

use std::env;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::service::SOCKET;

/// In the variable of this name, the process that the test runs itself as.
const TEST: &str = "VMEM_SERVICE_TEST";

/// Whether this is the process that [`as_service`] has started.
pub(crate) fn in_service() -> bool {
    env::var_os(TEST).is_some()
}

/// Runs the test of this name as a service with these variables, `own process` being its process ID. Returns what it says to systemd. Its descriptor 3
/// is open.
pub(crate) fn as_service(test: &str, variables: &[(&str, &str)]) -> Vec<(String, Option<OwnedFd>)> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let this = env::current_exe().expect("a program");
    // exec() keeps the process ID.
    let mut service = Command::new("/bin/sh");
    service.args([
        "-c",
        "for own; do export \"$own=$$\"; done; exec \"$PROGRAM\" --exact \"$NAME\" 3</dev/zero",
        "sh",
    ]);
    service.args(
        variables
            .iter()
            .filter(|(_, value)| *value == "own process")
            .map(|(name, _)| name),
    );
    service
        .env("PROGRAM", this)
        .env("NAME", test)
        .env(TEST, "1")
        .env(SOCKET, &path);
    for variable in ["SYSTEMD_EXEC_PID", "FDSTORE", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        service.env_remove(variable);
    }
    service.envs(variables.iter().copied()).stdout(Stdio::piped());
    let mut service = service.spawn().expect("a process");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
    let mut said = Vec::new();
    let status = loop {
        let status = service.try_wait().expect("a child");
        while let Some(message) = receive(&socket) {
            said.push(message);
        }
        if let Some(status) = status {
            break status;
        }
    };
    let printed = service.stdout.take().map(io::read_to_string);
    let printed = printed.expect("a pipe").expect("text");
    assert!(
        status.success() && printed.contains("1 passed"),
        "{test} as a service: {status}: {printed}"
    );
    said
}

/// A message, and the descriptor that comes with it.
fn receive(socket: &UnixDatagram) -> Option<(String, Option<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    // A barrier is passed when its descriptor is closed.
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    let fd = fd.filter(|_| text != "BARRIER=1\n");
    Some((text, fd))
}
