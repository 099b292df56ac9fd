// SPDX-License-Identifier: GPL-2.0

//! Adopted descriptors.

use super::{
    dirty,
    info,
    memories::AdoptedMemory,
    named_file,
    region_file::{
        self,
        RegionFile, //
    },
    registry::{
        self,
        Handle, //
    },
    snapshot,
    tracked::Tracked,
    tracking::{
        FirstPages,
        Tracking, //
    }, //
};
use crate::{
    model::range::{
        pages_for,
        PAGE_SIZE, //
    },
    sys::{
        errno,
        file::reserve_fd,
        file_ops::{
            self,
            FileOps,
            FileOpsTable, //
        },
        shared::SharedMemory,
        task::is_exiting,
        uapi::{
            vmem_adopt,
            vmem_info,
            vmem_track,
            vmem_tracking,
            UserArg,
            VMEM_IOCTL_DIRTY,
            VMEM_IOCTL_GET_FEATURES,
            VMEM_IOCTL_GET_INFO,
            VMEM_IOCTL_GET_PRESENT,
            VMEM_IOCTL_GET_TRACKING,
            VMEM_IOCTL_SNAPSHOT,
            VMEM_IOCTL_TRACK,
            VMEM_IOCTL_UNTRACK,
            VMEM_MAX_SIZE,
            VMEM_STATE_PLAIN,
            VMEM_TRACK_ALL,
            VMEM_TRACK_FILLS, //
        }, //
    }, //
};
use kernel::{
    fs::{
        file::flags,
        File,
        LocalFile, //
    },
    new_mutex,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        Arc,
        Mutex, //
    },
    types::ForeignOwnable, //
};

/// The operations of adopted descriptors.
static OPS: FileOpsTable<AdoptedFile> = FileOpsTable::new();

/// Mappings are counted up to this number: none can be made or removed during the count.
const MAX_MAPPINGS: usize = 4096;

/// The state of an adopted descriptor.
enum State {
    Plain,
    /// Tracking starts or ends.
    Changing,
    Tracked(Arc<Tracked>),
}

/// The private data of an adopted descriptor.
#[pin_data(PinnedDrop)]
pub(crate) struct AdoptedFile {
    memory: Arc<AdoptedMemory>,
    #[pin]
    state: Mutex<State>,
}

/// The region behind a descriptor of the running process. `EBADF` if there is no such descriptor,
/// `EINVAL` if it is not of a region, `EACCES` if it is not open for reading and writing.
fn region_of(fd: i32) -> Result<Arc<Handle>> {
    let handle = |region_file: &RegionFile, file: &LocalFile| {
        if file.flags() & flags::O_ACCMODE != flags::O_RDWR {
            return Err(EACCES);
        }
        Ok(region_file.handle().clone())
    };
    match file_ops::with_fd(&region_file::OPS, fd, handle) {
        Err(e) if e == EINVAL => file_ops::with_fd(&named_file::OPS, fd, |named_file, file| {
            handle(named_file.region_file(), file)
        })?,
        found => found?,
    }
}

/// ADOPT.
pub(crate) fn adopt(arg: UserArg) -> Result {
    let mut call: vmem_adopt = arg.read()?;
    if call.flags != 0 || call.reserved0 != 0 || call.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let memory = match region_of(call.fd) {
        Ok(handle) => AdoptedMemory::adopt_region(handle)?,
        Err(e) if e == EINVAL => {
            let shared = SharedMemory::adopt::<Tracking>(call.fd)?;
            if shared.size() > VMEM_MAX_SIZE {
                return Err(EFBIG);
            }
            match registry::find_memory(shared.inode_id()) {
                // The staging file of a region that has become plain memory.
                Ok(handle) => AdoptedMemory::adopt_region(Arc::new(handle, GFP_KERNEL)?)?,
                Err(_) => AdoptedMemory::adopt(shared, registry::next_id())?,
            }
        }
        Err(e) => return Err(e),
    };
    call.size = size(&memory);
    call.id = memory.id();
    let data = KBox::pin_init(
        pin_init!(AdoptedFile {
            memory,
            state <- new_mutex!(State::Plain),
        }),
        GFP_KERNEL,
    )?;
    let file = file_ops::anonymous(c"[vmem-adopted]", &OPS, data, flags::O_RDWR)?;
    let fd = reserve_fd()?;
    call.vmem_fd = fd.reserved_fd() as i32;
    arg.write(&call)?;
    fd.fd_install(file);
    Ok(())
}

/// The log of the memory of an adopted descriptor. `EBADF` if there is no such descriptor, `EINVAL`
/// if it is not an adopted descriptor, `ENODATA` if the memory is not tracked.
fn tracked(fd: i32) -> Result<Arc<Tracked>> {
    file_ops::with_fd(&OPS, fd, |adopted, _| adopted.tracked())?
}

/// Size in bytes, in whole pages.
fn size(memory: &AdoptedMemory) -> u64 {
    pages_for(memory.shared().size())
        .unwrap_or(0)
        .saturating_mul(PAGE_SIZE)
}

impl AdoptedFile {
    /// The log. `ENODATA` if the memory is not tracked.
    fn tracked(&self) -> Result<Arc<Tracked>> {
        match &*self.state.lock() {
            State::Tracked(tracked) => Ok(tracked.clone()),
            State::Plain | State::Changing => Err(errno::nodata()),
        }
    }

