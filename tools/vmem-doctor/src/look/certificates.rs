// SPDX-License-Identifier: GPL-2.0-or-later
//! The certificates of a directory for `--tls`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use vmem_authority::Certificate;
use vmem_cli::chain;
use vmem_tls::{Error, Identity};

use crate::finding::{Finding, State, Subject};
use crate::host::Host;

const SUBJECT: Subject = Subject::Certificates;

/// How long before its end a certificate is noted.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where the authority is, which is another machine.
const WHERE: &str = "where the directory of the authority is, and copy the files here";
const MAKE: &str = "vmemctl tls add-host authority $(hostname -f)";

/// Modes that let all users look into the directory, and read a certificate.
const SEARCHABLE: u32 = 0o005;
const READABLE: u32 = 0o004;

/// One finding for each file, one if they cannot be used together, and one for each mode that keeps renewed certificates from vmemd. A relative directory is where the command runs.
pub(super) fn look(host: &Host, directory: &Path) -> Vec<Finding> {
    let directory = if directory.is_absolute() {
        host.at(directory)
    } else {
        directory.to_owned()
    };
    let renew = [
        ("ca.pem", "vmemctl tls init authority"),
        ("cert.pem", "vmemctl tls renew authority"),
    ];
    let certificates = renew.map(|(name, renew)| certificate(host, &directory.join(name), renew));
    let mut findings: Vec<Finding> = certificates.into_iter().chain([key(&directory.join("key.pem"))]).collect();
    // With the same code as vmemd and vmemctl.
    if let Err(error) = Identity::load(&directory) {
        if !is_said(&findings, &error) {
            findings.push(Finding::missing(SUBJECT, format!("{}; make them {WHERE}", chain(&error))).mend(MAKE));
        }
    }
    let certificates = ["ca.pem", "cert.pem"].map(|name| (directory.join(name), READABLE));
    let kept = [(directory, SEARCHABLE)].into_iter().chain(certificates);
    findings.extend(kept.filter_map(|(path, mode)| kept_from_others(&path, mode)));
    findings
}

/// vmemd is no longer root when it looks whether the files have changed.
fn kept_from_others(path: &Path, mode: u32) -> Option<Finding> {
    let mode_of_all = fs::metadata(path).ok()?.permissions().mode();
    if mode_of_all & mode == mode {
        return None;
    }
    let shown = path.display();
    let text = format!(
        "{shown} cannot be read by all users: a vmemd that runs as nobody uses no renewed certificate until it is started again"
    );
    let mend = if mode == SEARCHABLE { 755 } else { 644 };
    Some(Finding::note(SUBJECT, text).mend(format!("chmod {mend} {shown}")))
}

/// Whether the line of the file says it already.
fn is_said(findings: &[Finding], error: &Error) -> bool {
    let Error::File { path, .. } = error else {
        return false;
    };
    let path = path.display().to_string();
    findings
        .iter()
        .any(|finding| finding.state == State::Missing && finding.text.contains(&path))
}

fn certificate(host: &Host, path: &Path, renew: &str) -> Finding {
    let shown = path.display();
    let certificate = match Certificate::read(path) {
        Ok(certificate) => certificate,
        Err(error) => return Finding::missing(SUBJECT, format!("{}; make it {WHERE}", chain(&error))).mend(MAKE),
    };
    let until = certificate.not_after();
    let (begin, end): (SystemTime, SystemTime) = (certificate.not_before().into(), until.into());
    let until = until.date();
    if host.now >= end {
        return Finding::missing(SUBJECT, format!("{shown} has expired ({until}); make a new one {WHERE}")).mend(renew);
    }
    if host.now < begin {
        return Finding::missing(
            SUBJECT,
            format!("{shown} is not valid yet: the clock is behind, or it was made elsewhere"),
        )
        .mend("date");
    }
    let days = end.duration_since(host.now).unwrap_or_default().as_secs() / (24 * 3600);
    if host.now + SOON >= end {
        return Finding::note(
            SUBJECT,
            format!("{shown} expires in {days} days ({until}); make a new one {WHERE}"),
        )
        .mend(renew);
    }
    Finding::good(SUBJECT, format!("{shown} is valid for {days} days ({until})"))
}

