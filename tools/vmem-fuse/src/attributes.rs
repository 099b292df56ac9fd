// SPDX-License-Identifier: GPL-2.0-or-later
//! What stat(2) says of an inode.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::process::{getegid, geteuid};

use crate::catalog::{FRESH, Listing};
use crate::tree::Node;

/// How long the kernel may use what it was told of a file: it does not change.
const FOR_LONG: Duration = Duration::from_secs(3600);

/// How long the kernel may use what it was told of a node.
pub(crate) fn lifetime(node: &Node) -> Duration {
    match node {
        Node::Root | Node::Guest(_) | Node::Checkpoint(_) => FRESH,
        Node::File { .. } => FOR_LONG,
    }
}

/// The attributes of an inode. Its owner is that of the process, and nobody else may do anything.
pub(crate) fn attributes(number: u64, node: &Node, listing: &Listing) -> FileAttr {
    let (kind, perm, size, stored, time) = match node {
        Node::Root => (FileType::Directory, 0o500, 0, 0, listing.changed),
        Node::Guest(guest) => {
            let known = listing.guests.get(guest).map_or(listing.changed, |guest| guest.changed);
            (FileType::Directory, 0o500, 0, 0, known)
        }
        Node::Checkpoint(checkpoint) => (FileType::Directory, 0o500, 0, 0, checkpoint.created()),
        Node::File {
            checkpoint,
            number,
            stored,
        } => {
            let size = checkpoint.files().get(*number).map_or(0, |file| file.bytes);
            (FileType::RegularFile, 0o400, size, *stored, checkpoint.created())
        }
    };
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: stored.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm,
        // Of a directory: it is not said how many others are in it.
        nlink: 1,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
