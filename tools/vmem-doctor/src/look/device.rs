// SPDX-License-Identifier: GPL-2.0-or-later
//! The control device. Who may open it may serve regions to every program of the machine.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::finding::{Finding, Subject};
use crate::host::{Host, ModuleFeatures, RELOAD};

const SUBJECT: Subject = Subject::Device;
const CONTROL: &str = "/dev/vmem/control";

pub(super) fn look(host: &Host) -> Finding {
    match &host.features {
        ModuleFeatures::NoDevice => Finding::missing(SUBJECT, format!("there is no {CONTROL}")).mend("modprobe vmem"),
        ModuleFeatures::Forbidden => {
            Finding::missing(SUBJECT, format!("{CONTROL} is for root, and this is another user")).mend("sudo vmemctl doctor")
        }
        ModuleFeatures::Unusable(why) => Finding::missing(SUBJECT, why.clone()).mend(RELOAD),
        ModuleFeatures::Known(_) => permissions(host),
    }
}

fn permissions(host: &Host) -> Finding {
    let metadata = fs::metadata(host.at(CONTROL)).ok();
    let (mode, owner) = metadata.map_or((0, host.owner), |metadata| {
        (metadata.permissions().mode() & 0o777, metadata.uid())
    });
    if owner != host.owner {
        return Finding::note(
            SUBJECT,
            format!("{CONTROL} belongs to user {owner}, who may serve regions to every program"),
        )
        .mend(format!("chown root {CONTROL}"));
    }
    if mode & 0o077 == 0 {
        return Finding::good(SUBJECT, format!("{CONTROL} answers, and is for root only"));
    }
    Finding::note(
        SUBJECT,
        format!("{CONTROL} has mode {mode:o}: who may open it may serve regions to every program"),
    )
    .mend(format!("chmod 600 {CONTROL}"))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;
    use crate::finding::State;
    use crate::host::testing::Fake;

    fn with(features: ModuleFeatures) -> Finding {
        look(&Fake::new().with(|host| host.features = features).host)
    }

    #[test]
    fn no_device_is_missing() {
        assert_eq!(with(ModuleFeatures::NoDevice).mend.as_deref(), Some("modprobe vmem"));
    }

    #[test]
    fn device_of_root_is_missing_for_others() {
        let finding = with(ModuleFeatures::Forbidden);
        assert_eq!(
            (finding.state, finding.mend.as_deref()),
            (State::Missing, Some("sudo vmemctl doctor"))
        );
    }

    #[test]
    fn device_that_answers_wrongly_is_missing() {
        let finding = with(ModuleFeatures::Unusable("no vmem".to_owned()));
        assert_eq!((finding.state, finding.text.as_str()), (State::Missing, "no vmem"));
    }

    #[test]
    fn device_for_all_is_noted() {
        let fake = Fake::new().file(CONTROL, "");
        let mode = |mode| fs::set_permissions(fake.host.at(CONTROL), Permissions::from_mode(mode)).expect("a mode");
        mode(0o600);
        assert_eq!(look(&fake.host).state, State::Good);
        mode(0o666);
        assert_eq!(look(&fake.host).mend.as_deref(), Some("chmod 600 /dev/vmem/control"));
        mode(0o600);
        let fake = fake.with(|host| host.owner += 1);
        assert_eq!(look(&fake.host).mend.as_deref(), Some("chown root /dev/vmem/control"));
    }
}
