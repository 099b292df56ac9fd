// SPDX-License-Identifier: GPL-2.0-or-later
//! Regions.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use vmem::{Access, Control, FILES_DIRECTORY, Files, FilesOption, MapHandle, Mapping, RegionBuilder, Sharing};

use crate::error::{closed, os_error, refused};
use crate::info::Info;
use crate::ranges::{inside, pairs, whole_pages};
use crate::serve::{self, Functions, State};

/// A region: memory of a fixed size whose pages may be absent.
#[pyclass(frozen, module = "vmem")]
pub(crate) struct Region {
    open: Mutex<Option<Arc<Open>>>,
    size: u64,
    length: u64,
    id: u64,
    name: Option<String>,
    path: Option<PathBuf>,
}

/// A region that is not closed.
pub(crate) struct Open {
    map: MapHandle,
    /// That of this process, if it is the daemon.
    daemon: Option<vmem::Region>,
    state: State,
    /// Made by the first read.
    mapping: OnceLock<Mapping>,
}

impl AsFd for Open {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Open {
    fn daemon(&self) -> PyResult<&vmem::Region> {
        let denied = || {
            refused(
                Errno::PERM,
                "this process has opened the region to use it, and does not serve it",
            )
        };
        self.daemon.as_ref().ok_or_else(denied)
    }

    fn mapping(&self) -> Result<&Mapping, vmem::Error> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let mapping = self.map.map(Access::ReadOnly, Sharing::Shared)?;
        Ok(self.mapping.get_or_init(|| mapping))
    }
}

impl Region {
    fn new(open: Open, name: Option<String>, path: Option<PathBuf>) -> Result<Self, vmem::Error> {
        let info = open.map.info()?;
        Ok(Self {
            open: Mutex::new(Some(Arc::new(open))),
            size: info.size,
            length: info.length,
            id: info.id,
            name,
            path,
        })
    }

    /// One whose daemon is this process.
    fn served(daemon: vmem::Region, name: Option<String>) -> Result<Self, vmem::Error> {
        let path = match &name {
            Some(name) => {
                let files = Files::open(&FilesOption::default());
                files.check(name, daemon.id())?;
                Some(files.path(name))
            }
            None => None,
        };
        let open = Open {
            map: daemon.map_handle()?,
            daemon: Some(daemon),
            state: State::default(),
            mapping: OnceLock::new(),
        };
        Self::new(open, name, path)
    }

    pub(crate) fn opened(&self) -> PyResult<Arc<Open>> {
        let open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.clone().ok_or_else(|| closed("region"))
    }
}

#[pymethods]
impl Region {
    /// Creates a region of `size` bytes, with this process as its daemon. With a name, programs open it by `path`. `fault_timeout` is in seconds: a touch that
    /// has waited so long gets SIGBUS.
    #[staticmethod]
    #[pyo3(signature = (size, name=None, *, mode=None, uid=None, gid=None, fault_timeout=None, huge=false, sigbus_without_daemon=false))]
    #[expect(clippy::too_many_arguments, reason = "in Python, they have names")]
    fn create(
        py: Python<'_>,
        size: u64,
        name: Option<String>,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        fault_timeout: Option<f64>,
        huge: bool,
        sigbus_without_daemon: bool,
    ) -> PyResult<Self> {
        let mut builder = RegionBuilder::new(size);
        if let Some(name) = &name {
            builder = builder.name(name);
        }
        if let Some(mode) = mode {
            builder = builder.mode(mode);
        }
        if let Some(uid) = uid {
            builder = builder.uid(uid);
        }
        if let Some(gid) = gid {
            builder = builder.gid(gid);
        }
        if let Some(seconds) = fault_timeout {
            let timeout = Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
            builder = builder.fault_timeout(timeout);
        }
        if huge {
            builder = builder.huge();
        }
        if sigbus_without_daemon {
            builder = builder.sigbus_without_daemon();
        }
        let create = || -> Result<Self, vmem::Error> { Self::served(builder.create(&Control::open()?)?, name) };
        py.detach(create).map_err(os_error)
    }

    /// Becomes the daemon of a region that has lost its own.
    #[staticmethod]
    fn attach(py: Python<'_>, name: String) -> PyResult<Self> {
        let attach = || -> Result<Self, vmem::Error> { Self::served(Control::open()?.attach(&name)?, Some(name)) };
        py.detach(attach).map_err(os_error)
    }

