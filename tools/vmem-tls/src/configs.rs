// SPDX-License-Identifier: GPL-2.0-or-later
//! The configurations of both sides of a connection, from the files of a directory.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use crate::allowed::{AllowedNames, Verifier};
use crate::error::Error;

/// The files of an identity.
pub(crate) const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// What connections are protected with.
#[derive(Debug)]
pub(crate) struct Configs {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) warnings: Vec<String>,
    key: PrivateKeyDer<'static>,
}

impl Configs {
    /// Loads the files of `directory`. If this process may not read the key, that of `previous` is used, if the certificate is for it.
    pub(crate) fn load(directory: &Path, allowed: &AllowedNames, previous: Option<&Self>) -> Result<Self, Error> {
        let identity = |error: rustls::Error| Error::Identity(error.into());
        let built = |error: VerifierBuilderError| Error::Identity(error.into());
        let mut authority = RootCertStore::empty();
        for certificate in certificates(&directory.join("ca.pem"))? {
            authority.add(certificate).map_err(identity)?;
        }
        let own = certificates(&directory.join("cert.pem"))?;
        let path = directory.join("key.pem");
        let kept = previous.filter(|_| is_denied(&path)).map(|previous| previous.key.clone_key());
        let unfit = |error: rustls::Error| match kept {
            // The key of the certificate is in the file.
            Some(_) => Error::File {
                path: path.clone(),
                why: "this process may not read it, and cert.pem is for another key than the one that it has read before"
                    .to_owned(),
            },
            None => identity(error),
        };
        let key = match &kept {
            Some(key) => key.clone_key(),
            None => private_key(&path)?,
        };
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
            allowed: allowed.clone(),
            authority: clients,
        });
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(identity)?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_auth_cert(own.clone(), key.clone_key())
            .map_err(unfit)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(identity)?
            .with_client_cert_verifier(clients)
            .with_single_cert(own, key.clone_key())
            .map_err(unfit)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            warnings: warnings.into_iter().flatten().collect(),
            key,
        })
    }
}

/// Whether this process may not read the file.
fn is_denied(path: &Path) -> bool {
    File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
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
