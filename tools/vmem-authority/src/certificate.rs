// SPDX-License-Identifier: GPL-2.0-or-later
//! What a certificate says.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

use crate::error::Error;
use crate::files;
use crate::host_name::HostName;

/// A certificate: the first of a file.
#[derive(Clone, Debug)]
pub struct Certificate {
    path: PathBuf,
    der: Vec<u8>,
    names: Vec<HostName>,
    has_other_names: bool,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Certificate {
    /// Reads the first certificate of a file in PEM (RFC 7468).
    ///
    /// # Errors
    ///
    /// [`Error::Read`]; [`Error::File`] if it is no certificate.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |why: String| Error::File {
            path: path.to_owned(),
            why,
        };
        let bytes = files::read(path)?;
        let pem = Pem::iter_from_buffer(&bytes).find(|pem| pem.as_ref().map_or(true, |pem| pem.label == "CERTIFICATE"));
        let pem = pem.ok_or_else(|| bad("it has no certificate".to_owned()))?;
        let pem = pem.map_err(|error| bad(error.to_string()))?;
        let parsed = pem.parse_x509().map_err(|error| bad(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| bad(error.to_string()))?;
        let all = names.map_or(&[][..], |names| &names.value.general_names);
        let names: Vec<HostName> = all.iter().filter_map(HostName::from_general_name).collect();
        let has_other_names = names.len() < all.len();
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self {
            path: path.to_owned(),
            names,
            has_other_names,
            not_before: not_before.to_datetime(),
            not_after: not_after.to_datetime(),
            der: pem.contents,
        })
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names and addresses that it is for.
    #[must_use]
    pub fn names(&self) -> &[HostName] {
        &self.names
    }

    /// Whether it also has names that are neither of hosts nor addresses.
    pub(crate) fn has_other_names(&self) -> bool {
        self.has_other_names
    }

    /// From when on it is valid.
    #[must_use]
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Whether it is not valid any more.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.not_after < OffsetDateTime::now_utc()
    }

    /// Calls `with` with all that it says.
    pub(crate) fn parsed<R>(&self, with: impl FnOnce(&X509Certificate<'_>) -> R) -> Result<R, Error> {
        let parsed = x509_parser::parse_x509_certificate(&self.der);
        let (_, parsed) = parsed.map_err(|error| Error::File {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        Ok(with(&parsed))
    }

    /// Whether `issuer` has signed it.
    pub(crate) fn is_issued_by(&self, issuer: &Self) -> Result<bool, Error> {
        issuer.parsed(|issuer| self.parsed(|own| own.verify_signature(Some(issuer.public_key())).is_ok()))?
    }
}
