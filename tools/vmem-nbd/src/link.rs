// SPDX-License-Identifier: GPL-2.0
//! A connected socket on which each read and each write has a time limit.
//!
//! The deadline is that of a whole read or write: a peer cannot extend it by sending a byte now and then.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Socket, TcpKeepalive};

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Socket,
    timeout: Duration,
}

impl Link {
    /// Takes over a connected socket.
    pub(crate) fn new(socket: Socket, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        if socket.domain()? != socket2::Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
            // Without traffic, only keep-alive probes find out that the host of the peer is gone.
            let probes = TcpKeepalive::new()
                .with_time(Duration::from_secs(10))
                .with_interval(Duration::from_secs(2))
                .with_retries(3);
            socket.set_tcp_keepalive(&probes)?;
        }
        Ok(Self { socket, timeout })
    }

    /// The time limit of one read or write.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits until something can be read, also the end of the stream. False if nothing can within `limit`; [`None`] is no limit.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], limit.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Fills `buffer`, within the time limit.
    pub(crate) fn read(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        let deadline = Instant::now() + self.timeout;
        while !buffer.is_empty() {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
            if !buffer.is_empty() && Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Fills an array.
    pub(crate) fn read_array<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads bytes and drops them.
    pub(crate) fn discard(&self, mut count: u64) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while count > 0 {
            let part = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.read(buffer.get_mut(..part).unwrap_or_default())?;
            count -= part as u64;
        }
        Ok(())
    }

    /// Sends all of `parts`, within the time limit.
    pub(crate) fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&self.socket).write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
            if !left.is_empty() && Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Ends reading, or both directions. Whoever waits for the connection stops waiting.
    pub(crate) fn shut_down(&self, how: Shutdown) {
        // A peer that has gone is what was wanted.
        let _ = self.socket.shutdown(how);
    }
}

/// The timeout of a socket is the error "would block".
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}
