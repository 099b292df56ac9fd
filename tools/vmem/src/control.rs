// SPDX-License-Identifier: GPL-2.0-or-later
//! The control device: creates regions, attaches daemons, adopts memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use vmem_sys::calls::{self, Served};
use vmem_sys::{
    VMEM_CREATE_HUGE, VMEM_CREATE_POISON, VMEM_CREATE_SIGBUS, VMEM_FEATURE_BACKING, VMEM_FEATURE_FILES, VMEM_FEATURE_FILL,
    VMEM_FEATURE_POISON, VMEM_FEATURE_RESUME, VMEM_FEATURE_SNAPSHOT, VMEM_FEATURE_STAGE, VMEM_FEATURE_TRACK,
    VMEM_FEATURE_TRACK_ALL, VMEM_ID_KEEP, vmem_attach, vmem_create,
};

use crate::error::call;
use crate::name::{CONTROL, DIRECTORY};
use crate::{Adopted, Error, Name, PAGE_SIZE, Region};

/// An open control device.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
}

/// The features of the module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Size of the largest region in bytes.
    pub max_size: u64,
    /// The most entries in the array of one call. The library splits longer ones.
    pub max_batch: u32,
    /// Whether [`Region::fill`] works.
    pub fill: bool,
    /// Whether [`RegionBuilder::poison_unreadable`] is known.
    pub poison: bool,
    /// Whether [`Control::adopt`] works.
    pub track: bool,
    /// Whether [`TrackOptions::all`](crate::TrackOptions::all) is known.
    pub track_all: bool,
    /// Whether [`Tracking::snapshot`](crate::Tracking::snapshot) works.
    pub snapshot: bool,
    /// Whether [`Region::stage`] works.
    pub stage: bool,
    /// Whether [`Region::set_backing`] works.
    pub backing: bool,
    /// Whether [`Region::resume`] works.
    pub resume: bool,
    /// Whether regions with names are files of the file system type `vmem`.
    pub files: bool,
}

impl Control {
    /// Opens `/dev/vmem/control`.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] (`ENOENT`: the module is not loaded), [`Error::NotVmem`], [`Error::PageSize`].
    pub fn open() -> Result<Self, Error> {
        Self::open_path(Path::new(DIRECTORY).join(CONTROL))
    }

