// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines of a connection, read with a deadline.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;
use vmem_lines::TooLong;

use crate::error::Error;

/// Splits what a connection receives into lines. A line that is incomplete at the deadline is kept for the next call.
#[derive(Debug)]
pub struct Lines(vmem_lines::Lines);

impl Lines {
    /// An empty buffer. A line has at most `longest` bytes.
    pub const fn new(longest: usize) -> Self {
        Self(vmem_lines::Lines::new(longest))
    }

    /// Waits for the next line of `socket` until `deadline`; `None` if no whole line has arrived by then. The line has no newline.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::Io`], [`Error::TooLong`]: no further line can be read.
    pub fn next(&mut self, socket: impl AsFd, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        let socket = SockRef::from(&socket);
        let mut has_read = false;
        loop {
            if let Some(line) = self.0.next().map_err(|TooLong(bytes)| Error::TooLong(bytes))? {
                return Ok(Some(line));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A peer that sends a byte now and then must not extend the deadline.
            if has_read && left.is_zero() {
                return Ok(None);
            }
            // A timeout of zero would mean no timeout.
            let timeout = left.max(Duration::from_millis(1));
            socket.set_read_timeout(Some(timeout)).map_err(Error::Io)?;
            let mut piece = [0; 4096];
            match (&*socket).read(&mut piece) {
                Ok(0) => return Err(Error::Closed),
                Ok(count) => {
                    self.0.push(&piece[..count]);
                    has_read = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                    return Err(Error::Closed);
                }
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }

    /// The bytes received after the last line that was returned.
    pub fn into_rest(self) -> Vec<u8> {
        self.0.into_rest()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn incomplete_line_is_kept_for_the_next_call() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let mut lines = Lines::new(8);
        let mut next = || lines.next(&ours, Instant::now()).expect("a connection");
        theirs.write_all(b"one\ntw").expect("room");
        assert_eq!(next().expect("a line"), b"one");
        assert_eq!(next(), None, "half a line");
        theirs.write_all(b"o\nrest").expect("room");
        assert_eq!(next().expect("a line"), b"two");
        assert_eq!(next(), None, "half a line");
        assert_eq!(lines.into_rest(), b"rest");
    }

    #[test]
    fn bytes_sent_one_by_one_do_not_extend_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let writer = std::thread::spawn(move || while theirs.write_all(b"x").is_ok() {});
        let mut lines = Lines::new(usize::MAX);
        let until = Instant::now() + Duration::from_millis(100);
        assert_eq!(lines.next(&ours, until).expect("a connection"), None);
        assert!(until.elapsed() < Duration::from_secs(10));
        drop(ours);
        writer.join().expect("no panic");
        assert!(!lines.into_rest().is_empty());
    }

    #[test]
    fn too_long_line_and_closed_connection_are_different_errors() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let mut lines = Lines::new(8);
        theirs.write_all(b"123456789").expect("room");
        let error = lines.next(&ours, Instant::now()).expect_err("no line");
        assert!(matches!(error, Error::TooLong(bytes) if bytes == b"123456789"));
        drop(theirs);
        assert!(matches!(lines.next(&ours, Instant::now()), Err(Error::Closed)));
    }
}
