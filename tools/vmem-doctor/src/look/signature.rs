// SPDX-License-Identifier: GPL-2.0
//! Whether the kernel loads modules without a signature that it knows.

use std::fs;

use crate::finding::Finding;
use crate::host::Host;
use crate::look::module;

const SUBJECT: &str = "signature";

/// The last bytes of a signed module.
const MARK: &[u8] = b"~Module signature appended~\n";

/// Where dkms has the certificate that it signs with.
const DKMS_KEY: &str = "/var/lib/dkms/mok.pub";

pub(super) fn look(host: &Host) -> Finding {
    let secure_boot = if secure_boot(host) {
        "Secure Boot is on"
    } else {
        "Secure Boot is off"
    };
    if !is_enforced(host) {
        return Finding::good(
            SUBJECT,
            format!("{secure_boot}; the kernel loads modules without a signature"),
        );
    }
    if module::is_loaded(host) {
        return Finding::good(
            SUBJECT,
            format!("{secure_boot}; the kernel wants a signature, and has taken the module's"),
        );
    }
    let key = if host.exists(DKMS_KEY) { DKMS_KEY } else { "MOK.der" };
    let enrol = format!("mokutil --import {key}, and enrol that key at the next boot");
    match has_signature(host) {
        Some(false) => Finding::missing(
            SUBJECT,
            format!("{secure_boot}; the kernel wants a signature by a key that it has, and the module has none"),
        )
        .mend(if key == DKMS_KEY {
            format!("{enrol}; then dkms install --force vmem")
        } else {
            format!("openssl req -new -x509 -newkey rsa:2048 -nodes -keyout MOK.priv -outform DER -out MOK.der -subj /CN=vmem; {enrol}; sign-file sha256 MOK.priv MOK.der vmem.ko")
        }),
        Some(true) | None => Finding::note(
            SUBJECT,
            format!("{secure_boot}; the kernel wants a signature by a key that it has; modprobe fails with \"Key was rejected\" if it lacks the module's"),
        )
        .mend(enrol),
    }
}

/// The firmware's variable: four bytes of attributes, then 1 if it is on.
fn secure_boot(host: &Host) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(host.at(variable)).is_ok_and(|bytes| bytes.get(4) == Some(&1))
}

/// By the kernel's parameter, or by lockdown, which Secure Boot switches on.
fn is_enforced(host: &Host) -> bool {
    let is_parameter = host
        .text("/sys/module/module/parameters/sig_enforce")
        .is_some_and(|text| text == "Y");
    let lockdown = host.text("/sys/kernel/security/lockdown");
    is_parameter || lockdown.is_some_and(|text| text.contains("[integrity]") || text.contains("[confidentiality]"))
}

/// Of the module's file, if it is there, and not compressed.
fn has_signature(host: &Host) -> Option<bool> {
    let path = module::installed(host)?;
    if path.extension()? != "ko" {
        return None;
    }
    Some(fs::read(host.at(path)).ok()?.ends_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    const VARIABLE: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    const MODULE: &str = "/lib/modules/RELEASE/updates/vmem.ko";

    fn enforcing() -> Fake {
        Fake::new()
            .file(VARIABLE, [6, 0, 0, 0, 1])
            .file("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    }

    #[test]
    fn kernel_that_wants_none_is_good() {
        let finding = look(&Fake::new().file(VARIABLE, [6, 0, 0, 0, 0]).host);
        assert_eq!(finding.state, State::Good);
        assert!(finding.text.starts_with("Secure Boot is off"));
        let lockdown = "[none] integrity confidentiality\n";
        assert_eq!(
            look(&Fake::new().file("/sys/kernel/security/lockdown", lockdown).host).state,
            State::Good
        );
    }

    #[test]
    fn unsigned_module_is_missing_its_signature() {
        let finding = look(&enforcing().file(MODULE, "code").host);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.text.starts_with("Secure Boot is on"));
        assert!(finding.mend.is_some_and(|mend| mend.contains("mokutil --import MOK.der")));
        let fake = Fake::new()
            .file("/sys/module/module/parameters/sig_enforce", "Y\n")
            .file(MODULE, "code");
        assert_eq!(look(&fake.host).state, State::Missing);
    }

    #[test]
    fn key_of_dkms_is_named() {
        let finding = look(&enforcing().file(MODULE, "code").file(DKMS_KEY, "key").host);
        assert!(
            finding
                .mend
                .is_some_and(|mend| mend.starts_with("mokutil --import /var/lib/dkms/mok.pub"))
        );
    }

    #[test]
    fn key_of_a_signed_module_may_be_unknown() {
        let finding = look(&enforcing().file(MODULE, [b"code", MARK].concat()).host);
        assert_eq!(finding.state, State::Note);
        // What is compressed is not looked into.
        let finding = look(&enforcing().file("/lib/modules/RELEASE/updates/vmem.ko.xz", "code").host);
        assert_eq!(finding.state, State::Note);
    }

    #[test]
    fn loaded_module_is_good() {
        assert_eq!(look(&enforcing().directory("/sys/module/vmem").host).state, State::Good);
    }
}
