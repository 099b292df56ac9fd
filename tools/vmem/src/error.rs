// SPDX-License-Identifier: GPL-2.0-or-later
//! Errors of the library.

use std::os::fd::RawFd;
use std::path::PathBuf;

use vmem_sys::Errno;

use crate::PAGE_SIZE;

/// A call of the library failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device or node cannot be opened. `ENOENT` for the control device: the module is not loaded.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        source: Errno,
    },
    /// The file is not one of vmem, or the module does not have the call. A program that did not find a node may have created a plain file
    /// in its place.
    #[error("{what} is not a file of vmem")]
    NotVmem {
        /// The path, or the call that it did not know.
        what: String,
    },
    /// What is at the path of a region's node or file is something else: programs that open it would not get the region's memory.
    #[error(
        "{} is {found}, not the region of this name: programs that open it would get other memory; remove it",
        path.display()
    )]
    ForeignNode {
        /// Where the node or file should be.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
    },
    /// The page size of the module differs from that of this program.
    #[error("the module has pages of {0} bytes, this program has pages of {PAGE_SIZE} bytes")]
    PageSize(u32),
    /// A region cannot have such a name.
    #[error("{name:?} cannot be a name: 1 to 31 of A-Z a-z 0-9 . _ -, not beginning with a dot, not \"control\"")]
    Name {
        /// The name.
        name: String,
    },
    /// The duration is zero, or more milliseconds than 32 bits hold.
    #[error("a fault timeout is 1 ms to 49 days")]
    FaultTimeout,
    /// The contents to fill pages with are not whole pages.
    #[error("{len} bytes are not whole pages of {PAGE_SIZE}")]
    NotWholePages {
        /// Length of the contents in bytes.
        len: usize,
    },
    /// The runtime that the region was registered with has ended.
    #[cfg(feature = "tokio")]
    #[error("the tokio runtime is shutting down")]
    RuntimeGone,
    /// A call on a mapping failed.
    #[error(transparent)]
    Mapping(#[from] vmem_mapping::Error),

    /// There is no region of that name or number.
    #[error("there is no such region, or it has ended")]
    NoSuchRegion,
    /// Another daemon is attached to the region.
    #[error("another daemon serves the region")]
    DaemonAttached,
    /// Another region has the name.
    #[error("another region has this name")]
    NameTaken,
    /// The size is over the module's limit ([`Features::max_size`](crate::Features::max_size)).
    #[error("the memory is larger than the module supports")]
    TooLarge,
    /// The module has no more nodes.
    #[error("there are too many regions with names")]
    TooManyRegions,
    /// Pages are absent or unreadable: the region cannot become plain memory.
    #[error("pages of the region are absent or unreadable")]
    PagesAbsent,
    /// The region is plain memory: no page of it will ever be wanted again.
    #[error("the region has become plain memory")]
    Plain,
    /// The file to adopt is not shared memory, or is empty.
    #[error("the file is not shared memory, or is empty: a memfd or a file in a tmpfs (/dev/shm) can be adopted")]
    NotSharedMemory,
    /// The descriptor of the memory that was to be adopted is not open for reading and writing.
    #[error("the memory's descriptor is not open for reading and writing: take the one that the program writes through")]
    NotWritable,
    /// The memory that was to be adopted is of a kind that cannot be tracked.
    #[error(
        "hugetlbfs and shared memory of System V cannot be adopted: have the program use a memfd without huge pages, or /dev/shm; nor can \
         the staging file of a region that is not plain memory: adopt the region by its node or by a descriptor of it"
    )]
    UnsupportedMemory,
    /// The memory is adopted already, or its file is open for writing more than once.
    #[error(
        "the memory is adopted already ('vmemctl region list' shows by whom), or its file is open for writing a second time, whose writes \
         could not be seen: adopt it by the descriptor that its program has (pidfd_getfd, SCM_RIGHTS), and not by another open of the file"
    )]
    MemoryInUse,
    /// The memory is tracked.
    #[error("the memory is tracked already, by another holder of the descriptor")]
    AlreadyTracked,
    /// A mapping of the memory cannot be tracked.
    #[error(
        "a mapping of the memory belongs to userfaultfd or to another driver, or its file has been opened for writing a second time since \
         it was adopted: end that, and try again"
    )]
    MappingsInUse,
    /// Other calls on descriptors of the memory never paused.
    #[error("descriptors of the memory are written to or mapped, or its log is read, all the time: try again")]
    NeverAtRest,
    /// The memory is not tracked: there is no log.
    #[error("the memory is not tracked: another holder of the descriptor has ended the log")]
    NotTracked,
    /// The memory has a snapshot.
    #[error("the memory has a snapshot already, and can have one at a time: a mapping of it counts, too")]
    HasSnapshot,
    /// The snapshot has failed: nothing of it is there any more.
    #[error(
        "the snapshot has failed: there was no memory for a copy of a page, copies have reached the limit, or the log of a memory has ended"
    )]
    SnapshotFailed,
    /// The page of a snapshot is done, or has been read and can be read once; or it was absent, and a program has discarded it before it
    /// came.
    #[error(
        "what the page of the snapshot held is not there any more: it is done, or was absent, and a program has discarded it before it came"
    )]
    PageDone,
    /// The page of a snapshot is absent, and cannot be had.
    #[error(
        "a page of the snapshot is absent and cannot be had: the daemon's source cannot give it, it has not come within the region's time \
         limit, or no daemon is attached"
    )]
    PageUnreadable,
    /// The memory is a file, and the process that has it open is not named.
    #[error("cannot tell which process has {} open", path.display())]
    ProcessUnknown {
        /// The path.
        path: PathBuf,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The process ID.
        pid: i32,
    },
    /// The caller may not inspect the process.
    #[error("cannot inspect process {pid}: root or CAP_SYS_PTRACE is needed")]
    ProcessDenied {
        /// The process ID.
        pid: i32,
        /// The error of the system call.
        source: Errno,
    },
    /// The process has no such shared memory open.
    #[error("process {pid} has no shared memory {path:?} open; it has {}", paths(found))]
    NoSuchMemory {
        /// The process ID.
        pid: i32,
        /// The path that was looked for.
        path: PathBuf,
        /// The shared memory that it has open.
        found: Vec<PathBuf>,
    },
    /// The process has several files of shared memory with such a path.
    #[error(
        "process {pid} has several files of shared memory with {path:?}: {}; name one of these",
        descriptors(*pid, found)
    )]
    AmbiguousMemory {
        /// The process ID.
        pid: i32,
        /// The path that was looked for.
        path: PathBuf,
        /// A descriptor of each of the files.
        found: Vec<OpenMemory>,
    },
    /// The process maps the memory, and has no descriptor of it.
    #[error(
        "process {pid} maps {path:?} and has closed its descriptor: memory can be adopted only by a descriptor that some process still has, \
         a region also by its node"
    )]
    MemoryNotOpen {
        /// The process ID.
        pid: i32,
        /// The path that was looked for.
        path: PathBuf,
    },
    /// The descriptor maps the region and cannot serve it.
    #[error("{call}: this descriptor can map the region, but not serve it")]
    MapOnly {
        /// The call.
        call: &'static str,
    },
    /// The arguments are not right, for example a range that is not inside the region.
    #[error("{call}: invalid argument")]
    Invalid {
        /// The call.
        call: &'static str,
    },
    /// The process or the system has no descriptors left.
    #[error("{call}: too many open files")]
    NoDescriptors {
        /// The call.
        call: &'static str,
    },
    /// There is no memory.
    #[error("{call}: out of memory")]
    NoMemory {
        /// The call.
        call: &'static str,
    },
    /// A signal came first. The call can be made again.
    #[error("{call}: interrupted by a signal")]
    Interrupted {
        /// The call.
        call: &'static str,
    },
    /// The call would have to wait, and the descriptor is `O_NONBLOCK`.
    #[error("{call}: would have to wait")]
    WouldBlock {
        /// The call.
        call: &'static str,
    },
    /// Another error.
    #[error("{call}")]
    Other {
        /// The call.
        call: &'static str,
        /// The error of the system call.
        source: Errno,
    },
}

