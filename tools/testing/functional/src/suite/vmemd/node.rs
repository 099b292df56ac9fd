// SPDX-License-Identifier: GPL-2.0-or-later
//! The node of a region: its mode, its owner, and plain files in its place.

use std::fs;
use std::os::unix::fs::MetadataExt;

use vmem::{Access, MapHandle};

use super::{Daemon, PAGES, Scratch, beside, check_page, map, open, wait_info};
use crate::failure::{Outcome, ensure, equal};

crate::tests![
    the_node_has_the_mode_and_owner_that_were_asked_for,
    a_plain_file_in_the_place_of_a_node_is_refused_before_ready,
    a_mapped_region_is_served_whatever_became_of_its_node,
];

fn the_node_has_the_mode_and_owner_that_were_asked_for() -> Outcome {
    let file = Scratch::new("node", 1)?;
    let source = format!("file:{}", file.export("node"));
    let mut daemon = Daemon::new(&source, &["--mode", "640", "--owner", "12:34"])?;
    daemon.wait_line("\"ready\"")?;
    let _handle = open("node")?;
    let node = fs::metadata("/dev/vmem/node")?;
    equal!((node.mode() & 0o7777, node.uid(), node.gid()), (0o640, 12, 34));
    let file = fs::metadata("/run/vmem/node")?;
    equal!((file.mode() & 0o7777, file.uid(), file.gid()), (0o640, 12, 34));
    daemon.process.terminate()?;
    daemon.end()?.with_code(6)?;
    Ok(())
}

/// A program that opens the node before it is there, and creates what it does not find, gets a file of its own, which no daemon fills.
fn a_plain_file_in_the_place_of_a_node_is_refused_before_ready() -> Outcome {
    let file = Scratch::new("early", PAGES)?;
    let from_file = format!("file:{}", file.export("early"));
    fs::write("/dev/vmem/early", "what a program wrote")?;
    let end = Daemon::new(&from_file, &[])?.end()?.with_code(5)?;
    ensure!(end.errors.contains("/dev/vmem/early is a plain file"), "{}", end.errors);
    ensure!(!end.output.contains("\"ready\""), "{}", end.output);
    // Nor is it offered as if it were the region.
    let serve = beside("vmemd")?
        .args(["serve", "--listen", "127.0.0.1:0", "other=/dev/vmem/early"])
        .output()?;
    let errors = String::from_utf8_lossy(&serve.stderr);
    ensure!(
        serve.status.code() == Some(1) && errors.contains("a plain file in the place"),
        "{:?}: {errors}",
        serve.status
    );
    ensure!(
        matches!(MapHandle::open("early", Access::ReadWrite), Err(vmem::Error::NotVmem { .. })),
        "the library opens it"
    );
    fs::remove_file("/dev/vmem/early")?;
    let mut daemon = Daemon::new(&from_file, &[])?;
    daemon.wait_line("\"ready\"")?;
    let memory = map(&open("early")?)?;
    check_page(&memory, 7)?;
    daemon.end()?.with_code(0)?;
    Ok(())
}

fn a_mapped_region_is_served_whatever_became_of_its_node() -> Outcome {
    let file = Scratch::new("hidden", PAGES)?;
    let from_file = format!("file:{}", file.export("hidden"));
    let mut first = Daemon::new(&from_file, &["--no-background"])?;
    first.wait_line("\"ready\"")?;
    let handle = open("hidden")?;
    let memory = map(&handle)?;
    first.process.kill()?;
    wait_info(&handle, "the daemon has gone", |info| !info.attached)?;
    fs::rename("/dev/vmem/hidden", "/dev/vmem/elsewhere")?;
    fs::write("/dev/vmem/hidden", "")?;
    let next = Daemon::new(&from_file, &["--resume"])?;
    check_page(&memory, 1999)?;
    drop(handle);
    let end = next.end()?.with_code(0)?;
    ensure!(
        end.errors.contains("region hidden: /dev/vmem/hidden is a plain file"),
        "{}",
        end.errors
    );
    fs::remove_file("/dev/vmem/hidden")?;
    // The kernel forgets a node that was moved.
    fs::remove_file("/dev/vmem/elsewhere")?;
    Ok(())
}
