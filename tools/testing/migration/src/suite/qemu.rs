// SPDX-License-Identifier: GPL-2.0-or-later
//! QEMU's own ways to move a guest: the rig does not depend on vmem.

use anyhow::{Result, ensure};

use super::stage::Stage;
use crate::guest::{Guest, Load};
use crate::method::Method;
use crate::trial;

super::tests![
    Long a_guest_that_writes_is_moved_by_postcopy,
];

fn a_guest_that_writes_is_moved_by_postcopy(stage: &Stage) -> Result<()> {
    let guest = Guest {
        number: 1,
        ..Guest::default()
    };
    let figures = trial::run(&stage.rig, 1, Method::Postcopy, Load::Writing(0), &guest)?;
    ensure!(figures.done && figures.work > 0 && figures.bytes > 0, "{figures:?}");
    Ok(())
}
