// SPDX-License-Identifier: GPL-2.0

//! Region descriptors and map descriptors, and the nodes of named regions.

use super::{
    attachment::Attachment,
    fault::Mapped,
    info,
    memories,
    region::Region,
    registry::{
        self,
        Handle, //
    },
    serve,
    set_backing, //
};
use crate::sys::{
    file,
    file_ops::{
        self,
        FileOps,
        FileOpsTable,
        OpenedInode, //
    },
    uapi::{
        vmem_map_fd,
        vmem_resume,
        UserArg,
        VMEM_IOCTL_FILL_PAGES,
        VMEM_IOCTL_GET_FEATURES,
        VMEM_IOCTL_GET_INFO,
        VMEM_IOCTL_GET_MAP_FD,
        VMEM_IOCTL_GET_PAGE_REQUEST,
        VMEM_IOCTL_GET_PRESENT,
        VMEM_IOCTL_MAKE_PAGES_PRESENT,
        VMEM_IOCTL_MAKE_VMA_ANONYMOUS,
        VMEM_IOCTL_MARK_PAGE_CACHED,
        VMEM_IOCTL_READY,
        VMEM_IOCTL_RESUME,
        VMEM_IOCTL_SET_BACKING,
        VMEM_IOCTL_WAIT_READY,
        VMEM_NAME_MAX, //
    },
    vm_ops::{
        MapFile,
        NewVma, //
    },
    wait::PollQueue, //
};
use kernel::{
    fs::{
        file::flags,
        File, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::ForeignOwnable, //
};

/// The operations of region and map descriptors.
pub(crate) static OPS: FileOpsTable<RegionFile> = FileOpsTable::new();

/// The private data of a region or map descriptor.
pub(crate) struct RegionFile {
    /// The daemon's attachment, of a region descriptor. It is the first field, so that it is
    /// dropped first.
    daemon: Option<Attachment>,
    map_file: MapFile<Mapped>,
    handle: Arc<Handle>,
}

impl RegionFile {
    fn new(handle: Arc<Handle>, daemon: Option<Attachment>) -> Result<Self> {
        let region = handle.region();
        let mapped = Mapped::new(handle.clone());
        let map_file = MapFile::new(region.staging(), region.label(), mapped)?;
        Ok(Self {
            daemon,
            map_file,
            handle,
        })
    }

    /// For an open of a node or of a file.
    pub(super) fn for_open(handle: Handle) -> Result<Self> {
        Self::new(Arc::new(handle, GFP_KERNEL)?, None)
    }

    /// A handle of the region.
    pub(super) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// The region.
    pub(super) fn region(&self) -> &Arc<Region> {
        self.handle.region()
    }

    /// A region descriptor, for the daemon that is attached.
    pub(crate) fn for_daemon(handle: Handle, daemon: Attachment) -> Result<ARef<File>> {
        let data = Self::new(Arc::new(handle, GFP_KERNEL)?, Some(daemon))?;
        let data = KBox::new(data, GFP_KERNEL)?;
        file_ops::anonymous(c"[vmem]", &OPS, data, flags::O_RDWR)
    }

    /// A map descriptor, with the access mode `mode`.
    fn for_mapping(handle: Arc<Handle>, mode: u32) -> Result<ARef<File>> {
        let data = KBox::new(Self::new(handle, None)?, GFP_KERNEL)?;
        file_ops::anonymous(c"[vmem-map]", &OPS, data, mode)
    }

    /// Maps the region. The mapping may reach beyond its end, where a touch gets SIGBUS.
    pub(super) fn map(&self, vma: NewVma<'_>) -> Result {
        let region = self.handle.region();
        if region.is_plain() {
            return vma.map_plain(region.staging(), serve::plain_flags(region));
        }
        region.charge_to_current()?;
        // Writes through a private mapping do not change the region.
        let tracking = memories::tracking_of_region(region).filter(|_| vma.is_shared());
        match tracking {
            None => vma.map(&self.map_file, false),
            Some(tracking) => {
                let mapped = Mapped::logged(self.handle.clone(), tracking);
                let file = MapFile::new(region.staging(), region.label(), mapped)?;
                vma.map(&file, true);
            }
        }
        Ok(())
    }

    /// GET_MAP_FD. A descriptor that can only read gives a descriptor that can only read.
    fn get_map_fd(&self, file: &File, arg: UserArg) -> Result {
        let mut call: vmem_map_fd = arg.read()?;
        if call.flags != 0 {
            return Err(EINVAL);
        }
        let mode = file.flags() & flags::O_ACCMODE;
        let file = Self::for_mapping(self.handle.clone(), mode)?;
        let fd = file::reserve_fd()?;
        call.fd = fd.reserved_fd() as i32;
        arg.write(&call)?;
        fd.fd_install(file);
        Ok(())
    }

    /// RESUME. The requests are queued again last: if the call fails, nothing has changed.
    fn resume(&self, arg: UserArg) -> Result {
        let mut call: vmem_resume = arg.read()?;
        if call.flags != 0 || call.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let region = self.region();
        let fd = file::reserve_fd()?;
        call.shmem_fd = fd.reserved_fd() as i32;
        call.size = region.size();
        call.id = region.id();
        call.name = registry::look_up_id(region.id())
            .map_or([0; VMEM_NAME_MAX as usize], |named| named.name.to_field());
        arg.write(&call)?;
        fd.fd_install(region.staging().file().clone());
        region.pages().requeue_taken();
        Ok(())
    }
}

#[vtable]
impl FileOps for RegionFile {
    type Data = KBox<Self>;

    fn open(inode: &OpenedInode<'_>) -> Result<Self::Data> {
        Ok(KBox::new(
            Self::for_open(registry::find_minor(inode.minor())?)?,
            GFP_KERNEL,
        )?)
    }

    fn ioctl(this: &Self, file: &File, cmd: u32, arg: UserArg) -> Result {
        let region = this.handle.region();
        let nonblock = file.flags() & flags::O_NONBLOCK != 0;
        match cmd {
            VMEM_IOCTL_GET_FEATURES => return info::get_features(arg),
            VMEM_IOCTL_WAIT_READY => return serve::wait_ready(region, nonblock),
            VMEM_IOCTL_GET_PRESENT => return info::get_present(region, arg),
            VMEM_IOCTL_GET_INFO => return info::get_info(region, arg),
            VMEM_IOCTL_GET_MAP_FD => return this.get_map_fd(file, arg),
            _ => {}
        }
        let serves = this.daemon.is_some();
        match cmd {
            VMEM_IOCTL_READY if serves => {
                region.daemon().set_ready();
                Ok(())
            }
            VMEM_IOCTL_GET_PAGE_REQUEST if serves => serve::get_page_request(region, arg, nonblock),
            VMEM_IOCTL_MARK_PAGE_CACHED if serves => serve::mark_page_cached(region, arg),
            VMEM_IOCTL_FILL_PAGES if serves => serve::fill_pages(region, arg),
            VMEM_IOCTL_MAKE_PAGES_PRESENT if serves => serve::make_pages_present(region, arg),
            VMEM_IOCTL_SET_BACKING if serves => set_backing::set_backing(region, arg),
            VMEM_IOCTL_MAKE_VMA_ANONYMOUS if serves => serve::make_vma_anonymous(region),
            VMEM_IOCTL_RESUME if serves => this.resume(arg),
            VMEM_IOCTL_READY
            | VMEM_IOCTL_GET_PAGE_REQUEST
            | VMEM_IOCTL_MARK_PAGE_CACHED
            | VMEM_IOCTL_FILL_PAGES
            | VMEM_IOCTL_MAKE_PAGES_PRESENT
            | VMEM_IOCTL_SET_BACKING
            | VMEM_IOCTL_MAKE_VMA_ANONYMOUS
            | VMEM_IOCTL_RESUME => Err(EPERM),
            _ => Err(ENOTTY),
        }
    }

    fn mmap(this: &Self, vma: NewVma<'_>) -> Result {
        let (pgoff, nr) = vma.pages();
        this.region().pages().range(pgoff, nr)?;
        this.map(vma)
    }

    fn poll_queue<'a>(this: <Self::Data as ForeignOwnable>::Borrowed<'a>) -> Option<&'a PollQueue> {
        let region = this.handle.region();
        Some(match this.daemon {
            None => &region.daemon().ready_waiters,
            Some(_) => &region.pages().request_waiters,
        })
    }

    fn is_readable(this: &Self) -> bool {
        let region = this.handle.region();
        region.is_plain()
            || match this.daemon {
                None => region.daemon().is_ready(),
                Some(_) => region.pages().has_requests(),
            }
    }

    fn size(this: &Self) -> u64 {
        this.handle.region().size()
    }

    fn show_fdinfo(this: &Self, m: &SeqFile) {
        info::show_fdinfo(this.handle.region(), m);
    }
}
