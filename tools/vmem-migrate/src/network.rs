// SPDX-License-Identifier: GPL-2.0-or-later
//! Connections between the vmemctls of two hosts.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use socket2::Socket;
use vmem_process::printable;
use vmem_source::endpoint::{Resolver, is_loopback};
use vmem_tls::{CloseReason, Identity};

use crate::channel::{Channel, ChannelError};
use crate::error::Cause;
use crate::message::{FromDestination, FromSource, Purpose, VERSIONS, agree};
use crate::options::Common;

/// How long the peer may take to accept the connection, and to greet.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The resolver for all connections. If the system's resolver hangs, only one thread waits for it, however often vmemctl reconnects.
static RESOLVER: Resolver = Resolver::new();

/// How connections are protected.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    /// Clear text, to loopback addresses only: the connections stay on this host, or in a tunnel that begins there.
    Loopback,
    /// Clear text, to any address: the user has asked for it.
    Insecure,
    /// TLS with certificates on both sides, from this directory.
    Tls(Identity, Files),
}

/// The TLS options that vmemd gets.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    allow_names: Vec<String>,
}

/// A connection that was accepted, and its HELLO.
pub(crate) struct Greeted {
    pub(crate) channel: Channel,
    /// The version of the protocol for this connection.
    pub(crate) version: u32,
    pub(crate) session: String,
    pub(crate) purpose: Purpose,
    /// The relay of TLS, on which the channel depends.
    pub(crate) relay: Option<CloseReason>,
}

impl Security {
    pub(crate) fn new(cli: &Common) -> Result<Self, Cause> {
        match (&cli.tls, cli.insecure) {
            (Some(directory), _) => {
                let allow_names = cli.allow_names.clone();
                let identity = Identity::load_allowing(directory, &allow_names).map_err(Cause::Tls)?;
                for warning in identity.warnings() {
                    tracing::warn!("{warning}");
                }
                let directory = std::path::absolute(directory).map_err(Cause::call(format!(
                    "cannot find the directory {} of --tls",
                    directory.display()
                )))?;
                Ok(Self::Tls(identity, Files { directory, allow_names }))
            }
            (None, true) => Ok(Self::Insecure),
            (None, false) => Ok(Self::Loopback),
        }
    }

    /// Refuses clear text to an address that is not loopback.
    pub(crate) fn check(&self, address: SocketAddr) -> Result<(), Cause> {
        if !matches!(self, Self::Loopback) || is_loopback(&address) {
            Ok(())
        } else {
            Err(Cause::other(format!(
                "{address} is not a loopback address: the guest's memory and state would go there in clear text; --tls protects \
                 them, --insecure says that this is meant"
            )))
        }
    }

