// SPDX-License-Identifier: GPL-2.0

//! Snapshot descriptors, and their mappings.

use super::{
    dirty::{
        self,
        ReadableLog, //
    },
    fault::await_present,
    image::Image,
    info,
    touch::touch_for_call,
    tracked::Tracked, //
};
use crate::{
    model::{
        dirty_log::{
            ChunkBits,
            CHUNK_PAGES, //
        },
        range::{
            PageRange,
            PAGE_SIZE, //
        }, //
    },
    sys::{
        copies::read_pages,
        errno,
        fault::{
            Fault,
            FaultPolicy,
            MapDecision, //
        },
        file_ops::{
            self,
            FileOps,
            FileOpsTable,
            IoWait, //
        },
        task::cond_resched_or_killed,
        uapi::{
            vmem_range,
            vmem_snapshot_info,
            UserArg,
            VMEM_IOCTL_DIRTY,
            VMEM_IOCTL_GET_FEATURES,
            VMEM_IOCTL_GET_PRESENT,
            VMEM_IOCTL_GET_SNAPSHOT,
            VMEM_IOCTL_SNAPSHOT_DONE,
            VMEM_SNAPSHOT_CLEAN,
            VMEM_SNAPSHOT_ONCE, //
        },
        vm_fault_reason::VmFaultReason,
        vm_ops::{
            MapFile,
            MapFileOps,
            NewVma,
            VmOps,
            VmOpsTables, //
        },
        wait::PollQueue,
        write_fault::WriteFault, //
    }, //
};
use kernel::{
    fs::{
        file::flags,
        File, //
    },
    iov::IovIterDest,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::ForeignOwnable, //
};

static OPS: FileOpsTable<ImageFile> = FileOpsTable::new();
static VM_OPS: VmOpsTables<Arc<OpenImage>> = VmOpsTables::new();
static MAP_OPS: MapFileOps<Arc<OpenImage>> = MapFileOps::new();

/// An image that is in use, by a descriptor or by mappings. When it is dropped, writers stop
/// copying pages for the image.
pub(crate) struct OpenImage {
    tracked: Arc<Tracked>,
    image: Arc<Image>,
    flags: u32,
}

impl OpenImage {
    /// An image that was made with these `VMEM_SNAPSHOT_` flags.
    pub(super) fn new(tracked: &Arc<Tracked>, image: &Arc<Image>, flags: u32) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                tracked: tracked.clone(),
                image: image.clone(),
                flags,
            },
            GFP_KERNEL,
        )?)
    }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        let tracking = self.tracked.tracking();
        // First: once writers do not copy for this image, the next snapshot may be taken, and its
        // log must have these pages.
        if self.flags & VMEM_SNAPSHOT_CLEAN != 0 {
            tracking.merge(self.image.log());
        }
        tracking.copy_before_write().clear_image(&self.image);
    }
}

impl ReadableLog for Image {
    const CLEANS: bool = false;

    fn range(&self, pgoff: u64, nr: u64) -> Result<PageRange> {
        Image::range(self, pgoff, nr)
    }

    fn peek(&self, chunk: PageRange) -> ChunkBits {
        self.log().peek(chunk)
    }
}

/// The private data of a snapshot descriptor.
pub(crate) struct ImageFile {
    map_file: MapFile<Arc<OpenImage>>,
    open: Arc<OpenImage>,
}

/// A file for a snapshot descriptor, open for reading.
pub(super) fn file(open: Arc<OpenImage>) -> Result<ARef<File>> {
    let map_file = MapFile::new(open.image.copies(), c"vmem-snapshot", open.clone())?;
    let data = KBox::new(ImageFile { map_file, open }, GFP_KERNEL)?;
    file_ops::anonymous(c"[vmem-snapshot]", &OPS, data, flags::O_RDONLY)
}

impl ImageFile {
    fn image(&self) -> &Arc<Image> {
        &self.open.image
    }

    /// SNAPSHOT_DONE.
    fn done(&self, arg: UserArg) -> Result {
        let call: vmem_range = arg.read()?;
        let image = self.image();
        let range = image.range(call.pgoff, call.nr_pages)?;
        for chunk in range.pieces(CHUNK_PAGES) {
            cond_resched_or_killed()?;
            image.set_done(chunk)?;
            // The reader does not need these pages in the log of the next snapshot.
            image.log().take(chunk);
        }
        Ok(())
    }

    fn info(&self) -> vmem_snapshot_info {
        let image = self.image();
        let (pending, copied, kept, done) = image.counts();
        vmem_snapshot_info {
            size: self.size(),
            dirty: image.log().count(),
            pending,
            copied,
            kept,
            done,
            failed: image.check().is_err().into(),
            reserved: 0,
        }
    }

    fn size(&self) -> u64 {
        self.image().all().bytes().unwrap_or(0)
    }
}

