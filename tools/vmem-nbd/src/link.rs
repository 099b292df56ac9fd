// SPDX-License-Identifier: GPL-2.0-or-later
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
        socket.set_nonblocking(true)?;
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

    /// The socket, which blocks, for what protects the connection. Nobody else reads or writes it meanwhile.
    pub(crate) fn bare(&self) -> io::Result<Socket> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(false)?;
        Ok(socket)
    }

    /// The time limit of one read or write.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits until something can be read, also the end of the stream. False if nothing can within `limit`; [`None`] is no limit.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        self.poll(PollFlags::IN, limit)
    }

    fn poll(&self, flags: PollFlags, limit: Option<Duration>) -> io::Result<bool> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        loop {
            match poll(&mut [PollFd::new(&self.socket, flags)], limit.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Fills `buffer`, within the time limit.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.read_by(Instant::now() + self.timeout, buffer)
    }

    /// Fills `buffer` before `deadline`.
    pub(crate) fn read_by(&self, deadline: Instant, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_by(deadline, PollFlags::IN)?,
                Err(error) => return Err(error),
            }
            if !buffer.is_empty() && Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready; an error once the deadline has passed.
    fn wait_by(&self, deadline: Instant, flags: PollFlags) -> io::Result<()> {
        match self.poll(flags, Some(deadline.saturating_duration_since(Instant::now())))? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
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
        self.write_by(Instant::now() + self.timeout, parts)
    }

    /// Sends all of `parts` before `deadline`.
    pub(crate) fn write_by(&self, deadline: Instant, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match (&self.socket).write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_by(deadline, PollFlags::OUT)?,
                Err(error) => return Err(error),
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
