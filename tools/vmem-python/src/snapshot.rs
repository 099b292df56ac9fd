// SPDX-License-Identifier: GPL-2.0-or-later
//! The contents of memory at one instant.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use vmem::{Error, PageRange, SnapshotOptions, Tracking};

use crate::error::{closed, os_error, refused};
use crate::ranges::{inside, pairs, whole_pages};

/// The contents of tracked memory at one instant.
#[pyclass(frozen, module = "vmem")]
pub(crate) struct Snapshot {
    taken: Mutex<Option<Arc<Taken>>>,
    pages: PageRange,
    held_up: f64,
}

/// A snapshot that is not closed.
struct Taken {
    snapshot: vmem::Snapshot,
    /// After the snapshot, which would fail if the log ended before it.
    _tracking: Arc<Tracking>,
}

/// Options of a snapshot.
pub(crate) fn options(clean: bool, once: bool, limit: u64) -> SnapshotOptions {
    SnapshotOptions::default().clean(clean).once(once).limit(limit)
}

impl Snapshot {
    pub(crate) fn new(snapshot: vmem::Snapshot, tracking: Arc<Tracking>) -> Self {
        Self {
            pages: snapshot.pages(),
            held_up: snapshot.closed().as_secs_f64(),
            taken: Mutex::new(Some(Arc::new(Taken {
                snapshot,
                _tracking: tracking,
            }))),
        }
    }

    fn taken(&self) -> PyResult<Arc<Taken>> {
        let taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        taken.clone().ok_or_else(|| closed("snapshot"))
    }
}

#[pymethods]
impl Snapshot {
    /// Size of the memory in bytes, whole pages.
    #[getter]
    fn size(&self) -> u64 {
        self.pages.bytes().end
    }

    /// For how long writers were held up while the snapshot was taken, in seconds.
    #[getter]
    fn held_up(&self) -> f64 {
        self.held_up
    }

    /// A descriptor that is read as a file of the memory's size.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.taken()?.snapshot.as_fd().as_raw_fd())
    }

    /// Copies `length` bytes at `offset` out of the snapshot, and waits for those that are absent.
    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = vec![0; inside(self.size(), offset, length)?];
        let taken = self.taken()?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            match py.detach(|| taken.snapshot.read_at(&mut bytes[done..], at)) {
                Ok(0) => return Err(refused(Errno::IO, "the snapshot ends before its memory")),
                Ok(read) => done += read,
                Err(Error::Interrupted { .. }) => {}
                Err(error) => return Err(os_error(error)),
            }
            py.check_signals()?;
        }
        Ok(PyBytes::new(py, &bytes))
    }

    /// The pages written since the snapshot before, as pairs of offset and length in bytes.
    fn written(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let taken = self.taken()?;
        let pages = py.detach(|| taken.snapshot.increment(taken.snapshot.pages()).complete());
        Ok(pairs(pages.map_err(os_error)?))
    }

    /// The pages that have contents, as pairs of offset and length in bytes. The rest is zeros, or done.
    fn data(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let taken = self.taken()?;
        let pages = py.detach(|| taken.snapshot.data().collect::<Result<Vec<_>, _>>());
        Ok(pairs(pages.map_err(os_error)?))
    }

    /// Ends the use of whole pages: they cannot be read again, and do not return to the log.
    #[pyo3(signature = (offset=0, length=None))]
    fn done(&self, py: Python<'_>, offset: u64, length: Option<u64>) -> PyResult<()> {
        let taken = self.taken()?;
        match whole_pages(self.pages, offset, length)? {
            Some(pages) => py.detach(|| taken.snapshot.done(pages)).map_err(os_error),
            None => Ok(()),
        }
    }

    /// Ends the snapshot. Pages that were written and are not done return to the log.
    fn close(&self, py: Python<'_>) {
        let taken = self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        py.detach(|| drop(taken));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(&self, py: Python<'_>, _type: &Bound<'_, PyAny>, _value: &Bound<'_, PyAny>, _traceback: &Bound<'_, PyAny>) {
        self.close(py);
    }
}
