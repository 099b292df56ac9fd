// SPDX-License-Identifier: GPL-2.0-or-later
//! FUSE file systems of one file.

use std::time::UNIX_EPOCH;

use fuser::{FileAttr, FileType, INodeNo};
use vmem::PAGE_SIZE;

/// The file. Every other number is the directory's.
pub(super) const ONE: INodeNo = INodeNo(2);

/// The attributes of the file, which has so many bytes, or of the directory.
pub(super) fn attr(number: INodeNo, length: u64) -> FileAttr {
    let is_file = number == ONE;
    FileAttr {
        ino: number,
        size: if is_file { length } else { 0 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE_SIZE as u32,
        flags: 0,
    }
}
