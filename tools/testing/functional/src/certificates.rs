// SPDX-License-Identifier: GPL-2.0-or-later
//! Certificates, made by `vmemctl tls` as howto-qemu.rst says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Outcome;
use crate::world::run_command;

/// A directory with a certificate for `localhost`, by an authority of its own. Removed at the end of its test.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// The files have the names that `--tls` wants, and those that QEMU, nbdkit and libnbd want.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        let directory = PathBuf::from(format!("/dev/shm/vmem-certificates-{name}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory)?;
        let certificates = Self(directory);
        let path = |file: &str| certificates.0.join(file).to_string_lossy().into_owned();
        let vmemctl = std::env::current_exe()?
            .with_file_name("vmemctl")
            .to_string_lossy()
            .into_owned();
        run_command(&vmemctl, &["tls", "init", &path("authority"), "--days", "30"])?;
        run_command(&vmemctl, &["tls", "add-host", &path("authority"), "localhost"])?;
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(path(&format!("authority/localhost/{file}")), path(file))?;
        }
        // Whether another implementation takes it for both sides of a connection.
        for purpose in ["sslserver", "sslclient"] {
            let words = ["verify", "-x509_strict", "-verify_hostname", "localhost", "-purpose", purpose];
            let files = ["-CAfile", &path("ca.pem"), &path("cert.pem")];
            run_command("openssl", &[&words[..], &files].concat())?;
        }
        for (file, copies) in [
            ("ca.pem", &["ca-cert.pem"][..]),
            ("cert.pem", &["server-cert.pem", "client-cert.pem"]),
            ("key.pem", &["server-key.pem", "client-key.pem"]),
        ] {
            for copy in copies {
                fs::copy(path(file), path(copy))?;
            }
        }
        Ok(certificates)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn text(&self) -> Outcome<&str> {
        Ok(self.0.to_str().ok_or("a path that is no text")?)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
