// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether the kernel loads modules without a signature that it knows.

use std::fs;
use std::io::ErrorKind;

use crate::finding::{Finding, Subject};
use crate::host::Host;
use crate::look::module;
use crate::version::TOOLS;

const SUBJECT: Subject = Subject::Signature;

/// The last bytes of a signed module.
const MARK: &[u8] = b"~Module signature appended~\n";

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Where dkms has the certificate that it signs with.
const DKMS_KEY: &str = "/var/lib/dkms/mok.pub";

pub(super) fn look(host: &Host) -> Finding {
    let secure_boot = if secure_boot(host) {
        "Secure Boot is on"
    } else {
        "Secure Boot is off"
    };
    if module::is_loaded(host) {
        return Finding::good(SUBJECT, format!("{secure_boot}; the kernel has taken the module"));
    }
    match is_enforced(host) {
        Some(true) => {}
        Some(false) => {
            return Finding::good(
                SUBJECT,
                format!("{secure_boot}; the kernel loads modules without a signature"),
            );
        }
        None => {
            return Finding::note(
                SUBJECT,
                format!("{secure_boot}; it is not known whether the kernel wants a signature: {LOCKDOWN} cannot be read"),
            );
        }
    }
    let wants = format!("{secure_boot}; the kernel wants a signature by a key that it has");
    let has_dkms = host.exists(DKMS_KEY);
    let enrol = format!("mokutil --import {}", if has_dkms { DKMS_KEY } else { "MOK.der" });
    match (has_signature(host), module::installed(host)) {
        (Some(false), Some(module)) => Finding::missing(
            SUBJECT,
            format!("{wants}, and the module has none; the next boot asks whether to enrol the key"),
        )
        .mend(if has_dkms {
            let (version, release) = (package(host), &host.release);
            format!("{enrol}; dkms build --force vmem/{version} -k {release}; dkms install --force vmem/{version} -k {release}")
        } else {
            let tool = host.of_kernel("build/scripts/sign-file");
            format!(
                "openssl req -new -x509 -newkey rsa:2048 -nodes -keyout MOK.priv -outform DER -out MOK.der -subj /CN=vmem; {enrol}; {} sha256 MOK.priv MOK.der {}",
                tool.display(),
                module.display()
            )
        }),
        _ => Finding::note(
            SUBJECT,
            format!("{wants}; if it lacks the module's, modprobe fails with \"Key was rejected\": the boot after this asks whether to enrol it"),
        )
        .mend(enrol),
    }
}

/// The version of vmem that dkms has the source of.
fn package(host: &Host) -> String {
    let names = fs::read_dir(host.at("/usr/src")).into_iter().flatten();
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut versions = names.filter_map(|name| name.strip_prefix("vmem-").map(str::to_owned));
    versions
        .find(|version| host.exists(format!("/usr/src/vmem-{version}/dkms.conf")))
        .unwrap_or_else(|| TOOLS.to_owned())
}

/// The firmware's variable: four bytes of attributes, then 1 if it is on.
fn secure_boot(host: &Host) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(host.at(variable)).is_ok_and(|bytes| bytes.get(4) == Some(&1))
}

/// Whether the kernel wants signatures, by its parameter, or by lockdown, which Secure Boot switches on; `None` if it is not known.
fn is_enforced(host: &Host) -> Option<bool> {
    let parameter = host.text("/sys/module/module/parameters/sig_enforce");
    if parameter.is_some_and(|text| text == "Y") {
        return Some(true);
    }
    match fs::read_to_string(host.at(LOCKDOWN)) {
        Ok(text) => Some(text.contains("[integrity]") || text.contains("[confidentiality]")),
        // A kernel without lockdown has other files there, if securityfs is mounted.
        Err(error) if error.kind() == ErrorKind::NotFound => host.exists("/sys/kernel/security/lsm").then_some(false),
        Err(_) => None,
    }
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
        let fake = Fake::new().file("/sys/kernel/security/lsm", "capability");
        let finding = look(&fake.file(VARIABLE, [6, 0, 0, 0, 0]).host);
        assert_eq!(finding.state, State::Good);
        assert!(finding.text.starts_with("Secure Boot is off"));
        let lockdown = "[none] integrity confidentiality\n";
        assert_eq!(
            look(&Fake::new().file("/sys/kernel/security/lockdown", lockdown).host).state,
            State::Good
        );
    }

    #[test]
    fn unreadable_lockdown_is_noted() {
        let finding = look(&Fake::new().host);
        assert_eq!(finding.state, State::Note);
        assert!(finding.text.contains("not known"), "{}", finding.text);
        let fake = Fake::new().directory("/sys/kernel/security/lockdown");
        assert_eq!(look(&fake.host).state, State::Note);
    }

    #[test]
    fn unsigned_module_is_missing_its_signature() {
        let finding = look(&enforcing().file(MODULE, "code").host);
        assert_eq!(finding.state, State::Missing);
        assert!(finding.text.starts_with("Secure Boot is on"));
        let mend = finding.mend.expect("what to type");
        assert!(mend.contains("mokutil --import MOK.der; "), "{mend}");
        assert!(
            mend.ends_with(
                "/lib/modules/7.3.4-test/build/scripts/sign-file sha256 MOK.priv MOK.der /lib/modules/7.3.4-test/updates/vmem.ko"
            ),
            "{mend}"
        );
        let fake = Fake::new()
            .file("/sys/module/module/parameters/sig_enforce", "Y\n")
            .file(MODULE, "code");
        assert_eq!(look(&fake.host).state, State::Missing);
    }

    #[test]
    fn key_of_dkms_is_named() {
        let finding = look(&enforcing().file(MODULE, "code").file(DKMS_KEY, "key").host);
        let mend = finding.mend.expect("what to type");
        assert!(mend.starts_with("mokutil --import /var/lib/dkms/mok.pub; "), "{mend}");
        assert!(
            mend.contains(&format!("dkms build --force vmem/{TOOLS} -k 7.3.4-test; ")),
            "{mend}"
        );
        // The version that is there.
        let fake = enforcing()
            .file(MODULE, "code")
            .file(DKMS_KEY, "key")
            .file("/usr/src/vmem-9.9/dkms.conf", "");
        assert!(look(&fake.host).mend.is_some_and(|mend| mend.contains("vmem/9.9 ")));
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
