// SPDX-License-Identifier: GPL-2.0-or-later
//! FUSE passthrough: the kernel reads, writes and maps the file of a region for a file of a FUSE file system, past its server.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fuser::{
    BackgroundSession, BackingId, Config, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, OpenFlags, ReplyAttr, ReplyEntry, ReplyOpen, Request, Session,
};
use rustix::process::Signal;
use vmem::PAGE_SIZE;
use vmem_functional_sys::AreaBuilder;

use super::one_file::{ONE, attr};
use super::served::{LENGTH, PAGES, Served};
use super::{Mount, region};
use crate::failure::{Outcome, ensure, equal, refused};
use crate::program::Program;
use crate::setting::{Setting, bytes_of, check_page, contents};

crate::tests![fuse_passthrough_to_a_file_waits];

const LIFE: Duration = Duration::from_secs(1);
const DIRECTORY: &str = "/mnt/fuse";
const FILE: &str = "/mnt/fuse/one";

/// A FUSE file system with one file. Its server has neither reads nor writes: the kernel has them from the backing file.
struct Passthrough {
    backing: PathBuf,
    length: u64,
    /// As long as the file system is there.
    id: Mutex<Option<BackingId>>,
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let passthrough = InitFlags::FUSE_PASSTHROUGH;
        config.add_capabilities(passthrough).map_err(|_| io::ErrorKind::Unsupported)?;
        // The file system "vmem" lies on no other.
        config.set_max_stack_depth(1).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "one" {
            true => reply.entry(&LIFE, &attr(ONE, self.length), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LIFE, &attr(number, self.length));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        if id.is_none() {
            let file = OpenOptions::new().read(true).write(true).open(&self.backing);
            match file.and_then(|file| reply.open_backing(file)) {
                Ok(new) => *id = Some(new),
                Err(error) => return reply.error(error.into()),
            }
        }
        match &*id {
            Some(id) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), id),
            None => reply.error(Errno::EIO),
        }
    }
}

/// Mounts it over this file.
fn passthrough(backing: &Path, length: usize) -> Outcome<BackgroundSession> {
    fs::create_dir_all(DIRECTORY)?;
    let file_system = Passthrough {
        backing: backing.to_owned(),
        length: length as u64,
        id: Mutex::default(),
    };
    Ok(Session::new(file_system, DIRECTORY, &Config::default())?.spawn()?)
}

fn fuse_passthrough_to_a_file_waits() -> Outcome {
    let mount = Mount::new("a")?;
    let served = Served::new(&mount, "one")?;
    let session = passthrough(Path::new(&served.path), LENGTH)?;
    let read = fs::read(FILE);
    session.umount_and_join()?;
    ensure!(read? == served.bytes, "other bytes than the daemon's");
    served.all_came("FUSE passthrough")?;

    let setting = Setting::create(region("two", PAGES))?;
    let session = passthrough(&mount.path("two"), PAGES * PAGE_SIZE)?;
    let outcome = waits(&setting);
    session.umount_and_join()?;
    outcome
}

/// Each way to the file waits for its page.
fn waits(setting: &Setting) -> Outcome {
    let file = OpenOptions::new().read(true).write(true).open(FILE)?;
    let read = |pgoff: u64| {
        Program::start(|| {
            let mut bytes = vec![0; PAGE_SIZE];
            file.read_exact_at(&mut bytes, pgoff * PAGE_SIZE as u64)?;
            ensure!(bytes == bytes_of(&contents(pgoff)), "other bytes than the daemon's");
            Ok(vec![])
        })
    };
    let (reader, killed) = (read(1)?, read(3)?);
    let writer = Program::start(|| {
        file.write_all_at(b"x", 5 * PAGE_SIZE as u64)?;
        Ok(vec![])
    })?;
    let mapper = Program::start(|| {
        check_page(&AreaBuilder::default().map(&file, 0, PAGES)?, 7, 7)?;
        Ok(vec![])
    })?;
    setting.wait_waiters(4)?;
    killed.signal(Signal::KILL)?;
    killed.join_killed(Signal::KILL)?;
    setting.fill([1, 5, 7])?;
    reader.join()?;
    writer.join()?;
    mapper.join()?;
    let mut expected = bytes_of(&contents(5));
    expected[0] = b'x';
    let mut found = vec![0; PAGE_SIZE];
    file.read_exact_at(&mut found, 5 * PAGE_SIZE as u64)?;
    ensure!(found == expected, "other bytes than were written");
    setting.region.mark_unreadable(&[crate::setting::pages(9, 1)]).complete()?;
    refused!(file.read_at(&mut [0], 9 * PAGE_SIZE as u64), IO);
    equal!(setting.region.info()?.present, 3);
    drop::<File>(file);
    Ok(())
}
