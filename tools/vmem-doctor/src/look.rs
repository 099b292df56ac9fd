// SPDX-License-Identifier: GPL-2.0-or-later
//! What is looked at, one thing in each module.

mod certificates;
mod device;
mod files;
mod headers;
mod kernel;
mod module;
mod qemu;
mod records;
mod signature;
mod vmemd;

use std::path::Path;

use crate::finding::Finding;
use crate::host::Host;

/// Everything that vmem needs of this machine, in the order in which it is needed. `tls` is the directory of the certificates, if there is to be one.
pub fn findings(host: &Host, tls: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![
        kernel::look(host),
        headers::look(host),
        module::look(host),
        signature::look(host),
        device::look(host),
        files::look(host),
        records::look(host),
        vmemd::look(host),
        qemu::look(host),
    ];
    if let Some(directory) = tls {
        findings.extend(certificates::look(host, directory));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn each_subject_has_one_line() {
        let fake = Fake::new();
        let findings = findings(&fake.host, None);
        let subjects: Vec<&str> = findings.iter().map(|finding| finding.subject.word()).collect();
        assert_eq!(
            subjects,
            [
                "kernel",
                "headers",
                "module",
                "signature",
                "device",
                "files",
                "records",
                "vmemd",
                "qemu"
            ]
        );
    }

    #[test]
    fn what_is_missing_says_what_to_type() {
        // Of an empty machine nothing is there.
        let fake = Fake::new().with(|host| {
            host.release = "6.1.0".to_owned();
            host.features = crate::host::ModuleFeatures::NoDevice;
        });
        let findings = findings(&fake.host, Some("/etc/vmem".as_ref()));
        for finding in findings.iter().filter(|finding| finding.state == State::Missing) {
            assert!(finding.mend.is_some(), "{}", finding.line());
            assert!(!finding.line().contains('\n'));
        }
        assert!(findings.iter().any(|finding| finding.state == State::Missing));
    }
}
