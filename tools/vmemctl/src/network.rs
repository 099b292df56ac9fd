// SPDX-License-Identifier: GPL-2.0
//! Connections between two vmemctl.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use socket2::Socket;

use crate::channel::{Channel, ChannelError};
use crate::failure::Trouble;
use crate::message::{FromDestination, FromSource, Purpose, VERSION};

/// How long the other side may take to be there and to greet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a connection is protected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Security {
    /// Clear text is meant, beyond loopback too.
    pub(crate) insecure: bool,
}

impl Security {
    /// Refuses clear text where others can read it.
    fn check(&self, address: SocketAddr) -> Result<(), Trouble> {
        if self.insecure || address.ip().is_loopback() {
            Ok(())
        } else {
            Err(Trouble::other(format!(
                "{address} is not a loopback address: the guest's memory and state would go there in clear text; --insecure says \
                 that this is meant"
            )))
        }
    }

    /// Connects to the vmemctl at `to` (`HOST:PORT`).
    pub(crate) fn connect(&self, to: &str, session: &str, purpose: Purpose) -> Result<Channel, Trouble> {
        let failed = || Trouble::io(format!("cannot reach {to}"));
        let mut error = io::Error::other("the name has no address");
        for address in to.to_socket_addrs().map_err(failed())? {
            self.check(address)?;
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return self.greet(stream, session, purpose).map_err(|e| peer(to, e)),
                Err(e) => error = e,
            }
        }
        Err(failed()(error))
    }

    fn greet(&self, stream: TcpStream, session: &str, purpose: Purpose) -> Result<Channel, ChannelError> {
        let mut channel = self.protect(stream).map_err(ChannelError::Io)?;
        channel.say(&FromSource::Hello {
            version: VERSION,
            session: session.to_owned(),
            purpose,
        })?;
        match channel.hear_within(PATIENCE)? {
            FromDestination::Welcome => Ok(channel),
            FromDestination::Refuse { reason } => Err(ChannelError::Refused(reason)),
            _ => Err(ChannelError::Foreign("an answer to nothing".to_owned())),
        }
    }

    /// What a vmemd is told that serves or asks at this address.
    pub(crate) fn vmemd_arguments(&self, address: SocketAddr) -> Vec<String> {
        if address.ip().is_loopback() {
            Vec::new()
        } else {
            vec!["--insecure".to_owned()]
        }
    }

    pub(crate) fn listen(&self, address: SocketAddr) -> Result<TcpListener, Trouble> {
        self.check(address)?;
        TcpListener::bind(address).map_err(Trouble::io(format!("cannot listen on {address}")))
    }

    /// Takes a connection; returns it with what it is for.
    pub(crate) fn accept(&self, stream: TcpStream) -> Result<(Channel, String, Purpose), ChannelError> {
        let mut channel = self.protect(stream).map_err(ChannelError::Io)?;
        match channel.hear_within(PATIENCE)? {
            FromSource::Hello {
                version: VERSION,
                session,
                purpose,
            } => Ok((channel, session, purpose)),
            FromSource::Hello { version, .. } => {
                let reason = format!("this is version {VERSION} of the protocol, not {version}");
                channel.say(&FromDestination::Refuse { reason: reason.clone() })?;
                Err(ChannelError::Foreign(reason))
            }
            _ => Err(ChannelError::Foreign("no greeting".to_owned())),
        }
    }

    fn protect(&self, stream: TcpStream) -> io::Result<Channel> {
        let socket = Socket::from(stream);
        Channel::watch(&socket)?;
        Channel::new(socket)
    }
}

fn peer(to: &str, error: ChannelError) -> Trouble {
    Trouble::Peer(format!("the vmemctl at {to}"), error)
}
