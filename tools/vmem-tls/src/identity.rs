// SPDX-License-Identifier: GPL-2.0-or-later
//! The certificate of this host, and the certificates that it accepts.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
use socket2::Socket;

use crate::allowed::{AllowedNames, Verifier};
use crate::error::Error;
use crate::relay::relay;

/// The certificate and key of this host, and the authority whose certificates it accepts from peers.
#[derive(Clone, Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
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
        let identity = |error: rustls::Error| Error::Identity(error.into());
        let built = |error: VerifierBuilderError| Error::Identity(error.into());
        let allowed = AllowedNames::new(names).map_err(Error::Name)?;
        let mut authority = RootCertStore::empty();
        for certificate in certificates(&directory.join("ca.pem"))? {
            authority.add(certificate).map_err(identity)?;
        }
        let own = certificates(&directory.join("cert.pem"))?;
        let path = directory.join("key.pem");
        let key = private_key(&path)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authority = Arc::new(authority);
        let versions = &[&rustls::version::TLS13];
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::clone(&authority), Arc::clone(&provider));
        let clients = WebPkiClientVerifier::builder_with_provider(authority, Arc::clone(&provider));
        let (servers, clients) = (servers.build().map_err(built)?, clients.build().map_err(built)?);
        let warnings = [readable_by_others(&path), expiry(&*clients, &own, UnixTime::now())];
        let servers: Arc<dyn ServerCertVerifier> = servers;
        // Not dangerous: the verifier is webpki's, with one more condition.
        let servers = Arc::new(Verifier {
            allowed: allowed.clone(),
            authority: servers,
        });
        let clients = Arc::new(Verifier {
            allowed,
            authority: clients,
        });
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(identity)?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_auth_cert(own.clone(), key.clone_key())
            .map_err(identity)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(identity)?
            .with_client_cert_verifier(clients)
            .with_single_cert(own, key)
            .map_err(identity)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            warnings: warnings.into_iter().flatten().collect(),
        })
    }

    /// Warnings about the files for the administrator: other users can read the key, or the certificate expires soon.
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
        let connection = ClientConnection::new(Arc::clone(&self.client), name).map_err(Error::Handshake)?;
        protect(connection.into(), socket.into(), limit)
    }

    /// Protects a connection that the peer made.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), but never [`Error::Name`].
    pub fn accept(&self, socket: impl Into<Socket>, limit: Duration) -> Result<(Socket, CloseReason), Error> {
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(Error::Handshake)?;
        protect(connection.into(), socket.into(), limit)
    }
}

#[cfg(test)]
impl Identity {
    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address: a certificate has none.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |why: String| Error::File {
        path: path.to_owned(),
        why,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let list: Vec<_> = list.collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
    if list.is_empty() {
        return Err(bad("it has no certificate".to_owned()));
    }
    Ok(list)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        // "BEGIN ENCRYPTED PRIVATE KEY", or "Proc-Type: 4,ENCRYPTED": the parser finds no key, or bytes that are no base64.
        let is_encrypted = std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"));
        let why = if is_encrypted {
            "the key is encrypted, and there is no way to enter the pass phrase; 'openssl pkey -in ENCRYPTED -out key.pem' makes one that is not".to_owned()
        } else {
            error.to_string()
        };
        Error::File {
            path: path.to_owned(),
            why,
        }
    })
}

/// A warning if users other than the owner can read or change the key; a group may read it.
fn readable_by_others(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode();
    (mode & 0o027 != 0).then(|| {
        let (path, mode) = (path.display(), mode & 0o777);
        format!("{path} has mode {mode:o}: other users can read or change it, and impersonate this host (chmod 600)")
    })
}

/// How long before its expiry a certificate is warned about.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A warning if the certificate of this host, or an intermediate one, has expired or expires soon.
fn expiry(verifier: &dyn ClientCertVerifier, own: &[CertificateDer<'_>], now: UnixTime) -> Option<String> {
    let (certificate, others) = own.split_first()?;
    // The verifier checks the time first: it does not matter that the certificate may be no client's.
    let has_expired = |at: UnixTime| {
        matches!(
            verifier.verify_client_cert(certificate, others, at),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        )
    };
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + EXPIRES_SOON);
    if has_expired(now) {
        Some("cert.pem, or one between it and the authority, has expired: peers will refuse it".to_owned())
    } else if has_expired(soon) {
        Some("cert.pem, or one between it and the authority, expires within 14 days".to_owned())
    } else {
        None
    }
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
