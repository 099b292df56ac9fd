// SPDX-License-Identifier: GPL-2.0-or-later
//! The kernel's build tree, which the module is built in.

use std::path::PathBuf;

use crate::finding::{Finding, Subject};
use crate::host::Host;
use crate::look::module;

const SUBJECT: Subject = Subject::Headers;

pub(super) fn look(host: &Host) -> Finding {
    let build = host.of_kernel("build");
    // What vmem-kernel-rust has made: its last file.
    let made = PathBuf::from(format!("/usr/src/vmem-linux-{}/vmem-stamp", host.release));
    let (text, command) = if !host.exists(build.join("Makefile")) {
        (
            format!("{} is no build tree", build.display()),
            format!("apt install linux-headers-{}", host.release),
        )
    } else if host.exists(&made) {
        return Finding::good(
            SUBJECT,
            format!("{} has what the module is built with", made.with_file_name("").display()),
        );
    } else if !host.exists(build.join("rust/libkernel.rmeta")) {
        (
            format!(
                "{} has no outputs of the kernel's Rust build (rust/libkernel.rmeta), which headers packages leave out",
                build.display()
            ),
            format!("vmem-kernel-rust {}", host.release),
        )
    } else {
        return Finding::good(SUBJECT, format!("{} has what the module is built with", build.display()));
    };
    // A module that is there needs no headers.
    if module::is_loaded(host) || module::installed(host).is_some() {
        Finding::note(SUBJECT, format!("{text}; the module of this kernel is there, and needs none"))
    } else {
        Finding::missing(SUBJECT, text).mend(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    const BUILD: &str = "/lib/modules/RELEASE/build";

    #[test]
    fn no_headers_are_missing() {
        let finding = look(&Fake::new().host);
        assert_eq!(finding.state, State::Missing);
        assert_eq!(finding.mend.as_deref(), Some("apt install linux-headers-7.3.4-test"));
    }

    #[test]
    fn headers_without_rust_outputs_are_missing() {
        let finding = look(&Fake::new().file(&format!("{BUILD}/Makefile"), "").host);
        assert_eq!(finding.state, State::Missing);
        assert_eq!(finding.mend.as_deref(), Some("vmem-kernel-rust 7.3.4-test"));
    }

    #[test]
    fn outputs_that_were_made_are_good() {
        let fake = Fake::new()
            .file(&format!("{BUILD}/Makefile"), "")
            .file("/usr/src/vmem-linux-RELEASE/rust/libkernel.rmeta", "");
        assert_eq!(look(&fake.host).state, State::Missing, "an interrupted run");
        let fake = fake.file("/usr/src/vmem-linux-RELEASE/vmem-stamp", "7.3.4-1");
        assert_eq!(look(&fake.host).state, State::Good);
    }

    #[test]
    fn whole_headers_are_good() {
        let fake = Fake::new()
            .file(&format!("{BUILD}/Makefile"), "")
            .file(&format!("{BUILD}/rust/libkernel.rmeta"), "");
        assert_eq!(look(&fake.host).state, State::Good);
    }

    #[test]
    fn headers_of_a_built_module_are_no_matter() {
        let fake = Fake::new().file("/lib/modules/RELEASE/updates/dkms/vmem.ko.xz", "");
        assert_eq!(look(&fake.host).state, State::Note);
    }
}
