// SPDX-License-Identifier: GPL-2.0-or-later
//! Probes at functions of the kernel: what its tracer records when they are called. They show what no program can see otherwise, such as a lock
//! that is held.

use std::fs;
use std::path::Path;

use crate::failure::{Outcome, ensure};
use crate::world::run_command;

/// Where the tracer's file system is mounted, by these tests if by nobody else.
const TRACING: &str = "/sys/kernel/tracing";
/// The buffer of these tests, beside that of others.
const BUFFER: &str = "/sys/kernel/tracing/instances/vmem";
/// The group of their probes.
const GROUP: &str = "vmem_tests";

/// Whether the kernel has a tracer, and knows its own types, as that of a distribution does.
pub(crate) fn available() -> bool {
    Path::new(TRACING).exists() && Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// A call of a function with a probe.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The name of the probe.
    pub(crate) probe: String,
    /// The command of the task, and its number.
    pub(crate) task: String,
    /// The values that the probe fetches.
    pub(crate) values: String,
}

/// Probes that are there until this is dropped.
pub(crate) struct Probes {
    names: Vec<&'static str>,
    has_mounted: bool,
}

impl Probes {
    /// Probes with these names at these functions. A definition can have values to fetch behind the function.
    pub(crate) fn new(probes: &[(&'static str, &str)]) -> Outcome<Self> {
        let has_mounted = !Path::new(TRACING).join("kprobe_events").exists();
        if has_mounted {
            run_command("mount", &["-t", "tracefs", "tracefs", TRACING])?;
        }
        let mut all = Self {
            names: Vec::new(),
            has_mounted,
        };
        for (name, definition) in probes {
            define(&format!("p:{GROUP}/{name} {definition}")).map_err(|error| format!("a probe at {definition}: {error}"))?;
            all.names.push(name);
        }
        fs::create_dir(BUFFER)?;
        fs::write(format!("{BUFFER}/events/{GROUP}/enable"), "1")?;
        Ok(all)
    }

    /// The calls so far, in their order.
    pub(crate) fn hits(&self) -> Outcome<Vec<Hit>> {
        let text = fs::read_to_string(format!("{BUFFER}/trace"))?;
        text.lines().filter(|line| !line.starts_with('#')).map(hit).collect()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _ = fs::write(format!("{BUFFER}/events/{GROUP}/enable"), "0");
        let _ = fs::remove_dir(BUFFER);
        for name in &self.names {
            let _ = define(&format!("-:{GROUP}/{name}"));
        }
        if self.has_mounted {
            let _ = run_command("umount", &[TRACING]);
        }
    }
}

/// Writes a line to the list of all probes. What is there stays.
fn define(line: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut list = fs::OpenOptions::new()
        .append(true)
        .open(Path::new(TRACING).join("kprobe_events"))?;
    list.write_all(line.as_bytes())
}

/// A line of the tracer: `COMMAND-NUMBER [CPU] FLAGS TIME: PROBE: (FUNCTION+OFFSET) VALUES`.
fn hit(line: &str) -> Outcome<Hit> {
    let mut parts = line.splitn(3, ": ");
    let (task, probe, rest) = (parts.next(), parts.next(), parts.next());
    let task = task.and_then(|before| before.split_whitespace().next());
    let values = rest.and_then(|rest| Some(rest.split_once(')')?.1));
    let (Some(task), Some(probe), Some(values)) = (task, probe, values) else {
        return Err(format!("the tracer says {line:?}").into());
    };
    ensure!(!probe.contains(' '), "the tracer says {line:?}");
    Ok(Hit {
        probe: probe.to_owned(),
        task: task.to_owned(),
        values: values.trim().to_owned(),
    })
}