/// The calls, as errors name them.
pub(crate) mod call {
    pub(crate) const GET_FEATURES: &str = "GET_FEATURES";
    pub(crate) const CREATE_VMEM: &str = "CREATE_VMEM";
    pub(crate) const ATTACH: &str = "ATTACH";
    pub(crate) const RESUME: &str = "RESUME";
    pub(crate) const WAIT_READY: &str = "WAIT_READY";
    pub(crate) const READY: &str = "READY";
    pub(crate) const GET_PAGE_REQUEST: &str = "GET_PAGE_REQUEST";
    pub(crate) const MARK_PAGE_CACHED: &str = "MARK_PAGE_CACHED";
    pub(crate) const SET_BACKING: &str = "SET_BACKING";
    pub(crate) const MAKE_PAGES_PRESENT: &str = "MAKE_PAGES_PRESENT";
    pub(crate) const MAKE_VMA_ANONYMOUS: &str = "MAKE_VMA_ANONYMOUS";
    pub(crate) const FILL_PAGES: &str = "FILL_PAGES";
    pub(crate) const STAGE_PAGES: &str = "FILL_PAGES (stage)";
    pub(crate) const GET_PRESENT: &str = "GET_PRESENT";
    pub(crate) const GET_INFO: &str = "GET_INFO";
    pub(crate) const GET_MAP_FD: &str = "GET_MAP_FD";
    pub(crate) const ADOPT: &str = "ADOPT";
    pub(crate) const TRACK: &str = "TRACK";
    pub(crate) const UNTRACK: &str = "UNTRACK";
    pub(crate) const DIRTY: &str = "DIRTY";
    pub(crate) const GET_TRACKING: &str = "GET_TRACKING";
    pub(crate) const SNAPSHOT: &str = "SNAPSHOT";
    pub(crate) const SNAPSHOT_DONE: &str = "SNAPSHOT_DONE";
    pub(crate) const GET_SNAPSHOT: &str = "GET_SNAPSHOT";
    pub(crate) const READ: &str = "read";
    pub(crate) const PREAD: &str = "pread";
    pub(crate) const SEEK: &str = "lseek";
    pub(crate) const FCNTL: &str = "fcntl";
    pub(crate) const POLL: &str = "poll";
}

