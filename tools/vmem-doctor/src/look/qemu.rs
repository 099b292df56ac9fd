// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU, which only guests need.

use crate::finding::{Finding, Subject};
use crate::host::{self, Host};

const SUBJECT: Subject = Subject::Qemu;

/// What the moves are tested with.
const OLDEST_TRIED: u32 = 10;

pub(super) fn look(host: &Host) -> Finding {
    // Of a machine that vmem is not for, the kernel's line says so.
    let machine = host.known_machine().unwrap_or(&host::X86_64);
    let (install, emulator) = (format!("apt install {}", machine.qemu_package), machine.qemu);
    let Some(path) = host.program(emulator) else {
        return Finding::note(SUBJECT, format!("there is no {emulator}: no guest can move here")).mend(install);
    };
    let version = match (host.version_of)(&path) {
        Ok(version) => version,
        Err(why) => return Finding::note(SUBJECT, format!("{}: {why}", path.display())).mend(install),
    };
    match major(&version) {
        Some(major) if major >= OLDEST_TRIED => Finding::good(SUBJECT, version),
        Some(_) => Finding::note(
            SUBJECT,
            format!("{version}: vmem is tested with QEMU {OLDEST_TRIED}.0 and later"),
        )
        .mend(install),
        None => Finding::note(SUBJECT, format!("{version}: which version that is, is not known")).mend(install),
    }
}

/// 10 of "QEMU emulator version 10.0.2 (Debian ...)".
fn major(version: &str) -> Option<u32> {
    version.split_once("version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn no_qemu_is_noted() {
        assert_eq!(look(&Fake::new().host).mend.as_deref(), Some("apt install qemu-system-x86"));
    }

    #[test]
    fn arm64_has_an_emulator_of_its_own() {
        let fake = Fake::new()
            .file("/usr/bin/qemu-system-x86_64", "")
            .with(|host| host.machine = "aarch64".to_owned());
        let finding = look(&fake.host);
        assert_eq!(finding.mend.as_deref(), Some("apt install qemu-system-arm"));
        assert!(finding.text.contains("no qemu-system-aarch64"), "{}", finding.text);
        assert_eq!(look(&fake.file("/usr/bin/qemu-system-aarch64", "").host).state, State::Good);
    }

    #[test]
    fn qemu_says_its_version() {
        let fake = Fake::new().file("/usr/bin/qemu-system-x86_64", "");
        let finding = look(&fake.host);
        assert_eq!(
            (finding.state, finding.text.as_str()),
            (State::Good, "QEMU emulator version 10.0.2")
        );
    }

    #[test]
    fn old_and_strange_qemus_are_noted() {
        for version_of in [
            (|_| Ok("QEMU emulator version 7.2.11".to_owned())) as fn(&std::path::Path) -> Result<String, String>,
            |_| Ok("what?".to_owned()),
            |_| Err("does not answer within 5 s".to_owned()),
        ] {
            let fake = Fake::new()
                .file("/usr/bin/qemu-system-x86_64", "")
                .with(|host| host.version_of = version_of);
            assert_eq!(look(&fake.host).state, State::Note);
        }
    }
}