#[vtable]
impl FileOps for ImageFile {
    type Data = KBox<Self>;

    fn ioctl(this: &Self, _file: &File, cmd: u32, arg: UserArg) -> Result {
        match cmd {
            VMEM_IOCTL_GET_FEATURES => info::get_features(arg),
            VMEM_IOCTL_GET_SNAPSHOT => arg.write(&this.info()),
            VMEM_IOCTL_GET_PRESENT => {
                let image = this.image();
                info::get_present_of(
                    image.region().map(|region| &**region),
                    image.all().len(),
                    arg,
                )
            }
            VMEM_IOCTL_DIRTY => dirty::dirty(&**this.image(), arg),
            VMEM_IOCTL_SNAPSHOT_DONE => this.done(arg),
            _ => Err(ENOTTY),
        }
    }

    fn mmap(this: &Self, vma: NewVma<'_>) -> Result {
        let (pgoff, nr) = vma.pages();
        this.image().range(pgoff, nr)?;
        vma.map(&this.map_file, false);
        Ok(())
    }

    fn poll_queue<'a>(this: <Self::Data as ForeignOwnable>::Borrowed<'a>) -> Option<&'a PollQueue> {
        Some(this.open.image.watchers())
    }

    fn is_readable(_this: &Self) -> bool {
        true
    }

    fn has_failed(this: &Self) -> bool {
        this.image().check().is_err()
    }

    fn size(this: &Self) -> u64 {
        ImageFile::size(this)
    }

    fn seek(this: &Self, pos: u64, is_data: bool) -> Result<u64> {
        let page = this.image().seek(pos / PAGE_SIZE, is_data)?;
        match page {
            Some(page) => Ok(pos.max(page.saturating_mul(PAGE_SIZE))),
            // The end of the file is a hole.
            None if !is_data => Ok(ImageFile::size(this)),
            None => Err(ENXIO),
        }
    }

    /// Stops early at a page that cannot be read.
    fn read(this: &Self, pos: u64, to: &mut IovIterDest<'_>, _wait: IoWait) -> Result<usize> {
        let read = read_pages(this.size(), pos, to, |pgoff, sink| {
            this.image()
                .read(pgoff, sink, |region| touch_for_call(region, pgoff))
        })?;
        if this.open.flags & VMEM_SNAPSHOT_ONCE != 0 {
            let first = pos.div_ceil(PAGE_SIZE);
            let end = pos.saturating_add(read as u64) / PAGE_SIZE;
            if let Ok(pages) = this.image().range(first, end.saturating_sub(first)) {
                this.image().set_done(pages)?;
            }
        }
        Ok(read)
    }

    fn show_fdinfo(this: &Self, m: &SeqFile) {
        let info = this.info();
        for (name, value) in [
            ("size", info.size),
            ("dirty", info.dirty),
            ("pending", info.pending),
            ("copied", info.copied),
            ("kept", info.kept),
            ("done", info.done),
            ("failed", info.failed),
        ] {
            seq_print!(m, "vmem-{name}:\t{value}\n");
        }
    }
}

impl FaultPolicy for Arc<OpenImage> {
    fn present(&self, range: PageRange) -> bool {
        self.image.has_copies(range)
    }

    fn present_among(&self, range: PageRange) -> u64 {
        let copied = range.pieces(1).map(|page| self.image.has_copies(page));
        let bit = |(at, is_copied)| u64::from(is_copied) << at;
        copied.take(64).enumerate().map(bit).sum()
    }

    fn may_map(&self, fault: &WriteFault<'_>, _write_faults: bool) -> MapDecision {
        if self.image.has_copies(fault.pages()) {
            MapDecision::Map
        } else {
            MapDecision::Sigbus
        }
    }

    /// A copy may have been dropped before its folio was locked.
    fn allows_fault_around(&self, around: PageRange, _write_faults: bool) -> bool {
        self.image.has_copies(around)
    }
}

impl VmOps for Arc<OpenImage> {
    const VM_OPS: &'static VmOpsTables<Self> = &VM_OPS;
    const MAP_OPS: &'static MapFileOps<Self> = &MAP_OPS;

    /// Copies a page when it is touched, and maps the copy.
    fn fault(&self, fault: &mut Fault<'_>) -> VmFaultReason {
        let pgoff = fault.pgoff();
        if let Some(region) = self.image.absent_in(pgoff) {
            if let Err(answer) = await_present(region, fault) {
                return answer;
            }
        }
        match self.image.ensure_copy(pgoff) {
            Ok(copies) => fault.map(copies, self, None),
            Err(_) => VmFaultReason::SIGBUS,
        }
    }

    fn blocks_present(&self, _range: PageRange) -> bool {
        false
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result {
        Err(errno::opnotsupp())
    }
}
