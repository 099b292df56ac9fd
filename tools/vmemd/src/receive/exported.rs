// SPDX-License-Identifier: GPL-2.0-or-later
//! `--source nbd[s]://HOST[:PORT]/EXPORT` and `nbd[s]+unix:///EXPORT?socket=PATH`: a region is filled from an NBD server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use vmem_nbd_source::{Endpoint, Place, Uri, UriError};
use vmem_source::PageSource;
use vmem_source::endpoint::Security;
use vmem_tls::Identity;

use super::Source;
use crate::cli::Receive;
use crate::failure::Failure;
use crate::privileges::{Files, User};

/// What is read after the privileges are given up: how much memory is left.
const READABLE: [&str; 2] = ["/proc", "/sys"];

/// The source at this URI. vmemd becomes the user that owns the server's socket: nobody else can connect to it, usually.
pub(super) fn open(uri: &str, args: &Receive, timeout: Duration) -> Result<Source, Failure> {
    let invalid = |error: UriError| Failure::Source(vmem_source::Error::Nbd(error.into()));
    let uri: Uri = uri.parse().map_err(invalid)?;
    let certificates = uri.tls.as_ref().and_then(|tls| tls.certificates.as_ref());
    let mut warnings = Vec::new();
    let directory = args.tls.as_ref().or(certificates).cloned();
    let security = match (&uri.tls, &directory) {
        (None, Some(_)) => return Err(Failure::NbdInClearText),
        (Some(_), None) => return Err(Failure::NoCertificates),
        (Some(_), Some(directory)) => {
            let identity = Identity::load_allowing(directory, &args.allow_names)?;
            warnings.extend_from_slice(identity.warnings());
            Security::Tls(identity)
        }
        (None, None) if args.insecure => Security::Insecure,
        (None, None) => Security::Loopback,
    };
    let confinement = match &uri.place {
        Place::Unix(path) => {
            let files = Files {
                readable: READABLE.map(Into::into).to_vec(),
                writable: Vec::new(),
            };
            // A socket that is not there may come; one of the abstract namespace has no owner.
            let owner = fs::metadata(path).map_or(User::NOBODY, |metadata| User {
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
            (owner, files)
        }
        // It is reached as another vmemd is.
        Place::Tcp(_) => (User::NOBODY, Files::default()),
    };
    let (user, files) = confinement;
    let confinement = (user, files.and_certificates(directory.as_ref()));
    let endpoint = Endpoint::new(uri, security, timeout);
    let connect = move |lane| endpoint.connect(lane).map(|source| Box::new(source) as Box<dyn PageSource>);
    Ok(Source {
        connect: Arc::new(connect),
        endpoint: None,
        warnings,
        confinement,
        at_end: None,
        publish: None,
        files: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use clap::Parser;
    use vmem_source::Lane;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        receive: Receive,
    }

    fn opened(uri: &str, options: &[&str]) -> Result<Source, Failure> {
        let line = Line::try_parse_from([&["vmemd", "--source", uri][..], options].concat());
        open(uri, &line.expect("a command line").receive, LIMIT)
    }

    #[test]
    fn reader_of_a_socket_is_its_owner_and_reads_no_other_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let uri = format!("nbd+unix:///ram?socket={}", path.display());
        let confinement = |uri: &str| opened(uri, &[]).expect("a source").confinement;
        assert_eq!(confinement(&uri).0, User::NOBODY);
        let _listener = UnixListener::bind(&path).expect("a socket");
        let metadata = fs::metadata(&path).expect("a socket");
        let (user, files) = confinement(&uri);
        assert_eq!((user.uid, user.gid), (metadata.uid(), metadata.gid()));
        assert!(files.writable.is_empty() && !files.readable.iter().any(|path| path.starts_with("/etc")));
        assert_eq!(confinement("nbd://localhost/ram"), (User::NOBODY, Files::default()));
    }

    #[test]
    fn exit_code_says_whether_the_server_is_away_or_refuses() {
        let code = |uri: &str| {
            let opened = opened(uri, &[]).expect("a source");
            Failure::Source((opened.connect)(Lane::Urgent).err().expect("no server")).code()
        };
        assert_eq!(code("nbd+unix:///ram?socket=/nonexistent/s"), 2);
        assert_eq!(code("nbd://192.0.2.1/ram"), 1, "clear text");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            std::io::Write::write_all(&mut stream, b"220 mail.example.com ESMTP").expect("a client");
        });
        assert_eq!(code(&format!("nbd+unix:///ram?socket={}", path.display())), 3);
    }

    #[test]
    fn certificates_are_for_servers_over_tls_and_those_need_them() {
        let directory = tempfile::tempdir().expect("a directory");
        vmem_tls::testing::write(&["localhost"], directory.path());
        let tls = ["--tls", directory.path().to_str().expect("text")];
        for uri in ["nbd://localhost/ram", "nbd+unix:///ram?socket=/s"] {
            assert!(matches!(opened(uri, &tls), Err(Failure::NbdInClearText)), "{uri}");
        }
        for uri in ["nbds://localhost/ram", "nbds+unix:///ram?socket=/s"] {
            assert!(matches!(opened(uri, &[]), Err(Failure::NoCertificates)), "{uri}");
            opened(uri, &tls).expect("a source");
        }
        opened(&format!("nbds://localhost/ram?tls-certificates={}", tls[1]), &[]).expect("a source");
        let source = opened("nbds://localhost/ram?tls-certificates=/nowhere", &tls).expect("the option counts");
        // Renewed ones can be read there.
        assert!(source.confinement.1.readable.contains(&directory.path().to_owned()));
        assert!(opened("nbds://localhost/ram", &["--tls", "/nowhere"]).is_err());
    }
}
