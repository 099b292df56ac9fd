// SPDX-License-Identifier: GPL-2.0-or-later
//! Saves a guest's devices without its memory and without a migration, and has the guest stand still as long as that takes.
//!
//! The command `xen-save-devices-state`, which is not of Xen alone, stops the guest, writes the state of all devices into a file, and continues the
//! guest if it ran: whether it could write or not. Here the file is a pipe of one page that nobody reads for a while. QEMU waits in its write,
//! and the guest stands still. If this process dies, in whatever way, QEMU's write fails, and QEMU continues the guest.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::json;
use vmem_process::Process;

use crate::connection::Qmp;
use crate::error::Error;

const COMMAND: &str = "xen-save-devices-state";

/// The bytes that QEMU can write while nobody reads: the least that a pipe can have.
const ROOM: usize = 4096;

/// The room when the rest is read.
const MORE_ROOM: usize = 1 << 20;

/// How long a read waits before it looks whether QEMU has answered.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Devices that are being saved. If it is dropped, QEMU fails to save them, and goes on.
#[derive(Debug)]
pub struct DeviceSave {
    pipe: File,
    room: usize,
    /// The set of QEMU that has the pipe's other end.
    set: u64,
    bytes: Vec<u8>,
}

impl DeviceSave {
    /// Has QEMU, the process `process`, begin.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`]; those of [`Qmp::execute`].
    pub fn begin(qmp: &mut Qmp, process: &Process) -> Result<Self, Error> {
        let failed = |error: rustix::io::Errno| Error::Stream(error.into());
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        let room = fcntl_setpipe_size(&ours, ROOM).map_err(failed)?;
        fcntl_getfl(&ours)
            .and_then(|flags| fcntl_setfl(&ours, flags | OFlags::NONBLOCK))
            .map_err(failed)?;
        // QEMU truncates the file, which only an open by a path can do with a pipe. So it opens it anew, which its owner may.
        let owner = fs::metadata(format!("/proc/{}", process.number()))
            .map_err(Error::Stream)?
            .uid();
        fchown(&theirs, Some(Uid::from_raw(owner)), None).map_err(failed)?;
        let (set, number) = qmp.add_fd(&theirs)?;
        qmp.begin(COMMAND, json!({"filename": format!("/proc/self/fd/{number}"), "live": false}))?;
        Ok(Self {
            pipe: ours.into(),
            room,
            set,
            bytes: Vec::new(),
        })
    }

