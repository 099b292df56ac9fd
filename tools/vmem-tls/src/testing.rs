// SPDX-License-Identifier: GPL-2.0-or-later
//! Certificates for the tests of other crates.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Creates an authority and a certificate of it for these names and addresses, and writes both into `directory` as [`Identity::load`] reads them.
///
/// [`Identity::load`]: crate::Identity::load
pub fn write(names: &[&str], directory: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let params = CertificateParams::new(names).expect("parameters");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");
    for (file, text) in [
        ("ca.pem", authority.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(directory.join(file), text).expect("a file");
    }
}

/// Copies what [`write`] has written to the names that libvirt, QEMU, nbdkit and libnbd look for in a directory: `ca-cert.pem`, `server-cert.pem`,
/// `server-key.pem`, `client-cert.pem` and `client-key.pem`.
pub fn copy_for_others(directory: &Path) {
    for (file, copies) in [
        ("ca.pem", &["ca-cert.pem"][..]),
        ("cert.pem", &["server-cert.pem", "client-cert.pem"]),
        ("key.pem", &["server-key.pem", "client-key.pem"]),
    ] {
        for copy in copies {
            std::fs::copy(directory.join(file), directory.join(copy)).expect("a copy");
        }
    }
}