    /// Accepts only `HOST:PORT`, with a host from which pages may be fetched. A name is not resolved here: vmemd resolves it and checks the
    /// address that it connects to. A check here could get another answer than vmemd, and a source could make this host wait for its
    /// resolver.
    pub(crate) fn check_host(&self, text: &str) -> Result<(), Cause> {
        let bad = || Cause::other(format!("{text:?} is neither PORT nor HOST:PORT"));
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match inside {
            Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
            // "file:..." names a file, and no host on the network.
            None => host != "file" && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)),
        };
        if host.is_empty() || host.starts_with('-') || !is_host || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        text.parse().map_or(Ok(()), |address| self.check(address))
    }

    /// Resolves `to` (`HOST:PORT`), and connects to the vmemctl there.
    pub(crate) fn connect(&self, to: &str, session: &str, purpose: Purpose) -> Result<Channel, Cause> {
        let failed = || Cause::call(format!("cannot reach {to}"));
        let mut error = io::Error::other("the name has no address");
        for address in RESOLVER.addresses(to, TIMEOUT).map_err(failed())? {
            self.check(address)?;
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => return self.greet(stream, to, session, purpose).map_err(|e| peer(to, e)),
                Err(e) => error = e,
            }
        }
        Err(failed()(error))
    }

    fn greet(&self, stream: TcpStream, to: &str, session: &str, purpose: Purpose) -> Result<Channel, ChannelError> {
        let (mut channel, _) = self.protect(stream, Some(to))?;
        channel.send(&FromSource::Hello {
            version: *VERSIONS.start(),
            latest: Some(*VERSIONS.end()),
            session: session.to_owned(),
            purpose,
        })?;
        match channel.recv_within(TIMEOUT)? {
            FromDestination::Welcome { version } if VERSIONS.contains(&version) => Ok(channel),
            FromDestination::Welcome { version } => Err(ChannelError::Foreign(format!(
                "it speaks version {version} of the protocol, which it was not asked for"
            ))),
            FromDestination::Refuse { reason } => Err(ChannelError::Refused(printable(&reason))),
            _ => Err(ChannelError::Foreign("an answer to nothing".to_owned())),
        }
    }

    /// The options of vmemd for the same protection, on both hosts.
    pub(crate) fn vmemd_arguments(&self) -> Vec<String> {
        match self {
            Self::Loopback => Vec::new(),
            Self::Insecure => vec!["--insecure".to_owned()],
            Self::Tls(_, Files { directory, allow_names }) => {
                let names = allow_names.iter().flat_map(|name| ["--allow-name".to_owned(), name.clone()]);
                ["--tls".to_owned(), directory.display().to_string()]
                    .into_iter()
                    .chain(names)
                    .collect()
            }
        }
    }

    pub(crate) fn listen(&self, address: SocketAddr) -> Result<TcpListener, Cause> {
        let taken = || Cause::call(format!("cannot listen on {address}"))(rustix::io::Errno::ADDRINUSE);
        self.listen_unless_taken(address)?.ok_or_else(taken)
    }

    /// As [`listen`](Self::listen). `None`: another process listens there.
    pub(crate) fn listen_unless_taken(&self, address: SocketAddr) -> Result<Option<TcpListener>, Cause> {
        self.check(address)?;
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            bound => bound.map(Some).map_err(Cause::call(format!("cannot listen on {address}"))),
        }
    }

    /// Sets up an accepted connection, and receives HELLO.
    pub(crate) fn accept(&self, stream: TcpStream) -> Result<Greeted, ChannelError> {
        let (mut channel, relay) = self.protect(stream, None)?;
        let FromSource::Hello {
            version: oldest,
            latest,
            session,
            purpose,
        } = channel.recv_within(TIMEOUT)?
        else {
            return Err(ChannelError::Foreign("no greeting".to_owned()));
        };
        let Some(version) = agree(oldest, latest.unwrap_or(oldest)) else {
            let (first, last) = VERSIONS.into_inner();
            let reason = format!("versions {first} to {last} of the protocol are spoken here, and not {oldest}");
            channel.send(&FromDestination::Refuse { reason: reason.clone() })?;
            return Err(ChannelError::Foreign(reason));
        };
        Ok(Greeted {
            channel,
            version,
            session,
            purpose,
            relay,
        })
    }

    /// Makes a channel of a connection: of one to `to` (`HOST:PORT`), or with `None` of an accepted one.
    fn protect(&self, stream: TcpStream, to: Option<&str>) -> Result<(Channel, Option<CloseReason>), ChannelError> {
        let carrier = Socket::from(stream.try_clone().map_err(ChannelError::Io)?);
        Channel::watch(&carrier).map_err(ChannelError::Io)?;
        let (socket, relay) = match (self, to) {
            (Self::Tls(identity, _), Some(to)) => identity.connect(stream, to, TIMEOUT).map(protected)?,
            (Self::Tls(identity, _), None) => identity.accept(stream, TIMEOUT).map(protected)?,
            (Self::Loopback | Self::Insecure, _) => (Socket::from(stream), None),
        };
        Ok((Channel::new(socket, &carrier).map_err(ChannelError::Io)?, relay))
    }
}

fn protected((socket, relay): (Socket, CloseReason)) -> (Socket, Option<CloseReason>) {
    (socket, Some(relay))
}

fn peer(to: &str, error: ChannelError) -> Cause {
    Cause::Peer(format!("the vmemctl at {to}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_page_hosts_are_accepted() {
        let check = |security: &Security, text| security.check_host(text).is_ok();
        for good in ["127.0.0.1:80", "[::1]:80", "localhost:8636"] {
            assert!(check(&Security::Loopback, good), "{good}");
        }
        assert!(check(&Security::Insecure, "192.0.2.1:80"));
        assert!(!check(&Security::Loopback, "192.0.2.1:80"), "in clear text");
        assert!(!check(&Security::Loopback, "[2001:db8::1]:80"), "in clear text");
        let began = std::time::Instant::now();
        assert!(
            check(&Security::Loopback, "no-such-host.invalid:80"),
            "it is not looked up here"
        );
        assert!(began.elapsed() < Duration::from_secs(1));
        for bad in [
            "",
            "127.0.0.1",
            ":80",
            "file:80",
            "file:ram=/dev/shm/other",
            "file:ram=/x:80",
            "-x:80",
            "[x]:80",
            "127.0.0.1:99999",
            "a b:80",
        ] {
            assert!(!check(&Security::Insecure, bad), "{bad}");
        }
    }
}
