// SPDX-License-Identifier: GPL-2.0
//! Certificates, made as howto-qemu.rst says.

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
        let openssl = |words: &str, files: &[(&str, &str)]| -> Outcome {
            let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            files
                .iter()
                .for_each(|(option, file)| words.extend([(*option).to_owned(), path(file)]));
            run_command("openssl", &words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
        };
        let extensions = "basicConstraints = CA:FALSE\nkeyUsage = digitalSignature\nextendedKeyUsage = serverAuth, clientAuth\n\
                          subjectAltName = DNS:localhost\n";
        fs::write(path("extensions"), extensions)?;
        openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 -subj /CN=authority",
            &[("-keyout", "authority.pem"), ("-out", "ca.pem")],
        )?;
        openssl(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=host",
            &[("-keyout", "key.pem"), ("-out", "request.pem")],
        )?;
        let request = [
            ("-in", "request.pem"),
            ("-CA", "ca.pem"),
            ("-CAkey", "authority.pem"),
            ("-extfile", "extensions"),
            ("-out", "cert.pem"),
        ];
        openssl("x509 -req -CAcreateserial -days 30", &request)?;
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
