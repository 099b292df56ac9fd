// SPDX-License-Identifier: GPL-2.0-or-later
//! The module: loaded, or there to be loaded.

use std::path::PathBuf;

use crate::finding::{Finding, Subject};
use crate::host::Host;

const SUBJECT: Subject = Subject::Module;

pub(super) fn look(host: &Host) -> Finding {
    if is_loaded(host) {
        let version = host.text("/sys/module/vmem/version");
        return Finding::good(
            SUBJECT,
            format!("loaded, version {}", version.as_deref().unwrap_or("unknown")),
        );
    }
    match installed(host) {
        Some(path) => Finding::missing(SUBJECT, format!("{} is not loaded", path.display())).mend("modprobe vmem"),
        None => Finding::missing(
            SUBJECT,
            format!(
                "there is no vmem.ko for kernel {} (with vmem's source: make install)",
                host.release
            ),
        )
        .mend("apt install vmem-dkms"),
    }
}

pub(super) fn is_loaded(host: &Host) -> bool {
    host.exists("/sys/module/vmem")
}

/// The file that modprobe would take.
pub(super) fn installed(host: &Host) -> Option<PathBuf> {
    let directories = ["updates/dkms", "updates", "extra"];
    let files = directories.into_iter().flat_map(|directory| {
        ["vmem.ko", "vmem.ko.xz", "vmem.ko.zst", "vmem.ko.gz"].map(|name| host.of_kernel(&format!("{directory}/{name}")))
    });
    files.into_iter().find(|path| host.exists(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn loaded_module_says_its_version() {
        let finding = look(&Fake::new().file("/sys/module/vmem/version", "0.1.0\n").host);
        assert_eq!((finding.state, finding.text.as_str()), (State::Good, "loaded, version 0.1.0"));
    }

    #[test]
    fn installed_module_is_to_be_loaded() {
        for file in ["updates/vmem.ko", "updates/dkms/vmem.ko.xz", "extra/vmem.ko.zst"] {
            let finding = look(&Fake::new().file(&format!("/lib/modules/RELEASE/{file}"), "").host);
            assert_eq!(finding.mend.as_deref(), Some("modprobe vmem"), "{file}");
        }
    }

    #[test]
    fn module_of_another_kernel_is_none() {
        let finding = look(&Fake::new().file("/lib/modules/7.4.0/updates/vmem.ko", "").host);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.text.contains("no vmem.ko for kernel 7.3.4-test"), "{}", finding.text);
    }
}
