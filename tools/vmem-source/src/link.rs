// SPDX-License-Identifier: GPL-2.0
//! A TCP connection on which nothing takes for ever.
//!
//! Every read and write has a deadline as a whole: a peer that sends a byte now and then gains
//! nothing by it. The socket's own time-outs end a single call, so that an exchange that has run out
//! of time ends at most one time-out late.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, Socket, TcpKeepalive};
use vmem_tls::{Identity, TlsError, Trouble};

use crate::export::Lane;
use crate::wire::WireError;
use crate::wire::frame::{HEADER_SIZE, Header, Type, encode};

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("no answer in time")]
    TimedOut,
    /// The peer closed the connection; in the middle of a frame or not.
    #[error("the peer closed the connection{}", if *.within { " in the middle of a frame" } else { "" })]
    Closed { within: bool },
    /// What protects the connection does not let it go on.
    #[error(transparent)]
    Tls(TlsError),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// The longest time of silence after which the kernel takes to look for the peer (tcp(7), `MAX_TCP_KEEPIDLE`).
const LONGEST_IDLE: Duration = Duration::from_secs(32767);

pub(crate) struct Link {
    /// What is read and written.
    socket: Socket,
    /// What is on the network: the same, unless the connection is protected.
    carrier: TcpStream,
    /// If it is protected: why it has ended.
    trouble: Option<Trouble>,
    timeout: Duration,
}

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side<'a> {
    /// The one that connects, to this address (`HOST:PORT`).
    Destination(&'a str),
    Source,
}

impl Link {
    /// Takes over a connected socket, and protects it if there is an identity.
    pub(crate) fn new(
        carrier: TcpStream,
        timeout: Duration,
        side: Side<'_>,
        identity: Option<&Identity>,
    ) -> Result<Self, TlsError> {
        carrier.set_nodelay(true)?;
        // A peer whose machine is gone says nothing: while nothing is asked, only this finds out.
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
        let (socket, trouble) = match protected {
            None => (network, None),
            Some((socket, trouble)) => (socket, Some(trouble)),
        };
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self {
            socket,
            carrier,
            trouble,
            timeout,
        })
    }

    /// Lets the packets of the urgent lane overtake others where the network's queues have classes
    /// (the default one of Linux has). It is only a hint, so that a refusal does not matter.
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

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits until there is something to read, or the peer has gone. `None` waits without end.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<(), LinkError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Err(LinkError::TimedOut),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LinkError::Io(error.into())),
            }
        }
    }

    /// Reads exactly `buffer`, which does not begin a frame.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<(), LinkError> {
        self.read_until(buffer, Instant::now() + self.timeout, false)
    }

    /// Reads a whole frame; its payload, checked against the checksum, is left in `payload`.
    pub(crate) fn read_frame(&self, payload: &mut Vec<u8>) -> Result<Header, LinkError> {
        let deadline = Instant::now() + self.timeout;
        let mut header = [0; HEADER_SIZE];
        self.read_until(&mut header, deadline, false)?;
        let header = Header::decode(&header)?;
        // `decode` has seen that the length is within the limit of the type, which is small.
        payload.resize(header.length as usize, 0);
        self.read_until(payload, deadline, true)?;
        header.verify(payload)?;
        Ok(header)
    }

    /// Sends a frame whose payload is `parts`, one after the other.
    pub(crate) fn write_frame(&self, kind: Type, tag: u32, parts: &[&[u8]]) -> Result<(), LinkError> {
        let header = encode(kind, tag, parts);
        let mut slices: Vec<_> = std::iter::once(&header[..])
            .chain(parts.iter().copied())
            .map(IoSlice::new)
            .collect();
        self.write(&mut slices)
    }

    /// Sends all of `slices`.
    pub(crate) fn write(&self, mut slices: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        let deadline = Instant::now() + self.timeout;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match (&self.socket).write_vectored(slices) {
                Ok(0) => return Err(self.closed(true)),
                Ok(n) => IoSlice::advance_slices(&mut slices, n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.of_io(error)),
            }
            if !slices.is_empty() && Instant::now() >= deadline {
                return Err(LinkError::TimedOut);
            }
        }
        Ok(())
    }

    /// Says that nothing more will be sent, and reads what is on its way for a moment: closing a
    /// socket with unread bytes would take the last frame from the peer.
    pub(crate) fn finish(&self) {
        const MOMENT: Duration = Duration::from_millis(500);
        const ENOUGH: usize = 64;
        if self.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut discarded = [0; 4096];
        for _ in 0..ENOUGH {
            match self.wait(Some(MOMENT)).map(|()| (&self.socket).read(&mut discarded)) {
                Ok(Ok(n)) if n > 0 => {}
                _ => return,
            }
        }
    }

    fn read_until(&self, mut buffer: &mut [u8], deadline: Instant, mut within: bool) -> Result<(), LinkError> {
        while !buffer.is_empty() {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(self.closed(within)),
                Ok(n) => {
                    within = true;
                    buffer = &mut buffer[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.of_io(error)),
            }
            if !buffer.is_empty() && Instant::now() >= deadline {
                return Err(LinkError::TimedOut);
            }
        }
        Ok(())
    }

    /// The connection is closed: why, if that is known.
    fn closed(&self, within: bool) -> LinkError {
        let trouble = self.trouble.as_ref().and_then(Trouble::take);
        trouble.map_or(LinkError::Closed { within }, LinkError::Tls)
    }

    /// A socket's time-out reads as "would block".
    fn of_io(&self, error: io::Error) -> LinkError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LinkError::TimedOut,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => self.closed(false),
            _ => LinkError::Io(error),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
