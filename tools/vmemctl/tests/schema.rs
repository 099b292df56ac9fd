// SPDX-License-Identifier: GPL-2.0-or-later
//! What the program prints with `--json` is what the published schemas say, as far as it can be run without a module and without a guest.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs vmemctl. Each line must be valid. Returns the events.
fn run(schema: &str, directory: &Path, arguments: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../Documentation/schema/{schema}.schema.json"));
    let schema: Value = serde_json::from_slice(&fs::read(path).expect("a schema")).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let output = Command::new(env!("CARGO_BIN_EXE_vmemctl"))
        .args(["--json", "--state", "state"])
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .expect("vmemctl");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&line).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{arguments}: {line}: {errors:?}");
        line["event"].as_str().expect("an event").to_owned()
    });
    lines.collect()
}

#[test]
fn lines_of_the_program_are_valid() {
    let directory = tempfile::tempdir().expect("a directory");
    for (schema, arguments, event) in [
        ("vmemctl-version", "version", "version"),
        ("vmemctl-doctor", "doctor", "doctor"),
        ("vmemctl-doctor", "doctor", "finding"),
        ("vmemctl-tls", "tls init authority", "authority"),
        ("vmemctl-tls", "tls add-host authority alpha 192.0.2.1", "certificate"),
        ("vmemctl-tls", "tls list authority", "certificate"),
        ("vmemctl-tls", "tls renew authority beta", "host_failed"),
        ("vmemctl-tls", "tls list nowhere", "failed"),
        ("vmemctl-check", "check --qmp nowhere", "finding"),
        ("vmemctl-check", "check --qmp nowhere", "check"),
        ("vmemctl-dirty-rate", "dirty-rate --qmp nowhere", "failed"),
        ("vmemctl-move", "migrate --qmp nowhere --to localhost", "failed"),
        ("vmemctl-move", "forget nobody", "failed"),
        ("vmemctl-status", "status nobody", "failed"),
        ("vmemctl-region", "region info nobody", "failed"),
        ("vmemctl-checkpoint", "checkpoint init --store store", "store"),
        ("vmemctl-checkpoint", "checkpoint gc --store store", "gc"),
        ("vmemctl-checkpoint", "checkpoint show --store store a@1", "failed"),
    ] {
        let events = run(schema, directory.path(), arguments);
        assert!(events.contains(event), "{arguments}: {events:?}");
    }
}