    /// Waits up to `limit` until QEMU writes, and so has stopped the guest. Returns whether it has.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], or the connection is lost.
    pub fn wait_stopped(&mut self, qmp: &mut Qmp, limit: Duration) -> Result<bool, Error> {
        wait(&self.pipe, limit).map_err(Error::Stream)?;
        let mut first = [0; 4];
        match self.pipe.read(&mut first) {
            Ok(read) => self.bytes.extend_from_slice(&first[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::Stream(error)),
        }
        if self.bytes.is_empty() && qmp.result(COMMAND, Instant::now())?.is_some() {
            return Err(Error::NothingSaved);
        }
        Ok(!self.bytes.is_empty())
    }

    /// Reads the rest, `most` bytes at most, and waits until QEMU has continued the guest, until `deadline`. Returns all bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NothingSaved`] if the state had room in the pipe: then QEMU may have continued the guest before this was called. [`Error::TimedOut`],
    /// [`Error::SavedTooMuch`], [`Error::Refused`], or the connection is lost.
    pub fn finish(mut self, qmp: &mut Qmp, most: usize, deadline: Instant) -> Result<Vec<u8>, Error> {
        let (began, before) = (Instant::now(), self.bytes.len());
        // With less room, it only takes longer.
        let _ = fcntl_setpipe_size(&self.pipe, MORE_ROOM);
        let mut buffer = vec![0; 64 << 10];
        let mut has_answered = false;
        loop {
            match self.pipe.read(&mut buffer) {
                // Nobody has the other end any more. The answer says what became of it.
                Ok(0) => sleep(POLL_INTERVAL),
                Ok(read) => {
                    if self.bytes.len() + read > most {
                        return Err(Error::SavedTooMuch(most));
                    }
                    self.bytes.extend_from_slice(&buffer[..read]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Stream(error)),
            }
            if has_answered {
                break;
            }
            has_answered = qmp.result(COMMAND, Instant::now())?.is_some();
            if !has_answered && Instant::now() >= deadline {
                return Err(Error::TimedOut {
                    what: COMMAND.to_owned(),
                    limit: began.elapsed(),
                });
            }
            if !has_answered {
                wait(&self.pipe, POLL_INTERVAL).map_err(Error::Stream)?;
            }
        }
        // Before the first byte was read here, QEMU can have written as many as the pipe has room for, and has waited with the next one.
        match self.bytes.len() > before + self.room {
            true => Ok(self.bytes),
            false => Err(Error::NothingSaved),
        }
    }

    /// The set of QEMU that has the pipe's other end, for `remove-fd`.
    pub fn set(&self) -> u64 {
        self.set
    }
}

/// Waits until there is something to read, or for `limit`.
fn wait(pipe: &File, limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Saves devices of so many bytes, of a QEMU that answers this when it has written them, or cannot.
    fn save(bytes: usize, most: usize, answer: &'static str) -> Result<Vec<u8>, Error> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let room = fcntl_setpipe_size(&ours, ROOM).expect("a size");
        let flags = fcntl_getfl(&ours).expect("flags");
        fcntl_setfl(&ours, flags | OFlags::NONBLOCK).expect("flags");
        let mut save = DeviceSave {
            pipe: ours.into(),
            room,
            set: 1,
            bytes: Vec::new(),
        };
        let (client, mut server) = UnixStream::pair().expect("sockets");
        let qemu = thread::spawn(move || {
            let mut lines = BufReader::new(server.try_clone().expect("a socket")).lines();
            server.write_all(b"{\"QMP\": {}}\n").expect("room");
            lines.next().expect("a command").expect("a command");
            server.write_all(b"{\"return\": {}}\n").expect("room");
            lines.next().expect("a command").expect("a command");
            let mut pipe = File::from(theirs);
            let _ = pipe.write_all(&vec![7; bytes]);
            // The client may have given up.
            let _ = server.write_all(answer.as_bytes());
            // QEMU's set keeps the pipe open.
            let _ = lines.next();
        });
        let mut qmp = Qmp::new(client, LONG).expect("a QEMU");
        qmp.begin(COMMAND, json!({})).expect("a command");
        assert!(save.wait_stopped(&mut qmp, LONG).expect("a pipe"));
        let saved = save.finish(&mut qmp, most, Instant::now() + LONG);
        drop(qmp);
        qemu.join().expect("no panic");
        saved
    }

    #[test]
    fn devices_that_have_no_room_in_the_pipe_are_all_read_and_others_are_refused() {
        const DONE: &str = "{\"return\": {}}\n";
        assert_eq!(save(60_000, 1 << 20, DONE).expect("devices").len(), 60_000);
        // With 4 bytes taken from it, the pipe has room for as many more: QEMU may have gone on before the rest was read.
        let short = save(ROOM + 4, 1 << 20, DONE);
        assert!(matches!(short, Err(Error::NothingSaved)), "{short:?}");
        assert_eq!(save(ROOM + 5, 1 << 20, DONE).expect("devices").len(), ROOM + 5);
        let long = save(60_000, 10_000, DONE);
        assert!(matches!(long, Err(Error::SavedTooMuch(10_000))), "{long:?}");
    }

    #[test]
    fn qemu_that_cannot_save_its_devices_says_why() {
        let refused = save(
            60_000,
            1 << 20,
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"saving Xen device state failed\"}}\n",
        );
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
}
