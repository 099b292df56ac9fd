// SPDX-License-Identifier: GPL-2.0

//! `/dev/vmem/control`: creates regions, attaches daemons and adopts memory.

use super::{
    adopted,
    attachment::Attachment,
    info,
    name::Name,
    region::{
        Config,
        Region, //
    },
    region_file::RegionFile,
    registry::{
        self,
        Handle, //
    }, //
};
use crate::{
    sys::{
        file::reserve_fd,
        file_ops::{
            FileOps,
            FileOpsTable,
            OpenedInode, //
        },
        node::Access,
        uapi::{
            vmem_attach,
            vmem_create,
            UserArg,
            VMEM_CREATE_HUGE,
            VMEM_CREATE_POISON,
            VMEM_CREATE_SIGBUS,
            VMEM_IOCTL_ADOPT,
            VMEM_IOCTL_ATTACH,
            VMEM_IOCTL_CREATE_VMEM,
            VMEM_IOCTL_GET_FEATURES,
            VMEM_MAX_SIZE, //
        }, //
    }, //
};
use kernel::{
    fs::File,
    prelude::*,
    str::CString, //
};

/// The operations of control descriptors.
pub(crate) static OPS: FileOpsTable<Control> = FileOpsTable::new();

/// The private data of a control descriptor.
pub(crate) struct Control;

#[vtable]
impl FileOps for Control {
    type Data = ();

    fn open(_inode: &OpenedInode<'_>) -> Result {
        Ok(())
    }

    fn ioctl((): (), _file: &File, cmd: u32, arg: UserArg) -> Result {
        match cmd {
            VMEM_IOCTL_GET_FEATURES => info::get_features(arg),
            VMEM_IOCTL_CREATE_VMEM => create_vmem(arg),
            VMEM_IOCTL_ATTACH => attach(arg),
            VMEM_IOCTL_ADOPT => adopted::adopt(arg),
            _ => Err(ENOTTY),
        }
    }
}

/// Installs the two descriptors of a daemon. It reserves the numbers first, then copies the answer
/// to the caller, and installs the descriptors when nothing can fail any more.
fn install_fds(
    handle: Handle,
    daemon: Attachment,
    answer: impl FnOnce(&Region, i32, i32) -> Result,
) -> Result {
    let region = handle.region().clone();
    let region_file = RegionFile::for_daemon(handle, daemon)?;
    let (vmem_fd, shmem_fd) = (reserve_fd()?, reserve_fd()?);
    answer(
        &region,
        vmem_fd.reserved_fd() as i32,
        shmem_fd.reserved_fd() as i32,
    )?;
    vmem_fd.fd_install(region_file);
    shmem_fd.fd_install(region.staging().file().clone());
    Ok(())
}

/// CREATE_VMEM.
fn create_vmem(arg: UserArg) -> Result {
    let mut call: vmem_create = arg.read()?;
    let known = VMEM_CREATE_HUGE | VMEM_CREATE_SIGBUS | VMEM_CREATE_POISON;
    if call.flags & !known != 0 || call.reserved0 != 0 || call.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let name = Name::parse(&call.name)?;
    if call.mode & !0o777 != 0 || (name.is_none() && call.mode != 0) || call.size == 0 {
        return Err(EINVAL);
    }
    if call.size > VMEM_MAX_SIZE {
        return Err(EFBIG);
    }
    let label = match &name {
        Some(name) => CString::try_from_fmt(fmt!("vmem:{}", name.as_str()))?,
        None => CString::try_from_fmt(fmt!("vmem"))?,
    };
    let region = Region::new(Config {
        id: registry::next_id(),
        label,
        length: call.size,
        flags: call.flags,
        fault_timeout_ms: call.fault_timeout_ms,
    })?;
    let named = name
        .map(|name| Ok::<_, Error>((name, Access::of_caller(call.mode, call.uid, call.gid)?)))
        .transpose()?;
    // Attach the daemon before the region can be found.
    let daemon = Attachment::new(&region)?;
    let handle = registry::add(region, named)?;
    install_fds(handle, daemon, |region, vmem_fd, shmem_fd| {
        call.size = region.size();
        call.id = region.id();
        (call.vmem_fd, call.shmem_fd) = (vmem_fd, shmem_fd);
        arg.write(&call)
    })
}

/// ATTACH.
fn attach(arg: UserArg) -> Result {
    let mut call: vmem_attach = arg.read()?;
    if call.flags != 0 || call.reserved0 != 0 || call.reserved != [0; 2] {
        return Err(EINVAL);
    }
    let handle = match Name::parse(&call.name)? {
        Some(_) if call.id != 0 => return Err(EINVAL),
        Some(name) => registry::find_name(name)?,
        None => registry::find_id(call.id)?,
    };
    let daemon = Attachment::new(handle.region())?;
    install_fds(handle, daemon, |region, vmem_fd, shmem_fd| {
        call.size = region.size();
        (call.vmem_fd, call.shmem_fd) = (vmem_fd, shmem_fd);
        arg.write(&call)
    })
}
