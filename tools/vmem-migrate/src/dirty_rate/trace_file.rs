// SPDX-License-Identifier: GPL-2.0-or-later
//! The file that a trace is written to.

use std::fs::{File, OpenOptions, remove_file};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Measurement;
use crate::error::{Cause, Error};

/// A new file. Dropping it removes the file, unless the trace was written.
#[derive(Debug)]
pub struct TraceFile {
    file: File,
    path: PathBuf,
    is_complete: bool,
}

impl TraceFile {
    /// Creates the file, so that a measurement is not made in vain. An existing file is never overwritten.
    ///
    /// # Errors
    ///
    /// [`Error::Local`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(Cause::call(format!("cannot create {}", path.display())))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            is_complete: false,
        })
    }

    /// Writes the trace, with comments that say what it is of.
    ///
    /// # Errors
    ///
    /// [`Error::Local`].
    pub fn write(mut self, measurement: &Measurement) -> Result<(), Error> {
        let mut out = BufWriter::new(&self.file);
        let written = write_to(&mut out, measurement).and_then(|()| out.flush());
        drop(out);
        written.map_err(Cause::call(format!("cannot write to {}", self.path.display())))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = remove_file(&self.path);
        }
    }
}

fn write_to(out: &mut impl Write, measurement: &Measurement) -> std::io::Result<()> {
    // A name with a line break stays in its line.
    writeln!(out, "# guest {:?}, {}", measurement.guest, measurement.status)?;
    let mut first = 0u64;
    for (backend, memory) in measurement.backends.iter().zip(&measurement.recording.memories) {
        writeln!(out, "# {:?} ({:?}): pages from {first} on", backend.id, backend.path)?;
        first = first.saturating_add(memory.pages.count());
    }
    write!(out, "{}", measurement.recording.trace)
}

#[cfg(test)]
mod tests {
    use std::fs::{read_to_string, write};
    use std::time::Duration;

    use vmem::{PageRange, WriteHistogram};
    use vmem_precopy::{Rates, Recording, Trace, WrittenMemory};

    use super::super::{Backend, End};
    use super::*;

    fn measurement() -> Measurement {
        let pages = PageRange::of_pages(64).expect("pages");
        let memory = || WrittenMemory {
            pages,
            rates: Rates::default(),
            written: 1,
            histogram: WriteHistogram::new(pages, 4),
        };
        let backend = |id: &str| Backend {
            id: id.to_owned(),
            path: "/dev/shm/ram".into(),
        };
        let mut trace = Trace::new(128).expect("a trace");
        trace
            .push(
                Duration::from_millis(100),
                vec![PageRange::from_pgoff(70, 1).expect("a page")],
            )
            .expect("a sample");
        Measurement {
            guest: "two\nlines".to_owned(),
            status: "running".to_owned(),
            backends: vec![backend("ram0"), backend("ram1")],
            recording: Recording {
                memories: vec![memory(), memory()],
                rates: Rates::default(),
                trace,
            },
            end: End::Time,
        }
    }

    #[test]
    fn written_trace_can_be_read_and_says_where_each_backend_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        let measurement = measurement();
        TraceFile::create(&path).expect("a file").write(&measurement).expect("room");
        let text = read_to_string(&path).expect("a file");
        assert_eq!(text.parse::<Trace>().expect("a trace"), measurement.recording.trace);
        assert!(text.contains("\n# \"ram1\" (\"/dev/shm/ram\"): pages from 64 on\n"), "{text}");
    }

    #[test]
    fn existing_file_is_kept_and_a_file_without_trace_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace");
        drop(TraceFile::create(&path).expect("a file"));
        assert!(!path.exists());
        write(&path, "precious").expect("a file");
        assert!(TraceFile::create(&path).is_err());
        assert_eq!(read_to_string(&path).expect("a file"), "precious");
    }
}
