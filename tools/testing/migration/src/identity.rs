// SPDX-License-Identifier: GPL-2.0-or-later
//! Certificates for the hosts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A new authority, and a certificate by it for these addresses, in a directory as `--tls` wants it.
pub(crate) fn write(addresses: &[&str], directory: &Path) -> Result<PathBuf> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
    let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    fs::create_dir_all(directory)?;
    for (name, text) in [
        ("ca.pem", authority.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        fs::write(directory.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(directory.to_owned())
}
