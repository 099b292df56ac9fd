// SPDX-License-Identifier: GPL-2.0-or-later
//! The log of writes to memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use vmem::{Control, MemoryHandle, TrackOptions};

use crate::error::{closed, os_error};
use crate::ranges::pairs;
use crate::region::Region;
use crate::snapshot::{self, Snapshot};

/// Memory whose writes are logged.
#[pyclass(frozen, module = "vmem")]
pub(crate) struct Tracking {
    tracking: Mutex<Option<Arc<vmem::Tracking>>>,
    size: u64,
}

impl Tracking {
    fn begin(
        py: Python<'_>,
        fills: bool,
        adopt: impl Send + FnOnce(&Control) -> Result<vmem::Adopted, vmem::Error>,
    ) -> PyResult<Self> {
        let options = TrackOptions::default().fills(fills);
        let begin = || adopt(&Control::open()?)?.track_with(options);
        let tracking = py.detach(begin).map_err(os_error)?;
        Ok(Self {
            size: tracking.pages().bytes().end,
            tracking: Mutex::new(Some(Arc::new(tracking))),
        })
    }

    pub(crate) fn tracked(&self) -> PyResult<Arc<vmem::Tracking>> {
        let tracking = self.tracking.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tracking.clone().ok_or_else(|| closed("tracking"))
    }
}

#[pymethods]
impl Tracking {
    /// Begins to log the writes to a region, or to shared memory of a descriptor. With `fills`, pages that the daemon fills are logged, too.
    #[new]
    #[pyo3(signature = (memory, *, fills=false))]
    fn new(py: Python<'_>, memory: &Bound<'_, PyAny>, fills: bool) -> PyResult<Self> {
        if let Ok(region) = memory.cast::<Region>() {
            let open = region.get().opened()?;
            return Self::begin(py, fills, move |control| control.adopt(&*open));
        }
        let number: i32 = match memory.extract() {
            Ok(number) => number,
            Err(_) => memory.call_method0("fileno")?.extract()?,
        };
        // The open file itself, and not a second one, whose writes could not be seen.
        let path = format!("/proc/{}/fd/{number}", std::process::id());
        Self::begin(py, fills, move |control| control.adopt(MemoryHandle::open(path, None)?))
    }

    /// The same for memory at a path, or of another process.
    #[staticmethod]
    #[pyo3(signature = (path, pid=None, *, fills=false))]
    fn open(py: Python<'_>, path: PathBuf, pid: Option<i32>, fills: bool) -> PyResult<Self> {
        Self::begin(py, fills, move |control| control.adopt(MemoryHandle::open(path, pid)?))
    }

    /// Size of the memory in bytes, whole pages.
    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    /// The pages in the log, as pairs of offset and length in bytes. The log stays as it is.
    fn peek(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let tracking = self.tracked()?;
        let pages = py.detach(|| tracking.peek(tracking.pages()).complete());
        Ok(pairs(pages.map_err(os_error)?))
    }

    /// The pages written since the last call, as pairs of offset and length in bytes. Takes them out of the log.
    fn clean(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64)>> {
        let tracking = self.tracked()?;
        let pages = py.detach(|| tracking.clean(tracking.pages()).complete());
        Ok(pairs(pages.map_err(os_error)?))
    }

    /// The contents of the memory at this instant. With `clean`, the log moves into the snapshot. `limit` is that of its copies, in bytes.
    #[pyo3(signature = (*, clean=true, once=false, limit=0))]
    fn snapshot(&self, py: Python<'_>, clean: bool, once: bool, limit: u64) -> PyResult<Snapshot> {
        let tracking = self.tracked()?;
        let options = snapshot::options(clean, once, limit);
        let taken = py.detach(|| tracking.snapshot(options)).map_err(os_error)?;
        Ok(Snapshot::new(taken, tracking))
    }

    /// Ends the log: the memory is as it was before.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let tracking = self.tracking.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        match tracking.map(Arc::try_unwrap) {
            None => Ok(()),
            Some(Ok(tracking)) => py.detach(|| tracking.stop()).map_err(os_error),
            // A call of another thread has it, or a snapshot: the last one ends it.
            Some(Err(shared)) => {
                py.detach(|| drop(shared));
                Ok(())
            }
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.close(py)
    }
}
