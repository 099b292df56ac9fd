// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of the library as exceptions.

use std::error::Error as _;

use pyo3::PyErr;
use pyo3::exceptions::{PyOSError, PyValueError};
use rustix::io::Errno;
use vmem::{Error, MappingError};

/// An `OSError` with the number of the error. Python makes the subclass of that number of it, for example `FileNotFoundError`.
pub(crate) fn os_error(error: Error) -> PyErr {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    refused(number(&error), text)
}

/// An `OSError` with this number.
pub(crate) fn refused(errno: Errno, text: impl Into<String>) -> PyErr {
    PyOSError::new_err((errno.raw_os_error(), text.into()))
}

/// What Python's own files raise after their `close()`.
pub(crate) fn closed(what: &str) -> PyErr {
    PyValueError::new_err(format!("the {what} is closed"))
}

/// The number that the kernel has given, or for what the library itself refuses the one that fits best.
fn number(error: &Error) -> Errno {
    match error {
        Error::Open { source, .. } | Error::ProcessDenied { source, .. } | Error::Other { source, .. } => *source,
        Error::Mapping(MappingError::Map { source, .. } | MappingError::Read(source) | MappingError::Remove(source)) => *source,
        Error::Mapping(MappingError::ReadOnly) | Error::NotWritable => Errno::ACCESS,
        Error::MapOnly { .. } => Errno::PERM,
        Error::NoSuchRegion | Error::NoSuchMemory { .. } | Error::MemoryNotOpen { .. } => Errno::NOENT,
        Error::ProcessUnknown { .. } | Error::NoSuchProcess { .. } => Errno::SRCH,
        Error::Interrupted { .. } => Errno::INTR,
        Error::NeverAtRest | Error::WouldBlock { .. } => Errno::AGAIN,
        Error::NoMemory { .. } => Errno::NOMEM,
        Error::DaemonAttached | Error::PagesAbsent | Error::MemoryInUse | Error::MappingsInUse | Error::HasSnapshot => {
            Errno::BUSY
        }
        Error::ForeignNode { .. } | Error::NameTaken => Errno::EXIST,
        Error::Mapping(MappingError::OutOfBounds { .. })
        | Error::Name { .. }
        | Error::FaultTimeout
        | Error::NotWholePages { .. }
        | Error::NotSharedMemory
        | Error::AmbiguousMemory { .. }
        | Error::Invalid { .. } => Errno::INVAL,
        Error::NoDescriptors { .. } => Errno::MFILE,
        Error::NotVmem { .. } => Errno::NOTTY,
        Error::TooLarge => Errno::FBIG,
        Error::TooManyRegions => Errno::NOSPC,
        Error::Plain | Error::NotTracked | Error::PageDone => Errno::NODATA,
        Error::UnsupportedMemory => Errno::OPNOTSUPP,
        Error::AlreadyTracked => Errno::ALREADY,
        Error::SnapshotFailed => Errno::STALE,
        // PageUnreadable, PageSize, and what the library may add.
        _ => Errno::IO,
    }
}
