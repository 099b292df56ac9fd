// SPDX-License-Identifier: GPL-2.0-or-later
//! The mount where regions are files.

use std::fs;

use crate::finding::{Finding, Subject};
use crate::host::Host;

const SUBJECT: Subject = Subject::Files;
const PLACE: &str = "/run/vmem";

pub(super) fn look(host: &Host) -> Finding {
    let mounts = host.text("/proc/self/mountinfo").unwrap_or_default();
    if is_mounted(&mounts) {
        return Finding::good(SUBJECT, format!("regions are files in {PLACE}"));
    }
    if fs::read_dir(host.at(PLACE)).is_ok_and(|mut entries| entries.next().is_some()) {
        return Finding::missing(
            SUBJECT,
            format!("{PLACE} has files, so nothing is mounted there; records of an earlier vmemctl go to /run/vmemctl"),
        )
        .mend(format!("mv {PLACE} {PLACE}.old"));
    }
    let mount =
        if host.exists("/usr/lib/systemd/system/run-vmem.mount") || host.exists("/usr/local/lib/systemd/system/run-vmem.mount") {
            "systemctl enable --now run-vmem.mount".to_owned()
        } else {
            format!("mkdir -p {PLACE}; mount -t vmem vmem {PLACE}")
        };
    Finding::note(
        SUBJECT,
        format!("nothing is mounted at {PLACE}; vmemd and vmemctl mount it when they make a region"),
    )
    .mend(mount)
}

/// Whether what is mounted last at the place is of the type vmem.
fn is_mounted(mountinfo: &str) -> bool {
    let kinds = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (mount.split(' ').nth(4)? == PLACE).then(|| kind.split(' ').next())
    });
    kinds.last().flatten() == Some("vmem")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    const MOUNT: &str = "29 20 0:27 / /run/vmem rw,nosuid - vmem vmem rw\n";
    const OVER_IT: &str = "30 29 0:28 / /run/vmem rw - tmpfs tmpfs rw\n";

    fn with(mounts: &str) -> Fake {
        Fake::new().file("/proc/self/mountinfo", mounts)
    }

    #[test]
    fn mounted_files_are_good() {
        assert_eq!(look(&with(MOUNT).host).state, State::Good);
    }

    #[test]
    fn files_that_are_not_mounted_are_noted() {
        let finding = look(&with("20 1 0:20 / /run rw - tmpfs tmpfs rw\n").host);
        assert_eq!(finding.state, State::Note);
        assert!(finding.mend.is_some_and(|mend| mend.contains("mount -t vmem vmem /run/vmem")));
        // Another file system over it.
        assert_eq!(look(&with(&format!("{MOUNT}{OVER_IT}")).host).state, State::Note);
    }

    #[test]
    fn unit_is_what_to_start() {
        let fake = with("").file("/usr/lib/systemd/system/run-vmem.mount", "");
        assert_eq!(
            look(&fake.host).mend.as_deref(),
            Some("systemctl enable --now run-vmem.mount")
        );
    }

    #[test]
    fn directory_with_files_is_missing() {
        let fake = with("").file("/run/vmem/in.guest0/record", "");
        assert_eq!(look(&fake.host).state, State::Missing);
    }
}
