// SPDX-License-Identifier: GPL-2.0-or-later
//! A TCP connection on which every operation has a time limit.
//!
//! The deadline is that of a whole read or write: a peer cannot extend it by sending a byte now and then. The timeout of the socket ends a
//! single system call, so that an operation ends at most one timeout after its deadline.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, Socket, TcpKeepalive};
use vmem_tls::{CloseReason, Identity};

use crate::error::Error;
use crate::export::Lane;
use crate::wire::compression::Coding;
use crate::wire::frame::{HEADER_SIZE, Header, Sum, Type, encode_as};

/// The largest keep-alive time that the kernel accepts (tcp(7), `MAX_TCP_KEEPIDLE`).
const LONGEST_IDLE: Duration = Duration::from_secs(32767);

pub(crate) struct Link {
    /// The socket that is read and written.
    socket: Socket,
    /// The socket on the network: the same, unless the connection is protected.
    carrier: TcpStream,
    /// Of a protected connection: why it was closed.
    close_reason: Option<CloseReason>,
    timeout: Duration,
    /// Whether payloads have checksums.
    sum: Sum,
}

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side<'a> {
    /// This side connected to the address (`HOST:PORT`).
    Destination(&'a str),
    Source,
}

impl Link {
    /// Takes over a connected socket, and protects it if there is an identity.
    pub(crate) fn new(carrier: TcpStream, timeout: Duration, side: Side<'_>, identity: Option<&Identity>) -> Result<Self, Error> {
        Self::protect(carrier, timeout, side, identity).map_err(Error::Tls)
    }

