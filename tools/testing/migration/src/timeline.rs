// SPDX-License-Identifier: GPL-2.0-or-later
//! What happened when in a move, by the clock of the hosts: what QEMU says of it, and vmemctl.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::machine::Machine;

/// How often the memory that is left is noted at most.
const SAMPLE: f64 = 0.05;
/// More of it is not kept.
const SAMPLES: usize = 2400;

/// The moments of a move. Seconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    /// The order to move.
    pub(crate) ordered: f64,
    /// The guest has stopped at its source.
    pub(crate) stopped: Option<f64>,
    /// QEMU has saved the devices, and what is left is known. Only vmemctl tells this.
    pub(crate) saved: Option<f64>,
    /// The guest runs at its destination.
    pub(crate) runs: Option<f64>,
    /// All of its memory is there.
    pub(crate) complete: Option<f64>,
    /// Bytes that are to be sent, at these times.
    pub(crate) left: Vec<(f64, u64)>,
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |now| now.as_secs_f64())
}

impl Timeline {
    /// The order is given now, and all of the memory is to be sent.
    pub(crate) fn begin(memory: u64) -> Self {
        let ordered = now();
        Self {
            ordered,
            stopped: None,
            saved: None,
            runs: None,
            complete: None,
            left: vec![(ordered, memory)],
        }
    }

    /// So much is left now.
    pub(crate) fn note_left(&mut self, bytes: u64) {
        let now = now();
        let is_due = self.left.last().is_none_or(|last| now - last.0 >= SAMPLE);
        if is_due && self.left.len() < SAMPLES {
            self.left.push((now, bytes));
        }
    }

    /// Notes what the source's QEMU has said.
    pub(crate) fn note_source(&mut self, machine: &mut Machine) {
        for event in machine.events() {
            if event.name == "STOP" {
                self.stopped = event.time.map(|time| time.as_secs_f64());
            }
        }
    }

    /// Notes what the destination's QEMU has said. vmemctl has it stopped before the guest comes, so the last word counts. Its migration may be of the
    /// devices only: it does not count if it is known already when all of the memory was there.
    pub(crate) fn note_destination(&mut self, machine: &mut Machine) {
        for event in machine.events() {
            let time = event.time.map(|time: Duration| time.as_secs_f64());
            match event.name.as_str() {
                "RESUME" => self.runs = time,
                "MIGRATION" if event.data["status"] == "completed" => self.complete = self.complete.or(time),
                _ => (),
            }
        }
    }

    /// A move that was given up: the guest has not stopped.
    pub(crate) fn given_up(mut self) -> Self {
        (self.stopped, self.runs, self.complete) = (None, None, None);
        self
    }
}

/// A log that grows; what has been read of it is not read again.
pub(crate) struct Growing {
    path: PathBuf,
    read: u64,
    rest: String,
}

impl Growing {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: 0,
            rest: String::new(),
        }
    }

    /// The lines that have come since, as far as they are JSON.
    pub(crate) fn lines(&mut self) -> Vec<Value> {
        let mut new = Vec::new();
        let more = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut new)
        });
        if more.is_err() {
            return Vec::new();
        }
        self.read += new.len() as u64;
        self.rest += &String::from_utf8_lossy(&new);
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.rest.drain(..whole).collect();
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_of_a_growing_log_are_read_once_and_when_they_are_whole() -> std::io::Result<()> {
        let path = std::env::temp_dir().join(format!("vmem-growing-{}", std::process::id()));
        let mut file = File::create(&path)?;
        let mut growing = Growing::new(path.clone());
        file.write_all(b"{\"a\":1}\nno JSON\n")?;
        assert_eq!(growing.lines(), [serde_json::json!({"a": 1})]);
        assert!(growing.lines().is_empty());
        file.write_all(b"{\"b\"")?;
        assert!(growing.lines().is_empty());
        file.write_all(b":2}\n")?;
        assert_eq!(growing.lines(), [serde_json::json!({"b": 2})]);
        std::fs::remove_file(path)
    }
}