    /// TRACK.
    fn track(&self, arg: UserArg) -> Result {
        let mut call: vmem_track = arg.read()?;
        let known = VMEM_TRACK_FILLS | VMEM_TRACK_ALL;
        if call.flags & !known != 0 || call.reserved0 != 0 || call.reserved != [0; 2] {
            return Err(EINVAL);
        }
        let begins_with = match call.flags & VMEM_TRACK_ALL {
            0 => FirstPages::Held,
            _ => FirstPages::All,
        };
        let fills = call.flags & VMEM_TRACK_FILLS != 0;
        {
            let mut state = self.state.lock();
            if !matches!(*state, State::Plain) {
                return Err(EALREADY);
            }
            *state = State::Changing;
        }
        let started =
            Tracked::start(&self.memory, begins_with, fills).and_then(|(tracked, held)| {
                call.mappings = tracked.mappings(MAX_MAPPINGS);
                call.held = held;
                if let Err(e) = arg.write(&call) {
                    let _ = tracked.end();
                    return Err(e);
                }
                Ok(tracked)
            });
        let (state, result) = match started {
            Ok(tracked) => (State::Tracked(tracked), Ok(())),
            Err(e) => (State::Plain, Err(e)),
        };
        *self.state.lock() = state;
        result
    }

    /// UNTRACK.
    fn untrack(&self) -> Result {
        let tracked = {
            let mut state = self.state.lock();
            match core::mem::replace(&mut *state, State::Changing) {
                State::Tracked(tracked) => tracked,
                State::Plain => {
                    *state = State::Plain;
                    return Ok(());
                }
                State::Changing => return Err(EBUSY),
            }
        };
        let result = tracked.end();
        *self.state.lock() = State::Plain;
        result
    }

    /// GET_TRACKING.
    fn tracking_info(&self) -> vmem_tracking {
        let Ok(tracked) = self.tracked() else {
            return vmem_tracking {
                tracked: 0,
                mappings: 0,
                dirty: 0,
                faults: 0,
                written: 0,
                cleaned: 0,
                held: 0,
                reserved: 0,
            };
        };
        let tracking = tracked.tracking();
        vmem_tracking {
            tracked: 1,
            mappings: tracked.mappings(MAX_MAPPINGS),
            dirty: tracking.dirty(),
            faults: tracking.faults.get(),
            written: tracking.written.get(),
            cleaned: tracking.cleaned.get(),
            held: tracking.held.get(),
            reserved: 0,
        }
    }

    /// GET_INFO: the information about the region. Of other memory, all pages are present, and no
    /// thread waits.
    fn info(&self) -> vmem_info {
        if let Some(region) = self.memory.region() {
            return info::info(region);
        }
        let size = size(&self.memory);
        vmem_info {
            id: self.memory.id(),
            size,
            flags: 0,
            state: VMEM_STATE_PLAIN,
            present: size / PAGE_SIZE,
            unreadable: 0,
            requested: 0,
            queued: 0,
            waiters: 0,
            oldest_wait_ns: 0,
            faults: 0,
            requests: 0,
            sigbus: 0,
            mappings: 0,
            length: self.memory.shared().size(),
            backed: 0,
            reserved: 0,
        }
    }
}

#[pinned_drop]
impl PinnedDrop for AdoptedFile {
    fn drop(self: Pin<&mut Self>) {
        let state = core::mem::replace(&mut *self.state.lock(), State::Plain);
        if let State::Tracked(tracked) = state {
            if is_exiting() {
                // The task may be the daemon that other tasks wait for while they hold locks that
                // this takes, and no signal would end its wait any more.
                tracked.end_soon();
            } else {
                let _ = tracked.end();
            }
        }
    }
}

#[vtable]
impl FileOps for AdoptedFile {
    type Data = Pin<KBox<Self>>;

    fn ioctl(
        this: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        cmd: u32,
        arg: UserArg,
    ) -> Result {
        match cmd {
            VMEM_IOCTL_GET_FEATURES => info::get_features(arg),
            VMEM_IOCTL_GET_INFO => arg.write(&this.info()),
            VMEM_IOCTL_GET_PRESENT => {
                let nr = size(&this.memory) / PAGE_SIZE;
                info::get_present_of(this.memory.region().map(|region| &**region), nr, arg)
            }
            VMEM_IOCTL_TRACK => this.track(arg),
            VMEM_IOCTL_UNTRACK => this.untrack(),
            VMEM_IOCTL_DIRTY => dirty::dirty(&*this.tracked()?, arg),
            VMEM_IOCTL_GET_TRACKING => arg.write(&this.tracking_info()),
            VMEM_IOCTL_SNAPSHOT => snapshot::snapshot(arg, tracked),
            _ => Err(ENOTTY),
        }
    }

    fn size(this: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> u64 {
        size(&this.memory)
    }

    fn show_fdinfo(this: <Self::Data as ForeignOwnable>::Borrowed<'_>, m: &SeqFile) {
        let tracking_info = this.tracking_info();
        for (name, value) in [
            ("id", this.memory.id()),
            ("size", size(&this.memory)),
            ("tracked", tracking_info.tracked),
            ("mappings", tracking_info.mappings),
            ("dirty", tracking_info.dirty),
            ("faults", tracking_info.faults),
            ("written", tracking_info.written),
            ("cleaned", tracking_info.cleaned),
            ("held", tracking_info.held),
        ] {
            seq_print!(m, "vmem-{name}:\t{value}\n");
        }
    }
}
