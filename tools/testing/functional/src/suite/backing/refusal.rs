// SPDX-License-Identifier: GPL-2.0-or-later
//! What cannot be backing, and what the call refuses.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use vmem::{Backing, Error, PAGE_SIZE};
use vmem_functional_sys::ioctl;
use vmem_sys::{VMEM_BACKING_NONE, VMEM_SET_BACKING, vmem_backing};

use super::{all_of, source};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::setting::{Setting, pages};
use crate::suite::files::{Mount, region};
use crate::world::run_command;

crate::tests![
    files_that_cannot_be_read_by_the_module_are_refused,
    memory_of_regions_is_refused,
    files_that_programs_serve_are_refused,
    wrong_arguments_are_refused,
    number_of_pieces_is_bounded,
];

/// Gives all of the region this file.
fn set(setting: &Setting, file: &dyn AsFd) -> Result<(), Error> {
    let backing = Backing {
        file: file.as_fd(),
        offset: 0,
        around: 0,
    };
    setting.region.set_backing(setting.region.pages(), backing)
}

fn files_that_cannot_be_read_by_the_module_are_refused() -> Outcome {
    let setting = Setting::new(64)?;
    for path in ["/dev/zero", "/dev/shm", "/dev/vmem/control", "/proc/version"] {
        ensure!(
            matches!(set(&setting, &File::open(path)?), Err(Error::Invalid { .. })),
            "{path}"
        );
    }
    ensure!(matches!(set(&setting, &setting.map), Err(Error::Invalid { .. })));
    fs::write("/dev/shm/vmem-backing", [0; PAGE_SIZE])?;
    let write_only = OpenOptions::new().write(true).open("/dev/shm/vmem-backing")?;
    refused!(set(&setting, &write_only), ACCESS);
    fs::remove_file("/dev/shm/vmem-backing")?;
    let huge = memfd_create("huge", MemfdFlags::HUGETLB)?;
    refused!(set(&setting, &huge), OPNOTSUPP);
    Ok(())
}

fn memory_of_regions_is_refused() -> Outcome {
    let mount = Mount::new("a")?;
    let setting = Setting::create(region("one", 64))?;
    let other = Setting::new(64)?;
    refused!(set(&setting, &mount.open("one")?), LOOP);
    refused!(set(&setting, setting.region.staging()), LOOP);
    refused!(set(&setting, other.region.staging()), LOOP);
    // But a region that is plain memory is shared memory as any other.
    other.fill_all()?;
    other.region.make_vma_anonymous()?;
    set(&setting, other.region.staging())?;
    setting.checker(0..8)?.join()?;
    Ok(())
}

/// The checkout is on virtiofs here, which is FUSE. An overlay does not hide it.
fn files_that_programs_serve_are_refused() -> Outcome {
    let setting = Setting::new(64)?;
    let program = std::env::current_exe()?;
    refused!(set(&setting, &File::open(&program)?), OPNOTSUPP);
    run_command("modprobe", &["overlay"])?;
    let (lower, name) = (program.parent().ok_or("no directory")?, program.file_name().ok_or("no name")?);
    fs::create_dir_all("/mnt/refusal/empty")?;
    fs::create_dir_all("/mnt/refusal/over")?;
    let options = format!("lowerdir=/mnt/refusal/empty:{}", lower.display());
    run_command("mount", &["-t", "overlay", "-o", &options, "overlay", "/mnt/refusal/over"])?;
    let file = File::open(fs::canonicalize("/mnt/refusal/over")?.join(name));
    let outcome = file.map(|file| set(&setting, &file));
    run_command("umount", &["/mnt/refusal/over"])?;
    fs::remove_dir_all("/mnt/refusal")?;
    refused!(outcome?, OPNOTSUPP);
    Ok(())
}

fn wrong_arguments_are_refused() -> Outcome {
    let setting = Setting::new(64)?;
    let file = source(0, 64)?;
    let call = |change: &dyn Fn(&mut vmem_backing)| {
        let mut backing = vmem_backing {
            fd: file.as_raw_fd(),
            nr_pages: 64,
            ..Default::default()
        };
        change(&mut backing);
        ioctl(setting.region.as_fd(), VMEM_SET_BACKING, &mut backing)
    };
    call(&|_| ())?;
    refused!(call(&|backing| backing.fd = -1), BADF);
    refused!(call(&|backing| backing.flags = 2), INVAL);
    refused!(call(&|backing| backing.flags = VMEM_BACKING_NONE), INVAL);
    refused!(call(&|backing| backing.offset = 100), INVAL);
    refused!(call(&|backing| backing.offset = !0 << 12), INVAL);
    refused!(call(&|backing| backing.offset = 1 << 63), INVAL);
    refused!(call(&|backing| backing.around = 3), INVAL);
    refused!(call(&|backing| backing.around = 1024), INVAL);
    refused!(call(&|backing| backing.nr_pages = 0), INVAL);
    refused!(call(&|backing| backing.pgoff = 1), INVAL);
    refused!(call(&|backing| backing.pgoff = !0), INVAL);
    refused!(call(&|backing| backing.reserved0 = 1), INVAL);
    refused!(call(&|backing| backing.reserved[1] = 1), INVAL);
    for field in [1usize, 2] {
        let none = |backing: &mut vmem_backing| {
            (backing.fd, backing.flags) = (-1, VMEM_BACKING_NONE);
            match field {
                1 => backing.offset = 4096,
                _ => backing.around = 16,
            }
        };
        refused!(call(&none), INVAL);
    }
    // What was refused has changed nothing.
    setting.checker(0..64)?.join()?;
    Ok(())
}

fn number_of_pieces_is_bounded() -> Outcome {
    let many = Setting::new(4000)?;
    let file = source(0, 64)?;
    let mut result = Ok(());
    for pgoff in (0..4000).step_by(2) {
        result = many.region.set_backing(pages(pgoff, 1), all_of(&file, 1));
        if result.is_err() {
            equal!(pgoff, 2 * 1024);
            break;
        }
    }
    refused!(result, NOSPC);
    many.region.withdraw_backing(many.region.pages())?;
    Ok(())
}
