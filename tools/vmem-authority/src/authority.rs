// SPDX-License-Identifier: GPL-2.0-or-later
//! The authority.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use rustix::rand::{GetRandomFlags, getrandom};
use time::{Duration, OffsetDateTime};

use crate::certificate::Certificate;
use crate::error::Error;
use crate::files::{self, NewDirectory, Readers};
use crate::host_name::HostName;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";
const HOST_CERTIFICATE: &str = "cert.pem";
const HOST_KEY: &str = "key.pem";

/// The longest period of validity in days: a century.
const DAYS_MAX: u32 = 36_500;

/// The most characters of a common name (RFC 5280, appendix A.1, `ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// How long before its issue a certificate is valid: the clock of another host may be behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Bytes of a serial number: random, at most 20 (RFC 5280, section 4.1.2.2).
const SERIAL_BYTES: usize = 16;

/// An authority, which issues certificates. Whoever can read its directory can issue certificates, too.
pub struct Authority {
    directory: PathBuf,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A host that has a directory.
#[derive(Debug)]
pub struct Host {
    /// The name of its directory.
    pub name: String,
    /// Its certificate, if that can be read.
    pub certificate: Result<Certificate, Error>,
}

impl Authority {
    /// Makes a new authority in `directory`, which must not exist.
    ///
    /// # Errors
    ///
    /// [`Error::AuthorityName`], [`Error::Exists`], [`Error::Write`], [`Error::Days`], [`Error::Random`], [`Error::Make`].
    pub fn create(directory: &Path, name: &str, days: u32) -> Result<Self, Error> {
        if !(1..=COMMON_NAME_MAX).contains(&name.chars().count()) {
            return Err(Error::AuthorityName(name.to_owned()));
        }
        let mut params = params(name, days)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let new = NewDirectory::new(directory)?;
        new.put(KEY, &key.serialize_pem(), Readers::Owner)?;
        new.put(CERTIFICATE, &certificate.pem(), Readers::Everybody)?;
        new.finish()?;
        Self::open(directory)
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], [`Error::File`].
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(KEY);
        let bad = |path: &Path| {
            let path = path.to_owned();
            |why: String| Error::File { path, why }
        };
        let key = String::from_utf8(files::read(&path)?).map_err(|_| bad(&path)("it has no key".to_owned()))?;
        let key = KeyPair::from_pem(&key).map_err(|error| bad(&path)(error.to_string()))?;
        let certificate = Certificate::read(&directory.join(CERTIFICATE))?;
        let is_of_key = certificate.parsed(|parsed| parsed.public_key().raw == key.subject_public_key_info())?;
        if !is_of_key {
            return Err(bad(certificate.path())(format!("it is not of the key {}", path.display())));
        }
        let text = String::from_utf8_lossy(&files::read(certificate.path())?).into_owned();
        let issuer = Issuer::from_ca_cert_pem(&text, key).map_err(|error| bad(certificate.path())(error.to_string()))?;
        Ok(Self {
            directory: directory.to_owned(),
            certificate,
            issuer,
        })
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Makes a key and a certificate for `names`, in a new directory `host` of the authority's directory. The certificate is valid for `days`, but for no longer than the authority's.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::Host`] for a `host` that is no name, [`Error::NoNames`], [`Error::Expired`], [`Error::Days`], [`Error::Write`], [`Error::Random`],
    /// [`Error::Make`].
    pub fn add_host(&self, host: &str, names: &[HostName], days: u32) -> Result<Certificate, Error> {
        let directory = self.host_directory(host)?;
        let key = KeyPair::generate()?;
        let text = self.issue(host, names, &key, days)?;
        let new = NewDirectory::new(&directory)?;
        let authority = files::read(self.certificate.path())?;
        new.put(CERTIFICATE, &String::from_utf8_lossy(&authority), Readers::Everybody)?;
        new.put(HOST_CERTIFICATE, &text, Readers::Everybody)?;
        new.put(HOST_KEY, &key.serialize_pem(), Readers::Owner)?;
        new.finish()?;
        Certificate::read(&directory.join(HOST_CERTIFICATE))
    }

    /// Replaces the certificate of a host by one for the same names and the same key. So only `cert.pem` has to be copied, and the key need not be here.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`], [`Error::OtherNames`], [`Error::Read`], [`Error::File`], and as for [`add_host`](Self::add_host).
    pub fn renew(&self, host: &str, days: u32) -> Result<Certificate, Error> {
        let path = self.host_directory(host)?.join(HOST_CERTIFICATE);
        let old = Certificate::read(&path)?;
        if !old.is_issued_by(&self.certificate)? {
            return Err(Error::Foreign(path));
        }
        if old.has_other_names() {
            return Err(Error::OtherNames(path));
        }
        let key = old.parsed(|parsed| SubjectPublicKeyInfo::from_der(parsed.public_key().raw))??;
        let text = self.issue(host, old.names(), &key, days)?;
        files::write(&path, &text, Readers::Everybody)?;
        Certificate::read(&path)
    }

    /// The hosts, by their directories' names, and their certificates as far as they can be read.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] for the authority's directory.
    pub fn hosts(&self) -> Result<Vec<Host>, Error> {
        let failed = |source| Error::Read {
            path: self.directory.clone(),
            source,
        };
        let mut hosts = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path().join(HOST_CERTIFICATE);
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !name.starts_with('.') && path.exists() {
                let certificate = Certificate::read(&path);
                hosts.push(Host { name, certificate });
            }
        }
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(hosts)
    }

    /// Where the files of a host are.
    fn host_directory(&self, host: &str) -> Result<PathBuf, Error> {
        // Not a path out of the directory: a name has no slash, and no label of it is empty.
        match host.parse() {
            Ok(HostName::Dns(_)) => Ok(self.directory.join(host)),
            Ok(HostName::Address(_)) | Err(_) => Err(Error::Host(host.to_owned())),
        }
    }

    fn issue(&self, host: &str, names: &[HostName], key: &impl PublicKeyData, days: u32) -> Result<String, Error> {
        if names.is_empty() {
            return Err(Error::NoNames);
        }
        if self.certificate.has_expired() {
            return Err(Error::Expired(self.certificate.not_after().date().to_string()));
        }
        let mut params = params(host, days)?;
        params.not_after = params.not_after.min(self.certificate.not_after());
        params.subject_alt_names = names.iter().map(HostName::to_san).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A host is the client of one connection and the server of another one.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// A certificate with a common name, valid from now on.
fn params(name: &str, days: u32) -> Result<CertificateParams, Error> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(Error::Days(days));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // It is for people: what counts are the alternative names.
    let name: String = name.chars().take(COMMON_NAME_MAX).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(days.into());
    params.serial_number = Some(serial_number()?);
    Ok(params)
}

/// A number that no other certificate has, so that a renewed certificate is another one.
fn serial_number() -> Result<SerialNumber, Error> {
    let mut bytes = [0; SERIAL_BYTES];
    let mut filled = 0;
    while filled < SERIAL_BYTES {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).map_err(|errno| Error::Random(errno.into()))?;
    }
    // Positive, and not zero.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