    /// Opens the control device at `path`.
    ///
    /// # Errors
    ///
    /// As for [`Control::open`].
    pub fn open_path(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|source| Error::Open {
            path: path.into(),
            source,
        })?;
        match calls::get_features(fd.as_fd()) {
            Ok(features) if features.page_size as usize == PAGE_SIZE => Ok(Self { fd }),
            Ok(features) => Err(Error::PageSize(features.page_size)),
            Err(_) => Err(Error::NotVmem {
                what: path.display().to_string(),
            }),
        }
    }

    /// The features of the module.
    ///
    /// # Errors
    ///
    /// None on a control descriptor.
    pub fn features(&self) -> Result<Features, Error> {
        let features = calls::get_features(self.fd.as_fd()).map_err(|errno| Error::from_errno(call::GET_FEATURES, errno))?;
        Ok(Features {
            max_size: features.max_size,
            max_batch: features.max_batch,
            fill: features.features & u64::from(VMEM_FEATURE_FILL) != 0,
            poison: features.features & u64::from(VMEM_FEATURE_POISON) != 0,
            track: features.features & u64::from(VMEM_FEATURE_TRACK) != 0,
            track_all: features.features & u64::from(VMEM_FEATURE_TRACK_ALL) != 0,
            snapshot: features.features & u64::from(VMEM_FEATURE_SNAPSHOT) != 0,
            stage: features.features & u64::from(VMEM_FEATURE_STAGE) != 0,
            backing: features.features & u64::from(VMEM_FEATURE_BACKING) != 0,
            resume: features.features & u64::from(VMEM_FEATURE_RESUME) != 0,
            files: features.features & u64::from(VMEM_FEATURE_FILES) != 0,
        })
    }

    /// Becomes the daemon of the region named `name`, which has lost its daemon. [`Region::present_map`] has the pages that are left to fill.
    ///
    /// # Errors
    ///
    /// [`Error::Name`], [`Error::NoSuchRegion`], [`Error::DaemonAttached`], [`Error::NoDescriptors`].
    pub fn attach(&self, name: &str) -> Result<Region, Error> {
        self.attach_to(vmem_attach {
            name: Name::new(name)?.to_sys(),
            ..Default::default()
        })
    }

    /// Becomes the daemon of the region with this number ([`Region::id`]).
    ///
    /// # Errors
    ///
    /// As for [`Control::attach`].
    pub fn attach_id(&self, id: u64) -> Result<Region, Error> {
        self.attach_to(vmem_attach {
            id,
            ..Default::default()
        })
    }

    /// Adopts shared memory that exists: a memfd, a file in a tmpfs such as `/dev/shm`, or a region. `memory` is open for writing. Of a memfd
    /// or file it is the open file through which its program writes ([`ProcessMemory`](crate::ProcessMemory) finds that of another
    /// process). Of a region it is any descriptor, complete or not: a [`Region`], or a [`MapHandle`](crate::MapHandle), as that of
    /// [`MapHandle::open`](crate::MapHandle::open) is while a QEMU has the same node as its memory.
    ///
    /// # Example
    ///
    /// How many pages of a region its programs write in a second, while its daemon fills it:
    ///
    /// ```no_run
    /// use vmem::{Access, Control, MapHandle};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let region = MapHandle::open("guest0", Access::ReadWrite)?;
    /// let tracking = Control::open()?.adopt(&region)?.track()?;
    /// std::thread::sleep(std::time::Duration::from_secs(1));
    /// println!("{} pages", tracking.dirty()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotSharedMemory`], [`Error::NotWritable`], [`Error::UnsupportedMemory`], [`Error::MemoryInUse`], [`Error::TooLarge`],
    /// [`Error::NoDescriptors`], [`Error::NoMemory`]; [`Error::NotVmem`] if the module does not have this call ([`Features::track`]).
    pub fn adopt(&self, memory: impl AsFd) -> Result<Adopted, Error> {
        Adopted::new(self.fd.as_fd(), memory.as_fd())
    }

    fn attach_to(&self, attach: vmem_attach) -> Result<Region, Error> {
        let Served { vmem, shmem, .. } =
            calls::attach(self.fd.as_fd(), attach).map_err(|errno| Error::from_errno(call::ATTACH, errno))?;
        Region::from_fds(vmem, shmem)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The properties of a new region; [`RegionBuilder::create`] creates it.
///
/// Without a name, the region has no node, and other programs get it by descriptor ([`Region::map_handle`]).
#[derive(Debug, Clone)]
#[must_use]
pub struct RegionBuilder {
    size: u64,
    name: Option<String>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    flags: u32,
    fault_timeout: Option<Duration>,
}

impl RegionBuilder {
    /// A region of `size` bytes, rounded up to whole pages.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            name: None,
            mode: None,
            uid: None,
            gid: None,
            flags: 0,
            fault_timeout: None,
        }
    }

    /// The region gets the node `/dev/vmem/NAME`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Permission bits of the node, up to 0o777; the default, also of 0, is 0o600. Only with a name.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Owner of the node; the default is root.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Group of the node; the default is root.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Allocates the memory in transparent huge pages where they are available: the first fill of a page of a huge page allocates all of it.
    /// Once the region is plain, its mappings have what `madvise(MADV_HUGEPAGE)` sets.
    pub fn huge(mut self) -> Self {
        self.flags |= VMEM_CREATE_HUGE;
        self
    }

    /// While no daemon is attached, a touch of an absent page gets SIGBUS instead of waiting for the next daemon.
    pub fn sigbus_without_daemon(mut self) -> Self {
        self.flags |= VMEM_CREATE_SIGBUS;
        self
    }

    /// Makes unreadable pages behave as broken memory: the code of their SIGBUS is `BUS_MCEERR_AR`. KVM passes it to the virtual machine monitor
    /// instead of failing, so that the guest can kill one process and survive. A module without [`Features::poison`] refuses the region.
    pub fn poison_unreadable(mut self) -> Self {
        self.flags |= VMEM_CREATE_POISON;
        self
    }

    /// A touch that has waited this long for its page gets SIGBUS, and the page is unreadable from then on. Through a mapping that
    /// cannot write to the region the page stays as it is. Part of a millisecond counts as a whole one.
    pub fn fault_timeout(mut self, timeout: Duration) -> Self {
        self.fault_timeout = Some(timeout);
        self
    }

    /// Creates the region, with the caller as its daemon. If the node cannot be at the path of its name, the region is not created.
    ///
    /// # Errors
    ///
    /// [`Error::ForeignNode`] (something else is in the node's place, for example a plain file), [`Error::Name`], [`Error::FaultTimeout`], [`Error::Invalid`] (a size of zero, a mode beyond 0o777 or without a name),
    /// [`Error::TooLarge`], [`Error::NameTaken`], [`Error::TooManyRegions`], [`Error::NoDescriptors`], [`Error::NoMemory`].
    pub fn create(&self, control: &Control) -> Result<Region, Error> {
        let Served { vmem, shmem, .. } = calls::create_vmem(control.fd.as_fd(), self.to_sys()?)
            .map_err(|errno| Error::from_errno(call::CREATE_VMEM, errno))?;
        let region = Region::from_fds(vmem, shmem)?;
        if let Some(name) = &self.name {
            region.check_node(Name::new(name)?.path())?;
        }
        Ok(region)
    }

    fn to_sys(&self) -> Result<vmem_create, Error> {
        let mut create = vmem_create {
            size: self.size,
            flags: self.flags,
            uid: self.uid.unwrap_or(VMEM_ID_KEEP),
            gid: self.gid.unwrap_or(VMEM_ID_KEEP),
            mode: self.mode.unwrap_or(0),
            ..Default::default()
        };
        if let Some(name) = &self.name {
            create.name = Name::new(name)?.to_sys();
            create.mode = self.mode.unwrap_or(0o600);
        }
        if let Some(timeout) = self.fault_timeout {
            create.fault_timeout_ms = u32::try_from(timeout.as_nanos().div_ceil(1_000_000))
                .ok()
                .filter(|milliseconds| *milliseconds != 0)
                .ok_or(Error::FaultTimeout)?;
        }
        Ok(create)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn default_builder_creates_no_node() {
        let create = RegionBuilder::new(4096).to_sys().unwrap();
        assert_eq!(
            (create.size, create.flags, create.mode, create.fault_timeout_ms),
            (4096, 0, 0, 0)
        );
        assert_eq!((create.uid, create.gid), (VMEM_ID_KEEP, VMEM_ID_KEEP));
        assert!(create.name.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn named_region_defaults_to_mode_0600() {
        assert_eq!(RegionBuilder::new(1).name("a").to_sys().unwrap().mode, 0o600);
        assert_eq!(RegionBuilder::new(1).name("a").mode(0).to_sys().unwrap().mode, 0);
    }

    #[test]
    fn fault_timeout_out_of_range_is_refused() {
        let milliseconds = |timeout| {
            RegionBuilder::new(1)
                .fault_timeout(timeout)
                .to_sys()
                .map(|create| create.fault_timeout_ms)
        };
        assert_eq!(milliseconds(Duration::from_nanos(1)).unwrap(), 1);
        assert_eq!(milliseconds(Duration::from_millis(u32::MAX.into())).unwrap(), u32::MAX);
        for timeout in [Duration::ZERO, Duration::from_millis(u64::from(u32::MAX) + 1), Duration::MAX] {
            assert!(matches!(milliseconds(timeout), Err(Error::FaultTimeout)), "{timeout:?}");
        }
    }

    #[test]
    fn missing_control_device_is_named_in_the_error() {
        let error = Control::open_path("/proc/self/no-such-file").unwrap_err();
        assert_eq!(error.to_string(), "cannot open /proc/self/no-such-file");
        assert!(matches!(Control::open_path("/dev/null"), Err(Error::NotVmem { .. })));
    }
}
