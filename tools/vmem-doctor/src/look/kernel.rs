// SPDX-License-Identifier: GPL-2.0-or-later
//! The running kernel.

use vmem::PAGE_SIZE;

use crate::finding::{Finding, Subject};
use crate::host::Host;
use crate::look::module;

const SUBJECT: Subject = Subject::Kernel;

/// The first series with what the module calls.
const OLDEST: (u32, u32) = (7, 3);

pub(super) fn look(host: &Host) -> Finding {
    let release = &host.release;
    let Some(machine) = host.known_machine() else {
        return Finding::missing(
            SUBJECT,
            format!("{release} runs on {}: vmem is for x86_64 and aarch64 only", host.machine),
        );
    };
    // The next boot runs it.
    let newer = format!("apt install -t trixie-backports linux-image-{}", machine.debian);
    if host.page_size != PAGE_SIZE {
        return Finding::missing(
            SUBJECT,
            format!(
                "{release} has pages of {} bytes: vmem supports {PAGE_SIZE} only (install a kernel with pages of 4 KiB, and boot it)",
                host.page_size
            ),
        )
        .mend(newer);
    }
    if series(release).is_some_and(|series| series < OLDEST) {
        return Finding::missing(
            SUBJECT,
            format!(
                "{release} is too old: vmem needs {}.{} or later (install it, and boot it)",
                OLDEST.0, OLDEST.1
            ),
        )
        .mend(newer);
    }
    match has_rust(host) {
        Some(true) => Finding::good(SUBJECT, format!("{release}, built with Rust (CONFIG_RUST)")),
        Some(false) => Finding::missing(SUBJECT, format!("{release} is built without Rust (CONFIG_RUST is off)")).mend(newer),
        None if module::is_loaded(host) => Finding::good(SUBJECT, format!("{release}, which has loaded the module")),
        None => Finding::note(
            SUBJECT,
            format!("{release}; it is not known whether it is built with Rust: no configuration of it is here"),
        ),
    }
}

/// "7.3" of "7.3.4+deb13-amd64".
fn series(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the kernel's configuration says so, where one of the usual files has it.
fn has_rust(host: &Host) -> Option<bool> {
    let places = [
        format!("/boot/config-{}", host.release).into(),
        host.of_kernel("config"),
        host.of_kernel("build/.config"),
        host.of_kernel("build/include/config/auto.conf"),
    ];
    let config = places.iter().find_map(|place| host.text(place))?;
    Some(config.lines().any(|line| line == "CONFIG_RUST=y"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn series_is_the_first_two_numbers() {
        assert_eq!(series("7.3.4+deb13-cloud-amd64"), Some((7, 3)));
        assert_eq!(series("7.10-rc1"), Some((7, 10)));
        assert_eq!(series("linux"), None);
    }

    #[test]
    fn old_kernel_is_missing() {
        let fake = Fake::new().with(|host| host.release = "7.2.12-amd64".to_owned());
        let finding = look(&fake.host);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.text.contains("needs 7.3 or later"), "{}", finding.text);
    }

    #[test]
    fn later_kernel_is_not_old() {
        let fake = Fake::new().with(|host| host.release = "7.10.1-amd64".to_owned());
        assert_eq!(look(&fake.host).state, State::Note);
    }

    #[test]
    fn kernel_without_rust_is_missing() {
        let fake = Fake::new().file("/boot/config-RELEASE", "# CONFIG_RUST is not set\n");
        assert_eq!(look(&fake.host).state, State::Missing);
    }

    #[test]
    fn kernel_with_rust_is_good() {
        for place in ["/boot/config-RELEASE", "/lib/modules/RELEASE/build/.config"] {
            let fake = Fake::new().file(place, "CONFIG_RUST=y\n");
            assert_eq!(look(&fake.host).state, State::Good, "{place}");
        }
    }

    #[test]
    fn kernel_with_the_module_needs_no_configuration() {
        let fake = Fake::new();
        assert_eq!(look(&fake.host).state, State::Note);
        assert_eq!(look(&fake.directory("/sys/module/vmem").host).state, State::Good);
    }

    #[test]
    fn other_processor_is_missing() {
        let fake = Fake::new().with(|host| host.machine = "riscv64".to_owned());
        assert_eq!(look(&fake.host).state, State::Missing);
    }

    #[test]
    fn arm64_gets_the_packages_of_arm64() {
        let old = |host: &mut Host| {
            host.machine = "aarch64".to_owned();
            host.release = "7.2.12-arm64".to_owned();
        };
        let mend = look(&Fake::new().with(old).host).mend;
        assert_eq!(mend.as_deref(), Some("apt install -t trixie-backports linux-image-arm64"));
    }

    #[test]
    fn large_pages_are_missing() {
        let fake = Fake::new()
            .with(|host| host.page_size = 16384)
            .file("/boot/config-RELEASE", "CONFIG_RUST=y\n");
        let finding = look(&fake.host);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.text.contains("has pages of 16384 bytes"), "{}", finding.text);
    }
}
