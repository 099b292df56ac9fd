// SPDX-License-Identifier: GPL-2.0-or-later
//! Which certificates of the authority are accepted.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Names of which a certificate must have one, as a subject alternative name. Without names, every certificate of the authority is accepted.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowedNames(Vec<ServerName<'static>>);

impl AllowedNames {
    /// Parses names of hosts and addresses. The error is the first text that is neither.
    pub(crate) fn new(names: &[String]) -> Result<Self, String> {
        let name = |name: &String| ServerName::try_from(name.clone()).map_err(|_| name.clone());
        names.iter().map(name).collect::<Result<_, _>>().map(Self)
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let mut refused = Ok(());
        for name in &self.0 {
            match verify_server_name(&certificate, name) {
                Ok(()) => return Ok(()),
                // The error lists the names of the certificate.
                Err(error) => refused = Err(error),
            }
        }
        refused
    }
}

/// Verifies that a certificate is the authority's, and that it has one of the allowed names.
#[derive(Debug)]
pub(crate) struct Verifier<V: ?Sized> {
    pub(crate) allowed: AllowedNames,
    pub(crate) authority: Arc<V>,
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authority.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.authority.verify_client_cert(end_entity, intermediates, now)?;
        self.allowed.check(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Verifier<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .authority
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.allowed.check(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}
