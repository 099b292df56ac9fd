// SPDX-License-Identifier: GPL-2.0-or-later
//! The certificate of this host, and the certificates that it accepts.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConnection, Connection, ServerConnection};
use socket2::Socket;

use crate::allowed::AllowedNames;
use crate::error::Error;
use crate::relay::relay;
use crate::renewal::Renewal;

/// The certificate and key of this host, and the authority whose certificates it accepts from peers.
///
/// The files can be replaced while the identity is in use. Before a connection is protected, the identity looks whether they have changed, at
/// most once a second, and loads all three. If they cannot be loaded or do not fit, it goes on with what it has, and logs why, once.
/// Connections that are protected already go on.
///
/// A process that has given up the right to read `key.pem` can still use a renewed `cert.pem` or `ca.pem`, if the certificate is for the same key.
#[derive(Clone, Debug)]
pub struct Identity {
    renewal: Arc<Renewal>,
    warnings: Vec<String>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` (followed by intermediate certificates, if there are any) and `key.pem` in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::Identity`].
    pub fn load(directory: &Path) -> Result<Self, Error> {
        Self::load_allowing(directory, &[])
    }

    /// As [`load`](Self::load), but a peer's certificate must also have one of `names` (hosts or addresses) among its subject alternative
    /// names. An empty list is no restriction.
    ///
    /// # Errors
    ///
    /// As for [`load`](Self::load); [`Error::Name`].
    pub fn load_allowing(directory: &Path, names: &[String]) -> Result<Self, Error> {
        let allowed = AllowedNames::new(names).map_err(Error::Name)?;
        let renewal = Renewal::load(directory, allowed)?;
        Ok(Self {
            warnings: renewal.current().warnings.clone(),
            renewal: Arc::new(renewal),
        })
    }

    /// Warnings about the files that were loaded first, for the administrator: other users can read the key, or the certificate expires soon.
    /// Those about renewed files are logged.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Protects a connection that this host made to `address` (`HOST:PORT`). The peer's certificate must be for that host, which is a name
    /// or an address. `socket` is a stream, and blocks. Returns the socket to use instead of it, and the reason for which that socket will be closed.
    ///
    /// # Errors
    ///
    /// All but [`Error::File`] and [`Error::Identity`].
    pub fn connect(&self, socket: impl Into<Socket>, address: &str, limit: Duration) -> Result<(Socket, CloseReason), Error> {
        let host = host_of(address);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Name(host.to_owned()))?;
        let connection = ClientConnection::new(Arc::clone(&self.renewal.renewed().client), name).map_err(Error::Handshake)?;
        protect(connection.into(), socket.into(), limit)
    }

    /// Protects a connection that the peer made.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), but never [`Error::Name`].
    pub fn accept(&self, socket: impl Into<Socket>, limit: Duration) -> Result<(Socket, CloseReason), Error> {
        let connection = ServerConnection::new(Arc::clone(&self.renewal.renewed().server)).map_err(Error::Handshake)?;
        protect(connection.into(), socket.into(), limit)
    }
}

#[cfg(test)]
impl Identity {
    pub(crate) fn renewal(&self) -> &Renewal {
        &self.renewal
    }
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address: a certificate has none.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn protect(mut connection: Connection, socket: Socket, limit: Duration) -> Result<(Socket, CloseReason), Error> {
    handshake(&mut connection, &socket, limit)?;
    let (ours, theirs) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let reason = CloseReason::default();
    let relay_reason = reason.clone();
    thread::Builder::new().name("tls".to_owned()).spawn(move || {
        if let Err(error) = relay(connection, &socket, &theirs, limit) {
            relay_reason.set(error);
        }
        // Dropping closes both sockets, but other handles of them may be open: these must see the end, too.
        let _ = socket.shutdown(Shutdown::Both);
        let _ = theirs.shutdown(Shutdown::Both);
    })?;
    Ok((Socket::from(ours), reason))
}

/// Why a protected connection was closed. Its user only sees the end of the stream.
#[derive(Clone, Debug, Default)]
pub struct CloseReason(Arc<Mutex<Option<rustls::Error>>>);

impl CloseReason {
    /// Takes the error of TLS that ended the connection. `None` if TLS did not end it, or if the error has been taken before.
    #[must_use]
    pub fn take(&self) -> Option<Error> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(match error {
            rustls::Error::AlertReceived(alert) if is_about_identity(alert) => Error::Handshake(error),
            error => Error::Broken(error),
        })
    }

    /// Waits until the connection is closed and its relay has ended. A process that has given the socket to another one relays until then.
    pub fn wait(&self) {
        // The thread of the relay holds a clone of this until it ends.
        while Arc::strong_count(&self.0) > 1 {
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Keeps `error` if it is one of TLS; a failure of the network is not.
    fn set(&self, error: io::Error) {
        let error = error.into_inner().and_then(|error| error.downcast::<rustls::Error>().ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error.map(|error| *error);
    }
}

/// Whether the peer refused the certificate of this host. In TLS 1.3 its alert can arrive after the handshake has ended here.
fn is_about_identity(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            // The certificate's signature is not by the authority's key.
            | AlertDescription::DecryptError
    )
}

fn handshake(connection: &mut Connection, mut socket: &Socket, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    while connection.is_handshaking() || connection.wants_write() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::TimedOut(limit));
        }
        socket.set_read_timeout(Some(left))?;
        socket.set_write_timeout(Some(left))?;
        let moved = if connection.wants_write() {
            connection.write_tls(&mut socket).map(|_| ())
        } else {
            connection.read_tls(&mut socket).and_then(|count| match count {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            })
        };
        match moved {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = connection.process_new_packets() {
            // Sends the alert that tells the peer why.
            let _ = connection.write_tls(&mut socket);
            return Err(Error::Handshake(error));
        }
    }
    Ok(())
}
