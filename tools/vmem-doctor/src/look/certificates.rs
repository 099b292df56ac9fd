// SPDX-License-Identifier: GPL-2.0
//! The certificates of a directory for `--tls`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::pem::Pem;

use crate::finding::Finding;
use crate::host::Host;

const SUBJECT: &str = "certificates";

/// How long before its end a certificate is noted.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// What mends all of them.
const HOW: &str = "the commands of howto-qemu, \"Certificates\"";

/// One finding for each file. A relative directory is where the command runs.
pub(super) fn look(host: &Host, directory: &Path) -> Vec<Finding> {
    let directory = if directory.is_absolute() {
        host.at(directory)
    } else {
        directory.to_owned()
    };
    let certificates = ["ca.pem", "cert.pem"].map(|name| certificate(host, &directory.join(name)));
    certificates.into_iter().chain([key(&directory.join("key.pem"))]).collect()
}

fn certificate(host: &Host, path: &Path) -> Finding {
    let shown = path.display();
    let (begin, end, until) = match validity(path) {
        Ok(validity) => validity,
        Err(why) => return Finding::missing(SUBJECT, format!("{shown}: {why}")).mend(HOW),
    };
    if host.now >= end {
        return Finding::missing(SUBJECT, format!("{shown} has expired ({until})")).mend(HOW);
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
        return Finding::note(SUBJECT, format!("{shown} expires in {days} days ({until})")).mend(HOW);
    }
    Finding::good(SUBJECT, format!("{shown} is valid for {days} days ({until})"))
}

/// The first certificate's time, and its end in words.
fn validity(path: &Path) -> Result<(SystemTime, SystemTime, String), String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let pem = Pem::iter_from_buffer(&text)
        .filter_map(Result::ok)
        .find(|pem| pem.label == "CERTIFICATE")
        .ok_or("no certificate")?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    let validity = certificate.validity();
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
    Ok((
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
        validity.not_after.to_string(),
    ))
}

fn key(path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) => Finding::missing(SUBJECT, format!("{shown}: {error}")).mend(HOW),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Finding::note(SUBJECT, format!("{shown} can be read by others than its owner")).mend(format!("chmod 600 {shown}"))
        }
        Ok(_) => Finding::good(SUBJECT, format!("{shown} is its owner's alone")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

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
        fs::set_permissions(directory.join("key.pem"), Permissions::from_mode(0o600)).expect("a mode");
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
    fn files_that_are_not_there_are_missing() {
        let fake = Fake::new().file("/etc/vmem/ca.pem", "no certificate");
        assert_eq!(states(&fake), [State::Missing; 3]);
    }
}
