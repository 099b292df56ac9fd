// SPDX-License-Identifier: GPL-2.0-or-later
//! Map descriptors: for programs that use the memory of a region.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use vmem_mapping::{Access, Mapping, Sharing};
use vmem_sys::Errno;

use crate::error::call;
use crate::file_kind::file_region;
use crate::{Error, FILES_DIRECTORY, Info, Name, PageRange, PresentMap, node};

/// A map descriptor: it can map a region and wait for it, and cannot serve it.
///
/// To give the region to another process, send the descriptor (`AsFd`) over a Unix socket; a received one is a `MapHandle` by
/// `From<OwnedFd>`.
#[derive(Debug)]
pub struct MapHandle {
    fd: OwnedFd,
}

impl MapHandle {
    /// Opens the region named `name`, for reading, or for reading and writing: its file in [`FILES_DIRECTORY`], as other programs do, or else its
    /// node.
    ///
    /// # Errors
    ///
    /// [`Error::Name`]; those of the node: [`Error::Open`] (`ENOENT`: there is no such region; `EACCES`), and [`Error::NotVmem`].
    pub fn open(name: &str, access: Access) -> Result<Self, Error> {
        let name = Name::new(name)?;
        let file = Path::new(FILES_DIRECTORY).join(name.as_str());
        // Without a mount, a plain file can be there. A mount for reading refuses writers.
        match file_region(&file) {
            Ok(Some(_)) => Self::open_path(&file, access).or_else(|_| Self::open_path(name.path(), access)),
            Ok(None) | Err(_) => Self::open_path(name.path(), access),
        }
    }

    /// Opens the region whose node or file is at `path`.
    ///
    /// # Errors
    ///
    /// As for [`MapHandle::open`].
    pub fn open_path(path: impl AsRef<Path>, access: Access) -> Result<Self, Error> {
        node::open(path.as_ref(), access).map(Self::from)
    }

    /// Waits until a daemon has declared that it serves the region.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`]; [`Error::WouldBlock`] if the descriptor is `O_NONBLOCK`.
    pub fn wait_ready(&self) -> Result<(), Error> {
        vmem_sys::calls::wait_ready(self.fd.as_fd()).map_err(|errno| Error::from_errno(call::WAIT_READY, errno))
    }

    /// Maps the whole region.
    ///
    /// # Errors
    ///
    /// [`Error::Mapping`].
    pub fn map(&self, access: Access, sharing: Sharing) -> Result<Mapping, Error> {
        let pages = pages(self.fd.as_fd())?;
        self.map_pages(pages, access, sharing)
    }

    /// Maps `pages` of the region.
    ///
    /// # Errors
    ///
    /// [`Error::Mapping`], for example with `EINVAL` if the region does not have all of the pages.
    pub fn map_pages(&self, pages: PageRange, access: Access, sharing: Sharing) -> Result<Mapping, Error> {
        let bytes = pages.bytes();
        let len = usize::try_from(bytes.end - bytes.start).map_err(|_| vmem_mapping::Error::Map {
            offset: bytes.start,
            len: usize::MAX,
            source: Errno::NOMEM,
        })?;
        Ok(Mapping::new(&self.fd, bytes.start, len, access, sharing)?)
    }

    /// State and counters.
    ///
    /// # Errors
    ///
    /// [`Error::NotVmem`] if this is not a descriptor of a region.
    pub fn info(&self) -> Result<Info, Error> {
        Info::get(self.fd.as_fd())
    }

    /// Which pages are present.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn present_map(&self) -> Result<PresentMap, Error> {
        PresentMap::get(self.fd.as_fd(), pages(self.fd.as_fd())?)
    }
}

/// All pages of the region behind `fd`.
pub(crate) fn pages(fd: BorrowedFd<'_>) -> Result<PageRange, Error> {
    PageRange::of_len(Info::get(fd)?.size).ok_or(Error::from_errno(call::GET_INFO, Errno::OVERFLOW))
}

impl From<OwnedFd> for MapHandle {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<MapHandle> for OwnedFd {
    fn from(handle: MapHandle) -> Self {
        handle.fd
    }
}

impl AsFd for MapHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_not_a_region_is_refused() {
        assert!(matches!(
            MapHandle::open_path("/dev/null", Access::ReadWrite),
            Err(Error::NotVmem { .. })
        ));
        // The error of a plain file names what is there: a program that came too early may have made it.
        let error = MapHandle::open_path("/proc/self/exe", Access::ReadOnly).expect_err("a plain file");
        assert_eq!(error.to_string(), "/proc/self/exe (a plain file) is not a file of vmem");
        assert!(matches!(
            MapHandle::open_path("/proc/self/no-such-file", Access::ReadWrite),
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            })
        ));
        assert!(matches!(
            MapHandle::open("../null", Access::ReadWrite),
            Err(Error::Name { .. })
        ));
    }
}
