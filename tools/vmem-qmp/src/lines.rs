// SPDX-License-Identifier: GPL-2.0
//! Lines of a connection, which are waited for up to a point in time.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Why no more lines come.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// This has come, is longer than any line may be, and has no end yet.
    #[error("a line without end")]
    TooLong(Vec<u8>),
}

/// What has come on a connection, as lines. One that is not here in time stays for later.
#[derive(Debug)]
pub struct Lines {
    longest: usize,
    /// Bytes that are no whole line yet.
    received: Vec<u8>,
    /// In so many of them there is no end of a line.
    searched: usize,
}

impl Lines {
    /// Nothing yet. No line is longer than `longest` bytes.
    pub const fn new(longest: usize) -> Self {
        Self {
            longest,
            received: Vec::new(),
            searched: 0,
        }
    }

    /// The next line of `socket`, with its end; waits for it until `deadline`. `None` if there is none.
    ///
    /// # Errors
    ///
    /// There will be no line any more.
    pub fn next(&mut self, socket: impl AsFd, deadline: Instant) -> Result<Option<Vec<u8>>, LineError> {
        let socket = SockRef::from(&socket);
        let mut has_read = false;
        loop {
            let mut rest = self.received.iter().skip(self.searched);
            if let Some(length) = rest.position(|byte| *byte == b'\n') {
                let end = self.searched + length;
                self.searched = 0;
                return Ok(Some(self.received.drain(..=end).collect()));
            }
            self.searched = self.received.len();
            if self.received.len() > self.longest {
                self.searched = 0;
                return Err(LineError::TooLong(std::mem::take(&mut self.received)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // One that sends a byte now and then must not be waited for any longer.
            if has_read && left.is_zero() {
                return Ok(None);
            }
            // A time-out of zero would be none.
            let timeout = left.max(Duration::from_millis(1));
            socket.set_read_timeout(Some(timeout)).map_err(LineError::Io)?;
            let mut piece = [0; 4096];
            match (&*socket).read(&mut piece) {
                Ok(0) => return Err(LineError::Closed),
                Ok(count) => {
                    self.received.extend_from_slice(&piece[..count]);
                    has_read = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                    return Err(LineError::Closed);
                }
                Err(error) => return Err(LineError::Io(error)),
            }
        }
    }

    /// Bytes that have come and are not in a line that was given.
    pub fn into_rest(self) -> Vec<u8> {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_come_whole_and_the_rest_is_kept() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let mut lines = Lines::new(8);
        let mut next = || lines.next(&ours, Instant::now()).expect("a connection");
        theirs.write_all(b"one\ntw").expect("room");
        assert_eq!(next().expect("a line"), b"one\n");
        assert_eq!(next(), None, "half a line");
        theirs.write_all(b"o\nrest").expect("room");
        assert_eq!(next().expect("a line"), b"two\n");
        assert_eq!(next(), None, "half a line");
        assert_eq!(lines.into_rest(), b"rest");
    }

    #[test]
    fn bytes_one_by_one_are_not_waited_for() {
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
    fn a_line_without_end_and_the_end_are_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let mut lines = Lines::new(8);
        theirs.write_all(b"123456789").expect("room");
        let error = lines.next(&ours, Instant::now()).expect_err("no line");
        assert!(matches!(error, LineError::TooLong(bytes) if bytes == b"123456789"));
        drop(theirs);
        assert!(matches!(lines.next(&ours, Instant::now()), Err(LineError::Closed)));
    }
}