    /// Opens a region to use it: by its name, or by the path of its file or node.
    #[staticmethod]
    #[pyo3(signature = (path, *, writable=true))]
    fn open(py: Python<'_>, path: PathBuf, writable: bool) -> PyResult<Self> {
        let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
        let open = || -> Result<Self, vmem::Error> {
            let name = path.to_str().filter(|_| path.is_relative() && path.components().count() == 1);
            let map = match name {
                Some(name) => MapHandle::open(name, access)?,
                None => MapHandle::open_path(&path, access)?,
            };
            let id = map.info()?.id;
            let open = Open {
                map,
                daemon: None,
                state: State::default(),
                mapping: OnceLock::new(),
            };
            match name {
                Some(name) => {
                    let file = Path::new(FILES_DIRECTORY).join(name);
                    let found = if vmem::region_at(&file) == Some(id) {
                        file
                    } else {
                        vmem::node_path(name)
                    };
                    Self::new(open, Some(name.to_owned()), Some(found))
                }
                None => {
                    let name = vmem::region_name(&path).map(|name| name.to_string());
                    Self::new(open, name, Some(path.clone()))
                }
            }
        };
        py.detach(open).map_err(os_error)
    }

    /// Size in bytes, whole pages.
    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    /// Length in bytes, as the region was created.
    #[getter]
    fn length(&self) -> u64 {
        self.length
    }

    /// Number of the region, never used twice.
    #[getter]
    fn id(&self) -> u64 {
        self.id
    }

    /// Name of the region, if it has one.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The path by which programs open the region, if it has a name.
    #[getter]
    fn path(&self) -> Option<&OsStr> {
        self.path.as_deref().map(Path::as_os_str)
    }

    /// Whether `close()` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.opened().is_err()
    }

    /// A descriptor for `mmap.mmap(region.fileno(), region.size)`: it can map the region and cannot serve it. A touch of an absent page holds the
    /// interpreter's lock while it waits: in the process that serves the region, use `read()` instead. A touch of an unreadable page is SIGBUS.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.opened()?.as_fd().as_raw_fd())
    }

    /// State and counters.
    fn info(&self) -> PyResult<Info> {
        let info = self.opened()?.map.info().map_err(os_error)?;
        Ok(info.into())
    }

    /// The pages that are absent, as pairs of offset and length in bytes.
    fn absent(&self) -> PyResult<Vec<(u64, u64)>> {
        let map = self.opened()?.map.present_map().map_err(os_error)?;
        Ok(pairs(map.absent()))
    }

    /// Copies `length` bytes at `offset` out of the region. Other threads run while it waits for absent pages. An unreadable page is EIO.
    fn read<'py>(&self, py: Python<'py>, offset: u64, length: u64) -> PyResult<Bound<'py, PyBytes>> {
        let length = inside(self.size, offset, length)?;
        let open = self.opened()?;
        let mut bytes = vec![0; length];
        // The offset is inside of the mapping, whose length is a `usize`.
        let read =
            py.detach(|| -> Result<usize, vmem::Error> { Ok(open.mapping()?.read_until_fault(offset as usize, &mut bytes)?) });
        match read.map_err(os_error)? {
            read if read == length => Ok(PyBytes::new(py, &bytes)),
            read => Err(refused(
                Errno::IO,
                format!("the page at {} cannot be read", offset + read as u64),
            )),
        }
    }

    /// Fills the absent ones of whole pages, from `offset` in bytes on.
    fn fill(&self, py: Python<'_>, offset: u64, data: PyBackedBytes) -> PyResult<()> {
        let open = self.opened()?;
        let daemon = open.daemon()?;
        match whole_pages(daemon.pages(), offset, Some(data.len() as u64))? {
            Some(pages) => serve::fill_bytes(py, daemon, pages, &data),
            None => Ok(()),
        }
    }

    /// Answers the requests of all programs with what `read(offset, length)` returns: bytes of whole pages, or None for zeros. A page for which it raises is
    /// unreadable, and `on_error(offset, length, exception)` is called. Returns when all pages are present and the region is plain memory, within 0.1 s
    /// after `stop()` or when the event `stop` is set.
    #[pyo3(signature = (read, *, stop=None, on_error=None, finish=true))]
    fn serve<'py>(
        &self,
        py: Python<'py>,
        read: Bound<'py, PyAny>,
        stop: Option<Bound<'py, PyAny>>,
        on_error: Option<Bound<'py, PyAny>>,
        finish: bool,
    ) -> PyResult<()> {
        let open = self.opened()?;
        let functions = Functions {
            read,
            stop,
            on_error,
            finish,
        };
        serve::serve(py, open.daemon()?, &open.state, &functions)
    }

    /// Ends the `serve()` of another thread, or else the next one.
    fn stop(&self) -> PyResult<()> {
        self.opened()?.state.stop();
        Ok(())
    }

    /// Closes the descriptors, and ends the `serve()` of another thread.
    fn close(&self, py: Python<'_>) {
        let open = self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(open) = open {
            open.state.stop();
            py.detach(|| drop(open));
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(&self, py: Python<'_>, _type: &Bound<'_, PyAny>, _value: &Bound<'_, PyAny>, _traceback: &Bound<'_, PyAny>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        format!("<vmem.Region{name}: region {}, {} bytes>", self.id, self.size)
    }
}
