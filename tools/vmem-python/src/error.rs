// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of the library as exceptions.

use std::error::Error as _;

use pyo3::PyErr;
use pyo3::exceptions::{PyOSError, PyValueError};
use vmem::{Error, MappingError};

/// Numbers of Linux on x86-64, as in `errno(3)`.
pub(crate) mod errno {
    pub(crate) const PERM: i32 = 1;
    pub(crate) const NOENT: i32 = 2;
    pub(crate) const SRCH: i32 = 3;
    pub(crate) const INTR: i32 = 4;
    pub(crate) const IO: i32 = 5;
    pub(crate) const AGAIN: i32 = 11;
    pub(crate) const NOMEM: i32 = 12;
    pub(crate) const ACCES: i32 = 13;
    pub(crate) const BUSY: i32 = 16;
    pub(crate) const EXIST: i32 = 17;
    pub(crate) const INVAL: i32 = 22;
    pub(crate) const MFILE: i32 = 24;
    pub(crate) const NOTTY: i32 = 25;
    pub(crate) const FBIG: i32 = 27;
    pub(crate) const NOSPC: i32 = 28;
    pub(crate) const NODATA: i32 = 61;
    pub(crate) const OPNOTSUPP: i32 = 95;
    pub(crate) const ALREADY: i32 = 114;
    pub(crate) const STALE: i32 = 116;
}

/// An `OSError` with the number of the error. Python makes the subclass of that number of it, for example `FileNotFoundError`.
pub(crate) fn os_error(error: Error) -> PyErr {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    PyOSError::new_err((number(&error), text))
}

/// What Python's own files raise after their `close()`.
pub(crate) fn closed(what: &str) -> PyErr {
    PyValueError::new_err(format!("the {what} is closed"))
}

/// The number that the kernel has given, or for what the library itself refuses the one that fits best.
fn number(error: &Error) -> i32 {
    match error {
        Error::Open { source, .. } | Error::ProcessDenied { source, .. } | Error::Other { source, .. } => source.raw_os_error(),
        Error::Mapping(MappingError::Map { source, .. } | MappingError::Read(source) | MappingError::Remove(source)) => {
            source.raw_os_error()
        }
        Error::Mapping(MappingError::ReadOnly) | Error::NotWritable => errno::ACCES,
        Error::MapOnly { .. } => errno::PERM,
        Error::NoSuchRegion | Error::NoSuchMemory { .. } | Error::MemoryNotOpen { .. } => errno::NOENT,
        Error::ProcessUnknown { .. } | Error::NoSuchProcess { .. } => errno::SRCH,
        Error::Interrupted { .. } => errno::INTR,
        Error::NeverAtRest | Error::WouldBlock { .. } => errno::AGAIN,
        Error::NoMemory { .. } => errno::NOMEM,
        Error::DaemonAttached | Error::PagesAbsent | Error::MemoryInUse | Error::MappingsInUse | Error::HasSnapshot => {
            errno::BUSY
        }
        Error::ForeignNode { .. } | Error::NameTaken => errno::EXIST,
        Error::Mapping(MappingError::OutOfBounds { .. })
        | Error::Name { .. }
        | Error::FaultTimeout
        | Error::NotWholePages { .. }
        | Error::NotSharedMemory
        | Error::AmbiguousMemory { .. }
        | Error::Invalid { .. } => errno::INVAL,
        Error::NoDescriptors { .. } => errno::MFILE,
        Error::NotVmem { .. } => errno::NOTTY,
        Error::TooLarge => errno::FBIG,
        Error::TooManyRegions => errno::NOSPC,
        Error::Plain | Error::NotTracked | Error::PageDone => errno::NODATA,
        Error::UnsupportedMemory => errno::OPNOTSUPP,
        Error::AlreadyTracked => errno::ALREADY,
        Error::SnapshotFailed => errno::STALE,
        // PageUnreadable, PageSize, and what the library may add.
        _ => errno::IO,
    }
}
