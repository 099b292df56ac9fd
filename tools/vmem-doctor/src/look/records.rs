// SPDX-License-Identifier: GPL-2.0-or-later
//! The directory with the records of moves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::finding::{Finding, Subject};
use crate::host::Host;

const SUBJECT: Subject = Subject::Records;
const PLACE: &str = "/run/vmemctl";

pub(super) fn look(host: &Host) -> Finding {
    let path = host.at(PLACE);
    let metadata = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Finding::good(
                SUBJECT,
                format!("no guest has moved since the boot: vmemctl makes {PLACE} for the first"),
            );
        }
        Err(error) => return Finding::missing(SUBJECT, format!("{PLACE}: {error}")).mend("sudo vmemctl doctor"),
        Ok(metadata) => metadata,
    };
    if !metadata.is_dir() {
        return Finding::missing(SUBJECT, format!("{PLACE} is no directory")).mend(format!("rm {PLACE}"));
    }
    // Who can write a record there decides what recover and receive --resume do.
    if metadata.uid() != host.owner {
        return Finding::missing(SUBJECT, format!("{PLACE} belongs to user {}", metadata.uid()))
            .mend(format!("chown root {PLACE}"));
    }
    if metadata.permissions().mode() & 0o022 != 0 {
        return Finding::missing(SUBJECT, format!("{PLACE} can be written by others than its owner"))
            .mend(format!("chmod go-w {PLACE}"));
    }
    let records = fs::read_dir(&path).map_or(0, |entries| {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter(|name| name.starts_with("in.") || name.starts_with("out."))
            .count()
    });
    Finding::good(SUBJECT, format!("{PLACE} has the records of {records} moves"))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn no_directory_is_good() {
        assert_eq!(look(&Fake::new().host).state, State::Good);
    }

    #[test]
    fn records_are_counted() {
        let fake = Fake::new()
            .directory("/run/vmemctl/in.guest0")
            .directory("/run/vmemctl/out.guest1")
            .file("/run/vmemctl/other", "");
        let finding = look(&fake.host);
        assert_eq!(
            (finding.state, finding.text.as_str()),
            (State::Good, "/run/vmemctl has the records of 2 moves")
        );
    }

    #[test]
    fn directory_that_others_write_is_missing() {
        let fake = Fake::new().directory(PLACE);
        fs::set_permissions(fake.host.at(PLACE), Permissions::from_mode(0o777)).expect("a mode");
        assert_eq!(look(&fake.host).mend.as_deref(), Some("chmod go-w /run/vmemctl"));
    }

    #[test]
    fn directory_of_another_user_is_missing() {
        let fake = Fake::new().directory(PLACE).with(|host| host.owner += 1);
        assert_eq!(look(&fake.host).mend.as_deref(), Some("chown root /run/vmemctl"));
    }

    #[test]
    fn file_is_no_directory() {
        assert_eq!(
            look(&Fake::new().file(PLACE, "").host).mend.as_deref(),
            Some("rm /run/vmemctl")
        );
    }
}
