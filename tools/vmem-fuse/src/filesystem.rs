// SPDX-License-Identifier: GPL-2.0-or-later
//! The kernel's requests. Nothing here waits for the store: that is what the workers do.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, Request,
};

use crate::attributes::lifetime;
use crate::error::retry;
use crate::handles::Handles;
use crate::open_file::OpenFile;
use crate::view::{Item, View};
use crate::workers::{Reply, Workers};

/// Most bytes of a read (the kernel derives it from that of a write).
const MAX_READ: u32 = 1 << 20;

/// Inodes are not used again.
const GENERATION: Generation = Generation(0);

macro_rules! replies {
    ($($reply:ty),+) => {
        $(impl Reply for $reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

replies!(ReplyData, ReplyEntry, ReplyLseek, ReplyOpen);

/// What the kernel talks to.
pub(crate) struct FileSystem {
    pub(crate) view: Arc<View>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) files: Arc<Handles<OpenFile>>,
    pub(crate) directories: Arc<Handles<Vec<Item>>>,
}

impl fuser::Filesystem for FileSystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel may offer less of each, and it works, too.
        let _ = config.set_max_write(MAX_READ);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // No name here is other than UTF-8.
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(Errno::ENOENT);
        };
        let (view, of, key) = (self.view.clone(), self.view.clone(), name.clone());
        self.workers.answer(
            format!("look up {name:?}"),
            reply,
            move |deadline| retry(deadline, || view.lookup(parent.0, &name)),
            move |reply, node| {
                let number = of.tree.remember(parent.0, &key, node.clone());
                reply.entry(&lifetime(&node), &of.attributes(number, &node), GENERATION);
            },
        );
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.view.tree.forget(number.0, lookups);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.view.tree.get(number.0) {
            Some(node) => reply.attr(&lifetime(&node), &self.view.attributes(number.0, &node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let (view, files) = (self.view.clone(), self.files.clone());
        self.workers.answer(
            format!("open {}", self.view.label(number.0)),
            reply,
            move |deadline| retry(deadline, || view.open(number.0)),
            // What an inode contains does not change: the kernel may keep what it has read.
            move |reply, file| {
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(files.insert(file)), flags);
            },
        );
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        if size > MAX_READ {
            return reply.error(Errno::EINVAL);
        }
        self.workers.answer(
            format!("read {} bytes at {offset} of {}", size, file.label),
            reply,
            move |deadline| retry(deadline, || file.read(offset, size)),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn lseek(&self, _request: &Request, _number: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Some(file) = self.files.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        self.workers.answer(
            format!("look for holes after {offset} in {}", file.label),
            reply,
            move |deadline| retry(deadline, || file.seek(offset, whence)),
            |reply, found| reply.offset(found),
        );
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        // It may be the last of its checkpoint, whose lease ends then.
        if let Some(file) = self.files.remove(handle.0) {
            self.workers.later(move || drop(file));
        }
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (view, directories) = (self.view.clone(), self.directories.clone());
        self.workers.answer(
            format!("list {}", self.view.label(number.0)),
            reply,
            move |deadline| retry(deadline, || view.list(number.0)),
            // A reader sees the directory as it was when it was opened, in however many pieces it reads it.
            move |reply, items| reply.opened(FileHandle(directories.insert(items)), FopenFlags::empty()),
        );
    }

    fn readdir(&self, _request: &Request, _number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(items) = self.directories.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        for (next, item) in (1..).zip(items.iter()).skip(offset.try_into().unwrap_or(usize::MAX)) {
            let kind = match item.is_directory {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            if reply.add(INodeNo(item.number), next, kind, &item.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, _number: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.directories.remove(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        // How large it is cannot be said, and there is no room.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }
}
