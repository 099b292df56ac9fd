// SPDX-License-Identifier: GPL-2.0-or-later
//! The origin of a region: the checkpoint from which its vmemd fills it, where its absent pages are.
//!
//! vmemd keeps it in a sealed memfd for as long as it lives. The kernel says which process serves a region, so that only that process is
//! believed, and only as long as it serves the region. Nobody can say it for another process. The memfd belongs to the user who has started
//! vmemd: one that fills regions from somewhere else, and was taken over from there, is that user no more, and can make none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, read_dir, read_link};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use vmem::DescriptorInfo;
use vmem_store::{CheckpointName, WriterId};

/// The name of the memfd, and what `/proc/PID/fd` shows of it.
const NAME: &str = "vmem-origin";
const LINK: &str = "/memfd:vmem-origin (deleted)";

/// The descriptor by which a region is served.
const SERVER: &str = "anon_inode:[vmem]";

/// The most bytes that are read. The regions of one process need less.
const LIMIT: u64 = 1 << 20;

/// The checkpoint from which one vmemd fills regions.
///
/// It is proof of where their absent pages are: see `Documentation/checkpoint.rst`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The store.
    pub store: WriterId,
    /// The checkpoint.
    pub checkpoint: CheckpointName,
    /// The memory of the checkpoint that each region has, by the region's number.
    pub memories: BTreeMap<u64, String>,
}

impl Origin {
    /// Of each of these regions, what the process says that serves it. `None` if no process is seen that serves it, if one of those that do
    /// says nothing, or if they disagree. Only root sees all processes.
    #[must_use]
    pub fn of_regions(ids: &[u64]) -> Vec<Option<Self>> {
        let before = servers(ids);
        let processes: BTreeSet<i32> = before.values().flatten().copied().collect();
        let said: BTreeMap<i32, Option<Self>> = processes.into_iter().map(|pid| (pid, of_process(pid))).collect();
        // Another process can have got the number of one that has ended.
        let after = servers(ids);
        let of = |id: &u64| {
            let pids = before.get(id).filter(|pids| after.get(id) == Some(*pids))?;
            let mut origins = pids.iter().map(|pid| said.get(pid)?.as_ref());
            let origin = origins.next()??;
            (origins.all(|other| other == Some(origin)) && origin.memories.contains_key(id)).then(|| origin.clone())
        };
        ids.iter().map(of).collect()
    }
}

/// The memfd of an origin that is not known yet.
#[derive(Debug)]
pub struct OriginFile(File);

impl OriginFile {
    /// Makes it, before privileges are given up.
    ///
    /// # Errors
    ///
    /// Those of memfd_create(2).
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        Ok(Self(File::from(memfd_create(NAME, flags)?)))
    }

    /// Makes the origin known as long as the file is open. Nobody can change it any more.
    ///
    /// # Errors
    ///
    /// Those of writing to the file.
    pub fn publish(mut self, origin: &Origin) -> io::Result<File> {
        self.0.write_all(&serde_json::to_vec(origin)?)?;
        fcntl_add_seals(&self.0, sealed() | SealFlags::SEAL)?;
        Ok(self.0)
    }
}

/// What nobody can do to the contents any more.
fn sealed() -> SealFlags {
    SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK
}

/// The processes that serve these regions.
fn servers(ids: &[u64]) -> BTreeMap<u64, BTreeSet<i32>> {
    let mut servers: BTreeMap<u64, BTreeSet<i32>> = BTreeMap::new();
    for descriptor in vmem::descriptors() {
        if let Some(id) = served(&descriptor).filter(|id| ids.contains(id)) {
            servers.entry(id).or_default().insert(descriptor.pid);
        }
    }
    servers
}

/// The region that is served by this descriptor. Others of a region, which map it or log its writes, show that somebody serves it, too.
fn served(descriptor: &vmem::Descriptor) -> Option<u64> {
    match &descriptor.memory {
        DescriptorInfo::Region(info) if descriptor.path == Path::new(SERVER) && info.attached => Some(info.id),
        _ => None,
    }
}