/// A descriptor of shared memory that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenMemory {
    /// The number of the descriptor in its process.
    pub fd: RawFd,
    /// The path as `/proc/PID/fd` shows it.
    pub path: PathBuf,
    /// Size of the memory in bytes.
    pub size: u64,
}

/// Paths in a sentence.
fn paths(paths: &[PathBuf]) -> String {
    match paths {
        [] => "none".to_owned(),
        paths => paths.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// Descriptors of files in a sentence.
fn descriptors(pid: i32, files: &[OpenMemory]) -> String {
    let one = |file: &OpenMemory| format!("/proc/{pid}/fd/{} ({:?}, {} bytes)", file.fd, file.path, file.size);
    files.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// What `errno` means as the answer to `call`.
    pub(crate) fn from_errno(call: &'static str, errno: Errno) -> Self {
        match (call, errno) {
            (call::ATTACH, Errno::NOENT) => Self::NoSuchRegion,
            (call::ATTACH, Errno::BUSY) => Self::DaemonAttached,
            (call::CREATE_VMEM, Errno::EXIST) => Self::NameTaken,
            (call::CREATE_VMEM, Errno::FBIG) => Self::TooLarge,
            (call::CREATE_VMEM, Errno::NOSPC) => Self::TooManyRegions,
            (call::MAKE_VMA_ANONYMOUS, Errno::BUSY) => Self::PagesAbsent,
            (call::GET_PAGE_REQUEST | call::SET_BACKING, Errno::NODATA) => Self::Plain,
            (call::ADOPT, Errno::FBIG) => Self::TooLarge,
            (call::ADOPT, Errno::INVAL) => Self::NotSharedMemory,
            (call::ADOPT, Errno::ACCESS) => Self::NotWritable,
            (call::ADOPT, Errno::OPNOTSUPP) => Self::UnsupportedMemory,
            (call::ADOPT, Errno::BUSY) => Self::MemoryInUse,
            (call::TRACK, Errno::ALREADY) => Self::AlreadyTracked,
            (call::TRACK, Errno::BUSY) => Self::MappingsInUse,
            (call::TRACK, Errno::AGAIN) => Self::NeverAtRest,
            (call::DIRTY | call::SNAPSHOT, Errno::NODATA) => Self::NotTracked,
            (call::SNAPSHOT, Errno::BUSY) => Self::HasSnapshot,
            (call::SNAPSHOT, Errno::AGAIN) => Self::NeverAtRest,
            (call::READ, Errno::NODATA) => Self::PageDone,
            (call::READ, Errno::IO) => Self::PageUnreadable,
            (_, Errno::STALE) => Self::SnapshotFailed,
            (_, Errno::NOTTY) => Self::NotVmem {
                what: format!("a descriptor without {call}"),
            },
            (_, Errno::PERM) => Self::MapOnly { call },
            (_, Errno::INVAL) => Self::Invalid { call },
            (_, Errno::MFILE | Errno::NFILE) => Self::NoDescriptors { call },
            (_, Errno::NOMEM) => Self::NoMemory { call },
            (_, Errno::INTR) => Self::Interrupted { call },
            (_, Errno::AGAIN) => Self::WouldBlock { call },
            (_, source) => Self::Other { call, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_maps_to_the_error_of_its_call() {
        assert!(matches!(Error::from_errno(call::ATTACH, Errno::BUSY), Error::DaemonAttached));
        assert!(matches!(
            Error::from_errno(call::MAKE_VMA_ANONYMOUS, Errno::BUSY),
            Error::PagesAbsent
        ));
        assert!(matches!(Error::from_errno(call::CREATE_VMEM, Errno::EXIST), Error::NameTaken));
        assert!(matches!(Error::from_errno(call::ADOPT, Errno::BUSY), Error::MemoryInUse));
        assert!(matches!(Error::from_errno(call::TRACK, Errno::BUSY), Error::MappingsInUse));
        assert!(matches!(Error::from_errno(call::TRACK, Errno::AGAIN), Error::NeverAtRest));
        assert!(matches!(Error::from_errno(call::DIRTY, Errno::NODATA), Error::NotTracked));
        assert!(matches!(Error::from_errno(call::SNAPSHOT, Errno::NODATA), Error::NotTracked));
        assert!(matches!(Error::from_errno(call::SNAPSHOT, Errno::BUSY), Error::HasSnapshot));
        assert!(matches!(Error::from_errno(call::SNAPSHOT, Errno::AGAIN), Error::NeverAtRest));
        assert!(matches!(Error::from_errno(call::READ, Errno::NODATA), Error::PageDone));
        assert!(matches!(Error::from_errno(call::READ, Errno::IO), Error::PageUnreadable));
        for call in [call::READ, call::SEEK, call::DIRTY, call::SNAPSHOT_DONE] {
            assert!(matches!(Error::from_errno(call, Errno::STALE), Error::SnapshotFailed));
        }
        assert!(matches!(
            Error::from_errno(call::READY, Errno::EXIST),
            Error::Other {
                call: "READY",
                source: Errno::EXIST
            }
        ));
    }

    #[test]
    fn message_names_the_call_or_the_object() {
        assert_eq!(
            Error::from_errno(call::FILL_PAGES, Errno::INVAL).to_string(),
            "FILL_PAGES: invalid argument"
        );
        assert_eq!(
            Error::NotWholePages { len: 5 }.to_string(),
            "5 bytes are not whole pages of 4096"
        );
        let missing = |found: &[&str]| Error::NoSuchMemory {
            pid: 812,
            path: "ram".into(),
            found: found.iter().map(PathBuf::from).collect(),
        };
        assert_eq!(
            missing(&["/dev/shm/a", "/memfd:b (deleted)"]).to_string(),
            "process 812 has no shared memory \"ram\" open; it has \"/dev/shm/a\", \"/memfd:b (deleted)\""
        );
        assert_eq!(
            missing(&[]).to_string(),
            "process 812 has no shared memory \"ram\" open; it has none"
        );
    }
}
