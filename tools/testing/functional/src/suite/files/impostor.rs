// SPDX-License-Identifier: GPL-2.0-or-later
//! A FUSE file system whose server answers the calls of the module, as if its files were a region.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::Duration;

use fuser::{
    Config, Errno, FileHandle, Filesystem, Generation, INodeNo, IoctlFlags, ReplyAttr, ReplyEntry, ReplyIoctl, ReplyStatfs,
    Request, Session,
};
use vmem::{Access, MapHandle, MemoryHandle, PAGE_SIZE, region_at, region_of};
use vmem_sys::calls;

use super::one_file::{ONE, attr};
use super::region;
use crate::failure::{Outcome, ensure, equal};
use crate::setting::Setting;

crate::tests![file_system_that_answers_as_the_module_has_no_regions];

const LIFE: Duration = Duration::from_secs(1);
const DIRECTORY: &str = "/mnt/fuse";
const FILE: &str = "/mnt/fuse/one";

/// The server. Its answer to each call begins with the number of a region.
struct Impostor {
    region: u64,
}

impl Filesystem for Impostor {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "one" {
            true => reply.entry(&LIFE, &attr(ONE, PAGE_SIZE as u64), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LIFE, &attr(number, PAGE_SIZE as u64));
    }

    /// Nobody learns of it that this is another file system.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.error(Errno::EIO);
    }

    fn ioctl(&self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _: u32, _: &[u8], out_size: u32, reply: ReplyIoctl) {
        let mut answer = self.region.to_le_bytes().to_vec();
        answer.resize(out_size as usize, 0);
        reply.ioctl(0, &answer);
    }
}

fn file_system_that_answers_as_the_module_has_no_regions() -> Outcome {
    let setting = Setting::create(region("one", 4))?;
    let id = setting.region.id();
    fs::create_dir_all(DIRECTORY)?;
    let session = Session::new(Impostor { region: id }, DIRECTORY, &Config::default())?.spawn()?;
    let outcome = is_no_region(id);
    session.umount_and_join()?;
    outcome
}

fn is_no_region(id: u64) -> Outcome {
    for path in [DIRECTORY, FILE] {
        let opened = File::open(path)?;
        equal!(calls::get_info(opened.as_fd())?.id, id);
        equal!(region_of(opened.as_fd()), None);
        equal!(region_at(path), None);
        ensure!(
            MapHandle::open_path(path, Access::ReadOnly).is_err(),
            "{path} is taken for a region"
        );
        ensure!(
            !matches!(MemoryHandle::open(path, None), Ok(MemoryHandle::Region(_))),
            "{path}"
        );
    }
    Ok(())
}
