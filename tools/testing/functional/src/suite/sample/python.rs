// SPDX-License-Identifier: GPL-2.0-or-later
//! The Python module: its own tests, which are in `tools/vmem-python/tests`, and its examples.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Outcome, ensure};

crate::tests![
    python_function_serves_a_region,
    python_function_that_fails_makes_nobody_wait,
    python_reads_snapshots_and_what_was_written,
    python_examples_run,
];

/// The package as it is installed: the files of the source tree, and the library that was built beside this program.
fn package() -> Outcome<PathBuf> {
    let place = PathBuf::from("/tmp/vmem-python");
    let _ = fs::remove_dir_all(&place);
    let package = place.join("vmem");
    fs::create_dir_all(&package)?;
    fs::copy("tools/vmem-python/vmem/__init__.py", package.join("__init__.py"))?;
    let library = std::env::current_exe()?.with_file_name("libvmem_python.so");
    ensure!(library.exists(), "there is no {}", library.display());
    symlink(library, package.join("_vmem.abi3.so"))?;
    Ok(place)
}

/// Runs the tests of a class, all of which succeed and none of which is left out.
fn run(class: &str) -> Outcome {
    let place = package()?;
    // What it mounts goes with it.
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "python3", "-B"])
        .arg(Path::new("tools/vmem-python/tests/test_vmem.py"))
        .args(["--verbose", class])
        .env("PYTHONPATH", &place)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}", output.status);
    ensure!(text.ends_with("\nOK\n"), "{text}");
    fs::remove_dir_all(&place)?;
    Ok(())
}

fn python_function_serves_a_region() -> Outcome {
    run("Serve")
}

fn python_function_that_fails_makes_nobody_wait() -> Outcome {
    run("Errors")
}

fn python_reads_snapshots_and_what_was_written() -> Outcome {
    run("Snapshots")
}

fn python_examples_run() -> Outcome {
    run("Examples")
}