/// What this process says of the regions that it serves.
fn of_process(pid: i32) -> Option<Origin> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let paths = read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let mut found = paths.filter(|path| read_link(path).is_ok_and(|link| link == Path::new(LINK)));
    let (path, other) = (found.next()?, found.next());
    if other.is_some() {
        return None;
    }
    // It may be something else by now, of which an open or a read could wait.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .ok()?;
    read(&file)
}

/// Only memory has seals. It counts if it is of this user.
fn read(file: &File) -> Option<Origin> {
    is_of(file, geteuid().as_raw()).then_some(())?;
    if !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(sealed())) {
        return None;
    }
    let mut text = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= LIMIT).then_some(())?;
    serde_json::from_slice(&text).ok()
}

fn is_of(file: &File, user: u32) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.uid() == user)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn origin() -> Origin {
        Origin {
            store: "000102030405060708090a0b0c0d0e0f".parse().expect("an ID"),
            checkpoint: CheckpointName {
                guest: "guest0".parse().expect("a name"),
                sequence: 7,
            },
            memories: BTreeMap::from([(3, "ram".to_owned()), (9, "vga".to_owned())]),
        }
    }

    fn published() -> File {
        let file = OriginFile::new().expect("memory");
        file.publish(&origin()).expect("memory")
    }

    fn reopened(file: &File) -> File {
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("it is open")
    }

    #[test]
    fn origin_is_read_as_it_was_published_and_cannot_be_changed() {
        let mut file = published();
        assert_eq!(read(&reopened(&file)), Some(origin()));
        assert!(file.write_all(b" ").is_err() && file.set_len(1).is_err());
        let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("it is open");
        assert_eq!(link, Path::new(LINK));
        assert_eq!(of_process(std::process::id() as i32), Some(origin()));
        // Which one of two counts is not known.
        let other = published();
        assert_eq!(of_process(std::process::id() as i32), None);
        drop(other);
    }

    #[test]
    fn memory_that_can_be_changed_and_text_that_is_no_origin_are_no_origin() {
        let mut plain = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory"));
        plain
            .write_all(&serde_json::to_vec(&origin()).expect("text"))
            .expect("memory");
        assert_eq!(read(&reopened(&plain)), None);
        fcntl_add_seals(&plain, SealFlags::GROW | SealFlags::SHRINK).expect("it can be sealed");
        assert_eq!(read(&reopened(&plain)), None);
        let mut strange = File::from(memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory"));
        strange.write_all(b"{\"store\":1}").expect("memory");
        fcntl_add_seals(&strange, sealed()).expect("it can be sealed");
        assert_eq!(read(&reopened(&strange)), None);
    }

    #[test]
    fn memory_of_another_user_is_no_proof() {
        let file = published();
        let user = file.metadata().expect("memory").uid();
        assert!(is_of(&file, user) && !is_of(&file, user + 1));
    }

    #[test]
    fn only_the_descriptor_that_serves_a_region_says_who_does() {
        let descriptor = |path: &str, state: u32| {
            let text = format!("vmem-id:\t3\nvmem-size:\t8192\nvmem-state:\t{state}\n");
            vmem::Descriptor {
                pid: 7,
                command: "vmemd".to_owned(),
                fd: 5,
                path: path.into(),
                memory: DescriptorInfo::parse(&text).expect("a region"),
            }
        };
        assert_eq!(served(&descriptor("anon_inode:[vmem]", 3)), Some(3));
        for (path, state) in [
            ("anon_inode:[vmem]", 0),
            ("anon_inode:[vmem-map]", 3),
            ("/dev/vmem/guest0", 3),
        ] {
            assert_eq!(served(&descriptor(path, state)), None, "{path}");
        }
    }

    #[test]
    fn process_that_does_not_serve_a_region_says_nothing_of_it() {
        let _published = published();
        assert_eq!(Origin::of_regions(&[3, 4]), [None, None]);
    }
}
