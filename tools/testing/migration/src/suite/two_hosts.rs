// SPDX-License-Identifier: GPL-2.0-or-later
//! `Documentation/two-hosts.rst`, as a reader follows it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::stage::Stage;
use crate::bucket::Bucket;
use crate::guest::Guest;
use crate::network::Host;
use crate::page::commands;
use crate::shell::Shell;

super::tests![Long page_holds];

const PAGE: &str = "Documentation/two-hosts.rst";
const CLIENT: &str = "client";

/// What a host of its own would have, and the guest's files.
const BEGIN: &str = r#"set -o pipefail
mount --make-rprivate / && top=$PWD PATH=$PWD/build/target/release:$PATH &&
mount -t tmpfs tmpfs /run && cp -a /etc /run && mount --bind /run/etc /etc &&
mount -t tmpfs tmpfs /root && mount -t tmpfs tmpfs /srv && mkdir /srv/guest0 &&
ln -s "$top"/build/guest/{vmlinuz,initramfs} /srv/guest0 && cd /root"#;

/// What the guest's host has left behind, however it ended.
struct Left;

impl Drop for Left {
    fn drop(&mut self) {
        for host in Host::BOTH {
            for program in ["vmemctl", "vmemd", "qemu-system-x86"] {
                // There may be none.
                let _ = host.kill_all(program);
            }
            let _ = host.remove_tap("tap0");
        }
        let _ = fs::remove_file("/dev/shm/guest0");
    }
}

fn page_holds(stage: &Stage) -> Result<()> {
    // Its guest has the same address.
    stage.clear();
    let page = fs::read_to_string(PAGE).with_context(|| format!("cannot read {PAGE}"))?;
    let _bucket = Bucket::new()?;
    let mut shells = BTreeMap::new();
    for (number, host) in (1..).zip(Host::BOTH) {
        host.join_lan(number)?;
        shells.insert(host.name(), Shell::new(Some(host), BEGIN)?);
    }
    let other = shells[Host::Second.name()].files();
    let copy = format!(
        "scp() {{ local to=${{!#}}; cp \"${{@:1:$#-1}}\" {}\"${{to#*:}}\"; }}",
        other.display()
    );
    shells.insert(CLIENT, Shell::new(None, "true")?);
    let _left = Left;
    let first = shells.get_mut(Host::First.name()).context("a shell")?;
    first.run(&copy, &[])?;
    for typed in commands(&page)? {
        let shell = shells.get_mut(typed.prompt.as_str());
        let shell = shell.with_context(|| format!("nobody has the prompt {:?}", typed.prompt))?;
        shell.type_in(&typed).with_context(|| format!("on {}", typed.prompt))?;
    }
    // By default, its address and its memory are those of the page.
    Guest::default().verify()?;
    Ok(())
}
