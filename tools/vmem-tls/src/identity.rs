// SPDX-License-Identifier: GPL-2.0
//! Who this side is, and whom it believes.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use socket2::Socket;

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
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` (with the certificates up to the authority, if there are some between) and `key.pem` in `directory`.
    ///
    /// # Errors
    ///
    /// [`TlsError::File`], [`TlsError::Identity`].
    pub fn load(directory: &Path) -> Result<Self, TlsError> {
        let identity = |error: rustls::Error| TlsError::Identity(error.into());
        let mut authority = RootCertStore::empty();
        for certificate in certificates(&directory.join("ca.pem"))? {
            authority.add(certificate).map_err(identity)?;
        }
        let own = certificates(&directory.join("cert.pem"))?;
        let path = directory.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| TlsError::File {
            path,
            why: error.to_string(),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let authority = Arc::new(authority);
        let versions = &[&rustls::version::TLS13];
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(identity)?
            .with_root_certificates(Arc::clone(&authority))
            .with_client_auth_cert(own.clone(), key.clone_key())
            .map_err(identity)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(authority, Arc::clone(&provider)).build();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(identity)?
            .with_client_cert_verifier(verifier.map_err(|error| TlsError::Identity(error.into()))?)
            .with_single_cert(own, key)
            .map_err(identity)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// Protects a connection that this side has made to `address` (`HOST:PORT`), and returns what is to be used instead of it. The other
    /// side must have a certificate for the host, which is a name or an address.
    ///
    /// # Errors
    ///
    /// All but [`TlsError::File`] and [`TlsError::Identity`].
    pub fn connect(&self, socket: TcpStream, address: &str, limit: Duration) -> Result<Socket, TlsError> {
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
    pub fn accept(&self, socket: TcpStream, limit: Duration) -> Result<Socket, TlsError> {
        let connection = ServerConnection::new(Arc::clone(&self.server)).map_err(TlsError::Handshake)?;
        protect(connection.into(), socket, limit)
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

fn protect(mut connection: Connection, socket: TcpStream, limit: Duration) -> Result<Socket, TlsError> {
    shake_hands(&mut connection, &socket, limit)?;
    let (ours, theirs) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    thread::Builder::new()
        .name("tls".to_owned())
        .spawn(move || carry(connection, &socket, &theirs))?;
    Ok(Socket::from(ours))
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
