// SPDX-License-Identifier: GPL-2.0-or-later
//! vmemd, the one that vmemctl starts.

use crate::finding::{Finding, Subject};
use crate::host::Host;
use crate::version::{TOOLS, vmemd};

const SUBJECT: Subject = Subject::Vmemd;

pub(super) fn look(host: &Host) -> Finding {
    let path = host.vmemd.display();
    let text = match vmemd(host) {
        Ok(version) if version == TOOLS => return Finding::good(SUBJECT, format!("{path}, version {version}")),
        Ok(version) => format!("{path} is of version {version}, vmemctl of {TOOLS}: they work in one version only"),
        Err(why) => format!("{path}: {why}"),
    };
    Finding::missing(SUBJECT, text).mend("apt install vmem-tools")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    #[test]
    fn vmemd_of_this_version_is_good() {
        let finding = look(&Fake::new().host);
        assert_eq!(finding.state, State::Good);
        assert_eq!(finding.text, format!("/usr/sbin/vmemd, version {TOOLS}"));
    }

    #[test]
    fn other_and_silent_vmemds_are_missing() {
        for (version_of, text) in [
            (
                (|_| Ok("vmemd 0.0.1".to_owned())) as fn(&std::path::Path) -> Result<String, String>,
                "is of version 0.0.1",
            ),
            (|_| Err("not found".to_owned()), "/usr/sbin/vmemd: not found"),
        ] {
            let finding = look(&Fake::new().with(|host| host.version_of = version_of).host);
            assert_eq!(finding.state, State::Missing);
            assert!(finding.text.contains(text), "{}", finding.text);
        }
    }

    #[test]
    fn vmemd_is_the_one_that_vmemctl_starts() {
        assert_eq!(Host::this().vmemd, vmem_process::vmemd());
    }
}
