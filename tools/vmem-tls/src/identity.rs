// SPDX-License-Identifier: GPL-2.0
//! Who this side is, and whom it believes.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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
use crate::carry::carry;

/// Why a connection is not protected, and so not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Certificate and key do not make an identity.
    #[error("certificate, key and authority do not fit each other")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was connected to is no name that a certificate can have.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// The other side is not to be believed, or does not believe this one.
    #[error("the other side and this one do not agree who they are")]
    Handshake(#[source] rustls::Error),
    /// What came later is not what the other side has sent.
    #[error("the protected connection broke")]
    Broken(#[source] rustls::Error),
    /// It does not say who it is in time.
    #[error("the other side did not say who it is within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The connection failed.
    #[error("the connection failed before it was protected")]
    Io(#[from] io::Error),
}

/// A certificate, its key, and the authority whose certificates are believed.
#[derive(Clone, Debug)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    warnings: Vec<String>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` (with the certificates up to the authority, if there are some between) and `key.pem` in `directory`.
    ///
    /// # Errors
    ///
    /// [`TlsError::File`], [`TlsError::Identity`].
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        Self::load_allowing(directory, &[])
    }

    /// As [`load`](Self::load). Of those whom the authority has certified, only those are believed whose certificate has one of `names`
    /// among its alternative names: of hosts, or addresses. No names are no restriction.
    ///
    /// # Errors
    ///
    /// As for [`load`](Self::load); [`TlsError::Name`].
    pub fn load_allowing(directory: &Path, names: &[String]) -> Result<Self, TlsError> {
        let identity = |error: rustls::Error| TlsError::Identity(error.into());
        let built = |error: VerifierBuilderError| TlsError::Identity(error.into());
        let allowed = AllowedNames::new(names).map_err(TlsError::Name)?;
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
        // Not dangerous: it is webpki's verifier, and one condition more.
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

    /// What whoever looks after the files should know: others can read the key, or the certificate is about to expire.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Protects a connection that this side has made to `address` (`HOST:PORT`), and returns what is to be used instead of it, and
    /// where it says why it has ended. The other
    /// side must have a certificate for the host, which is a name or an address.
    ///
    /// # Errors
    ///
    /// All but [`TlsError::File`] and [`TlsError::Identity`].
    pub fn connect(&self, socket: TcpStream, address: &str, limit: Duration) -> Result<(Socket, Trouble), TlsError> {
        let host = host_of(address);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name).map_err(TlsError::Handshake)?;
        protect(connection.into(), socket, limit)
    }

    /// Protects a connection that the other side has made.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), but for names.
    pub fn accept(&self, socket: TcpStream, limit: Duration) -> Result<(Socket, Trouble), TlsError> {
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(TlsError::Handshake)?;
        protect(connection.into(), socket, limit)
    }
}

#[cfg(test)]
impl Identity {
    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// The host of `HOST:PORT`; one of IPv6 is in brackets there, and not in a certificate.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let list = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
    let list: Vec<_> = list.collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
    if list.is_empty() {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    Ok(list)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        // "BEGIN ENCRYPTED PRIVATE KEY", or "Proc-Type: 4,ENCRYPTED": the parser finds no key, or bytes that are no base64.
        let is_encrypted = std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"));
        let why = if is_encrypted {
            "the key is encrypted, and nobody is there to give the pass phrase; 'openssl pkey -in ENCRYPTED -out key.pem' makes one that is not".to_owned()
        } else {
            error.to_string()
        };
        TlsError::File {
            path: path.to_owned(),
            why,
        }
    })
}

/// Whether anybody but the owner of the key, and a group that may read it, can read it or change it.
fn readable_by_others(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode();
    (mode & 0o027 != 0).then(|| {
        let (path, mode) = (path.display(), mode & 0o777);
        format!("{path} has mode {mode:o}: others can read or change it, and pass for this side with it (chmod 600)")
    })
}

/// How long before its end a certificate is warned about.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Whether this side's own certificate has expired, or is about to.
fn expiry(verifier: &dyn ClientCertVerifier, own: &[CertificateDer<'_>], now: UnixTime) -> Option<String> {
    let (certificate, others) = own.split_first()?;
    // That it is none of a client is no matter: the time is looked at first.
    let has_expired = |at: UnixTime| {
        matches!(
            verifier.verify_client_cert(certificate, others, at),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        )
    };
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + SOON);
    if has_expired(now) {
        Some("cert.pem, or one between it and the authority, has expired: the other side will not believe it".to_owned())
    } else if has_expired(soon) {
        Some("cert.pem, or one between it and the authority, expires within 14 days".to_owned())
    } else {
        None
    }
}

fn protect(mut connection: Connection, socket: TcpStream, limit: Duration) -> Result<(Socket, Trouble), TlsError> {
    shake_hands(&mut connection, &socket, limit)?;
    let (ours, theirs) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let trouble = Trouble::default();
    let its_trouble = trouble.clone();
    thread::Builder::new().name("tls".to_owned()).spawn(move || {
        if let Err(error) = carry(connection, &socket, &theirs, limit) {
            its_trouble.note(error);
        }
        // Both are closed when they are dropped; whoever has another handle of one shall notice as well.
        let _ = socket.shutdown(Shutdown::Both);
        let _ = theirs.shutdown(Shutdown::Both);
    })?;
    Ok((Socket::from(ours), trouble))
}

/// What a protected connection has ended of. For its user it is one that was closed: this tells why.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<rustls::Error>>>);

impl Trouble {
    /// What broke the protection, if that is why it has ended. Told once.
    #[must_use]
    pub fn take(&self) -> Option<TlsError> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(match error {
            rustls::Error::AlertReceived(alert) if is_about_identity(alert) => TlsError::Handshake(error),
            error => TlsError::Broken(error),
        })
    }

    /// That the network has failed is no trouble of the protection.
    fn note(&self, error: io::Error) {
        let error = error.into_inner().and_then(|error| error.downcast::<rustls::Error>().ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error.map(|error| *error);
    }
}

/// Whether the other side says that it does not believe this one. In TLS 1.3 it says so when the handshake is over here already.
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
            // A signature that is not by the authority's key.
            | AlertDescription::DecryptError
    )
}

fn shake_hands(connection: &mut Connection, mut socket: &TcpStream, limit: Duration) -> Result<(), TlsError> {
    let deadline = Instant::now() + limit;
    while connection.is_handshaking() || connection.wants_write() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TlsError::TimedOut(limit));
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
            // The other side shall know why.
            let _ = connection.write_tls(&mut socket);
            return Err(TlsError::Handshake(error));
        }
    }
    Ok(())
}
