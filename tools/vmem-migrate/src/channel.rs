// SPDX-License-Identifier: GPL-2.0-or-later
//! A connection that carries JSON objects, one on a line. Every operation has a time limit.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Socket, TcpKeepalive};
use vmem_qemu::Lines;

/// The longest line that is accepted.
const LONGEST_LINE: usize = 1 << 20;

/// How long a peer may take to receive a line, and how long the kernel may take to notice that the peer is unreachable.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer sent nothing for {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error(transparent)]
    Tls(#[from] vmem_tls::Error),
    #[error("the peer refuses: {0}")]
    Refused(String),
    #[error("the peer does not speak this protocol: {0}")]
    Foreign(String),
}

/// One end of a connection.
pub(crate) struct Channel {
    socket: Socket,
    /// The network addresses of this end and of the peer.
    ends: Option<(SocketAddr, SocketAddr)>,
    lines: Lines,
}

impl Channel {
    /// A channel on `socket`, whose bytes `carrier` sends over the network.
    pub(crate) fn new(socket: Socket, carrier: &Socket) -> io::Result<Self> {
        socket.set_write_timeout(Some(TIMEOUT))?;
        let (local, peer) = (carrier.local_addr()?.as_socket(), carrier.peer_addr()?.as_socket());
        Ok(Self {
            socket,
            ends: local.zip(peer).map(|(local, peer)| (canonical(local), canonical(peer))),
            lines: Lines::new(LONGEST_LINE),
        })
    }

    /// A channel on a socket whose other end, or the connection that it carries, another process has accepted.
    pub(crate) fn handed_over(socket: Socket) -> io::Result<Self> {
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self {
            socket,
            ends: None,
            lines: Lines::new(LONGEST_LINE),
        })
    }

    /// Has the kernel detect that the peer's host is unreachable.
    pub(crate) fn watch(socket: &Socket) -> io::Result<()> {
        let probes = TcpKeepalive::new()
            .with_time(TIMEOUT)
            .with_interval(Duration::from_secs(2))
            .with_retries(3);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(TIMEOUT))?;
        socket.set_tcp_nodelay(true)
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> Result<(), ChannelError> {
        let mut line = serde_json::to_vec(message).map_err(|error| ChannelError::Io(error.into()))?;
        line.push(b'\n');
        (&self.socket).write_all(&line).map_err(of_io)
    }

    /// The next message, if it arrives by `deadline`.
    pub(crate) fn recv<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<Option<T>, ChannelError> {
        let line = match self.lines.next(&self.socket, deadline) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(None),
            Err(vmem_qemu::Error::Closed) => return Err(ChannelError::Closed),
            Err(vmem_qemu::Error::TooLong(line)) => return Err(ChannelError::Foreign(excerpt(&line))),
            Err(vmem_qemu::Error::Io(error)) => return Err(ChannelError::Io(error)),
            Err(error) => return Err(ChannelError::Io(io::Error::other(error))),
        };
        let message = serde_json::from_slice(&line);
        message.map(Some).map_err(|_| ChannelError::Foreign(excerpt(&line)))
    }

    /// The next message. It is an error if none arrives within `limit`.
    pub(crate) fn recv_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, ChannelError> {
        self.recv(Instant::now() + limit)?.ok_or(ChannelError::TimedOut(limit))
    }

    /// The network addresses of this end and of the peer. `None` if the socket is not on a network.
    pub(crate) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.ends
    }

    /// The socket, for other data than messages, and the bytes that have arrived already.
    pub(crate) fn into_parts(self) -> (Socket, Vec<u8>) {
        (self.socket, self.lines.into_rest())
    }
}

/// The address in the form that other hosts use: an IPv4 address that an IPv6 socket sees becomes IPv4. An IPv6 address keeps its scope.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

fn of_io(error: io::Error) -> ChannelError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ChannelError::Closed,
        io::ErrorKind::WouldBlock => ChannelError::TimedOut(TIMEOUT),
        _ => ChannelError::Io(error),
    }
}

/// The beginning of a line, with characters escaped that would harm a terminal.
fn excerpt(line: &[u8]) -> String {
    let line = &line[..line.len().min(80)];
    String::from_utf8_lossy(line).trim().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::FromSource;
    use std::os::unix::net::UnixStream;

    fn channel(socket: UnixStream) -> Channel {
        let socket = Socket::from(socket);
        let carrier = socket.try_clone().expect("a socket");
        Channel::new(socket, &carrier).expect("a channel")
    }

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        (channel(ours), theirs)
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (ours, theirs) = pair();
        let mut theirs = channel(theirs);
        let abort = FromSource::Abort {
            reason: "a \n line".to_owned(),
        };
        ours.send(&FromSource::Start).expect("room");
        ours.send(&abort).expect("room");
        let limit = Duration::from_secs(5);
        assert_eq!(theirs.recv_within::<FromSource>(limit).expect("a message"), FromSource::Start);
        assert_eq!(theirs.recv_within::<FromSource>(limit).expect("a message"), abort);
        assert!(
            theirs
                .recv::<FromSource>(Instant::now())
                .is_ok_and(|message| message.is_none())
        );
        drop(ours);
        assert!(matches!(theirs.recv_within::<FromSource>(limit), Err(ChannelError::Closed)));
    }

    #[test]
    fn addresses_are_canonical_and_keep_their_scope() {
        let of = |text: &str| canonical(text.parse().expect("an address")).to_string();
        assert_eq!(of("[::ffff:192.0.2.1]:8637"), "192.0.2.1:8637");
        assert_eq!(of("192.0.2.1:8637"), "192.0.2.1:8637");
        assert_eq!(of("[2001:db8::1]:8637"), "[2001:db8::1]:8637");
        assert_eq!(of("[fe80::1%2]:8637"), "[fe80::1%2]:8637");
    }

    #[test]
    fn invalid_message_is_refused() {
        let long = "x".repeat(LONGEST_LINE + 5000);
        for bad in ["GET / HTTP/1.1\n", "{\"say\": \"nothing\"}\n", &long] {
            let (mut ours, mut theirs) = pair();
            let bytes = bad.to_owned();
            let writer = std::thread::spawn(move || theirs.write_all(bytes.as_bytes()));
            let heard = ours.recv_within::<FromSource>(Duration::from_secs(5));
            assert!(matches!(heard, Err(ChannelError::Foreign(_))), "{heard:?}");
            drop(ours);
            // The write fails if the channel was closed before it.
            let _ = writer.join().expect("no panic");
        }
    }
}