    fn protect(
        carrier: TcpStream,
        timeout: Duration,
        side: Side<'_>,
        identity: Option<&Identity>,
    ) -> Result<Self, vmem_tls::Error> {
        carrier.set_nodelay(true)?;
        // Without traffic, only keep-alive probes find out that the host of the peer is gone.
        let probes = TcpKeepalive::new()
            .with_time(timeout.clamp(Duration::from_secs(1), LONGEST_IDLE))
            .with_interval(Duration::from_secs(2))
            .with_retries(3);
        let network = Socket::from(carrier.try_clone()?);
        network.set_tcp_keepalive(&probes)?;
        network.set_tcp_user_timeout(Some(timeout))?;
        let protected = match (identity, side) {
            (None, _) => None,
            (Some(identity), Side::Destination(address)) => Some(identity.connect(carrier.try_clone()?, address, timeout)?),
            (Some(identity), Side::Source) => Some(identity.accept(carrier.try_clone()?, timeout)?),
        };
        let (socket, close_reason) = match protected {
            None => (network, None),
            Some((socket, close_reason)) => (socket, Some(close_reason)),
        };
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self {
            socket,
            carrier,
            close_reason,
            timeout,
            sum: Sum::Xxh3,
        })
    }

    /// Sets the type of service, so that packets of the urgent lane overtake others in queues with classes (the default queue of Linux has
    /// three). It is a hint: errors are ignored.
    pub(crate) fn set_lane(&self, lane: Lane) {
        const LOWDELAY: u32 = 0x10;
        const THROUGHPUT: u32 = 0x08;
        let class = match lane {
            Lane::Urgent => LOWDELAY,
            Lane::Stream => THROUGHPUT,
        };
        let carrier = SockRef::from(&self.carrier);
        let _ = match self.carrier.local_addr() {
            Ok(address) if address.is_ipv6() => carrier.set_tclass_v6(class),
            _ => carrier.set_tos_v4(class),
        };
    }

    /// Whether the connection is protected: each byte is authenticated.
    pub(crate) fn is_protected(&self) -> bool {
        self.close_reason.is_some()
    }

    /// From now on payloads have no checksum, if the connection is protected.
    pub(crate) fn omit_checksums(&mut self) {
        if self.is_protected() {
            self.sum = Sum::None;
        }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits until there is something to read, or the peer has closed the connection. `None` waits without limit. `action` is what the peer
    /// is to do, for the error.
    pub(crate) fn wait(&self, timeout: Option<Duration>, action: &'static str) -> Result<(), Error> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Err(self.timed_out(action)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::Io(error.into())),
            }
        }
    }

    /// Reads exactly `buffer`, which does not begin a frame.
    pub(crate) fn read(&self, buffer: &mut [u8], action: &'static str) -> Result<(), Error> {
        self.read_until(buffer, Instant::now() + self.timeout, false, action)
    }

    /// Reads a whole frame; its payload, checked against the checksum, is left in `payload`.
    pub(crate) fn read_frame(&self, payload: &mut Vec<u8>, action: &'static str) -> Result<Header, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut header = [0; HEADER_SIZE];
        self.read_until(&mut header, deadline, false, action)?;
        let header = Header::decode(&header)?;
        // `decode` has checked that the length is within the limit of the type, which is small.
        payload.resize(header.length as usize, 0);
        self.read_until(payload, deadline, true, action)?;
        header.verify(payload, self.sum)?;
        Ok(header)
    }

    /// Sends a frame whose payload is `parts`, one after the other.
    pub(crate) fn write_frame(&self, kind: Type, tag: u32, parts: &[&[u8]]) -> Result<(), Error> {
        self.write_coded(kind, Coding::Plain, tag, parts)
    }

    /// The same, with page contents in this coding.
    pub(crate) fn write_coded(&self, kind: Type, coding: Coding, tag: u32, parts: &[&[u8]]) -> Result<(), Error> {
        let header = encode_as(kind, coding, tag, parts, self.sum);
        let mut slices: Vec<_> = std::iter::once(&header[..])
            .chain(parts.iter().copied())
            .map(IoSlice::new)
            .collect();
        self.write(&mut slices, kind.take())
    }

    /// Sends all of `slices`.
    pub(crate) fn write(&self, mut slices: &mut [IoSlice<'_>], action: &'static str) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&self.socket).write_vectored(slices) {
                Ok(0) => return Err(self.closed(true)),
                Ok(n) => IoSlice::advance_slices(&mut slices, n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io_error(error, action)),
            }
            if !slices.is_empty() && Instant::now() >= deadline {
                return Err(self.timed_out(action));
            }
        }
        Ok(())
    }

    /// Shuts down the sending direction, and discards what the peer still sends for a short time: the kernel resets a connection that is
    /// closed with unread bytes, and the peer could lose the last frame.
    pub(crate) fn shut_down(&self) {
        const LINGER: Duration = Duration::from_millis(500);
        const MAX_READS: usize = 64;
        if self.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut discarded = [0; 4096];
        for _ in 0..MAX_READS {
            match self
                .wait(Some(LINGER), "close the connection")
                .map(|()| (&self.socket).read(&mut discarded))
            {
                Ok(Ok(n)) if n > 0 => {}
                _ => return,
            }
        }
    }

    fn read_until(
        &self,
        mut buffer: &mut [u8],
        deadline: Instant,
        mut mid_frame: bool,
        action: &'static str,
    ) -> Result<(), Error> {
        while !buffer.is_empty() {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(self.closed(mid_frame)),
                Ok(n) => {
                    mid_frame = true;
                    buffer = &mut buffer[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io_error(error, action)),
            }
            if !buffer.is_empty() && Instant::now() >= deadline {
                return Err(self.timed_out(action));
            }
        }
        Ok(())
    }

    /// The error of a closed connection: that of TLS, if TLS ended it.
    fn closed(&self, mid_frame: bool) -> Error {
        let close_reason = self.close_reason.as_ref().and_then(CloseReason::take);
        close_reason.map_or(Error::Closed { mid_frame }, Error::Tls)
    }

    fn timed_out(&self, action: &'static str) -> Error {
        Error::TimedOut {
            action,
            limit: self.timeout,
        }
    }

    /// The timeout of a socket is the error "would block".
    fn io_error(&self, error: io::Error, action: &'static str) -> Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.timed_out(action),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => self.closed(false),
            _ => Error::Io(error),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