fn key(path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) => Finding::missing(SUBJECT, format!("{shown}: {error}; make it {WHERE}")).mend(MAKE),
        // A group may read it, as vmemd and vmemctl have it.
        Ok(metadata) if metadata.permissions().mode() & 0o027 != 0 => {
            Finding::note(SUBJECT, format!("{shown} can be read or changed by others")).mend(format!("chmod 600 {shown}"))
        }
        Ok(_) => Finding::good(SUBJECT, format!("{shown} is its owner's alone")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::time::UNIX_EPOCH;

    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    const DAY: u64 = 24 * 3600;

    /// The end of certificates, as seen from the machine's time.
    fn with_days(fake: &Fake, begin: i64, end: i64) {
        let now = fake.host.now.duration_since(UNIX_EPOCH).expect("a time").as_secs() as i64;
        let at = |days: i64| OffsetDateTime::from_unix_timestamp(now + days * DAY as i64).expect("a time");
        let mut params = CertificateParams::new(vec!["host0".to_owned()]).expect("parameters");
        (params.not_before, params.not_after) = (at(begin), at(end));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let directory = fake.host.at("/etc/vmem");
        fs::create_dir_all(&directory).expect("a directory");
        for (name, text) in [
            ("ca.pem", certificate.pem()),
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            fs::write(directory.join(name), text).expect("a file");
        }
        for (name, mode) in [("", 0o755), ("ca.pem", 0o644), ("cert.pem", 0o644), ("key.pem", 0o600)] {
            fs::set_permissions(directory.join(name), Permissions::from_mode(mode)).expect("a mode");
        }
    }

    fn states(fake: &Fake) -> Vec<State> {
        let findings = look(&fake.host, Path::new("/etc/vmem"));
        findings.iter().map(|finding| finding.state).collect()
    }

    #[test]
    fn end_of_certificates_decides() {
        let fake = Fake::new();
        for (begin, end, state) in [
            (-1, 300, State::Good),
            (-1, 20, State::Note),
            (-20, -1, State::Missing),
            (1, 300, State::Missing),
        ] {
            with_days(&fake, begin, end);
            assert_eq!(states(&fake), [state, state, State::Good], "{begin} to {end}");
        }
    }

    #[test]
    fn end_is_said_in_days() {
        let fake = Fake::new();
        with_days(&fake, -1, 300);
        let findings = look(&fake.host, Path::new("/etc/vmem"));
        let text = &findings[1].text;
        assert!(
            text.contains("valid for 299 days") || text.contains("valid for 300 days"),
            "{text}"
        );
    }

    #[test]
    fn key_that_others_read_is_noted() {
        let fake = Fake::new();
        with_days(&fake, -1, 300);
        let key = fake.host.at("/etc/vmem/key.pem");
        fs::set_permissions(key, Permissions::from_mode(0o644)).expect("a mode");
        assert_eq!(states(&fake)[2], State::Note);
    }

    #[test]
    fn certificates_that_vmemd_cannot_read_again_are_noted() {
        let fake = Fake::new();
        with_days(&fake, -1, 300);
        for (path, mode, other, mend) in [
            ("/etc/vmem", 0o755, 0o750, "chmod 755 "),
            ("/etc/vmem/cert.pem", 0o644, 0o600, "chmod 644 "),
        ] {
            let path = fake.host.at(path);
            fs::set_permissions(&path, Permissions::from_mode(other)).expect("a mode");
            let findings = look(&fake.host, Path::new("/etc/vmem"));
            let last = findings.last().expect("findings");
            assert_eq!((findings.len(), last.state), (4, State::Note), "{findings:?}");
            assert_eq!(last.mend.as_deref(), Some(format!("{mend}{}", path.display()).as_str()));
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        }
    }

    #[test]
    fn key_of_another_host_is_missing() {
        let fake = Fake::new();
        with_days(&fake, -1, 300);
        let key = fake.host.at("/etc/vmem/key.pem");
        fs::write(&key, KeyPair::generate().expect("a key").serialize_pem()).expect("a file");
        let findings = look(&fake.host, Path::new("/etc/vmem"));
        let last = findings.last().expect("findings");
        assert_eq!((findings.len(), last.state), (4, State::Missing));
        assert!(last.text.contains("do not belong together"), "{}", last.text);
        fs::write(&key, "no key").expect("a file");
        let findings = look(&fake.host, Path::new("/etc/vmem"));
        assert!(findings[3].text.contains("key.pem"), "{}", findings[3].text);
    }

    #[test]
    fn expired_certificates_are_renewed() {
        let fake = Fake::new();
        with_days(&fake, -20, -1);
        let findings = look(&fake.host, Path::new("/etc/vmem"));
        assert_eq!(findings[1].mend.as_deref(), Some("vmemctl tls renew authority"));
    }

    #[test]
    fn files_that_are_not_there_are_missing() {
        let fake = Fake::new().file("/etc/vmem/ca.pem", "no certificate");
        assert_eq!(states(&fake), [State::Missing; 3]);
    }
}
