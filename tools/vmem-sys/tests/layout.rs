// SPDX-License-Identifier: GPL-2.0-or-later
//! The C side of the layout: `layout.c` has nothing but static assertions.

use std::process::Command;

#[test]
fn layout_matches_the_c_header() {
    let crate_directory = env!("CARGO_MANIFEST_DIR");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-std=gnu11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-I{crate_directory}/../../include/uapi"))
        .arg(format!("{crate_directory}/tests/layout.c"))
        .status()
        .unwrap_or_else(|error| panic!("{compiler} does not run: {error}"));
    assert!(status.success(), "{compiler}: {status}");
}
