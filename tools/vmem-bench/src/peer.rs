// SPDX-License-Identifier: GPL-2.0-or-later
//! What is compared: ways to bring the pages of a program's memory.

mod minor;
mod missing;
mod region;
mod shared;
mod shmem;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::MemfdFlags;
use vmem::PAGE_SIZE;
use vmem_bench_sys::{Memory, Sharing};

use crate::contents::{Contents, verify};
use crate::failure::{During, Failure, Outcome};

pub(crate) use minor::Minor;
pub(crate) use region::RegionPeer;
pub(crate) use shared::SharedFile;
pub(crate) use shmem::Shmem;

/// How many pages a fault brings where it brings more than one: a block, whose first page is a multiple of this.
pub(crate) const BLOCK: u64 = 16;

/// Memory, and a daemon's way to bring its pages.
pub(crate) trait Peer: Send + Sync {
    /// The memory that the program touches.
    fn memory(&self) -> &Memory;

    /// Where in the memory a page is, in pages.
    fn place(&self, page: u64) -> u64 {
        page
    }

    /// Waits until pages are wanted, and puts them into `pages`, instead of what is there.
    fn take(&self, pages: &mut Vec<u64>) -> Outcome;

    /// Brings these pages, in any order and perhaps repeated; one may be there already.
    fn bring(&self, pages: &[u64], contents: &Contents) -> Outcome;

    /// Brings these absent pages, for which nobody waits before [`Peer::finish`].
    fn bring_unasked(&self, pages: &[u64], contents: &Contents) -> Outcome {
        self.bring(pages, contents)
    }

    /// Brings `pages` absent pages from `first` on, for which nobody waits before [`Peer::finish`].
    fn bring_run(&self, first: u64, pages: usize, contents: &Contents) -> Outcome;

    /// Brings `pages` absent pages from `first` on; one of them is waited for.
    fn bring_block(&self, first: u64, pages: usize, contents: &Contents) -> Outcome {
        self.bring_run(first, pages, contents)
    }

    /// Called once, when all pages were brought in the background.
    fn finish(&self) -> Outcome {
        Ok(())
    }

    /// Requests that the daemon got so far, if the peer counts them itself.
    fn requests(&self) -> Option<u64> {
        None
    }
}

/// A way to bring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Shmem with the pages in the file: a touch is a minor fault, without a daemon.
    Floor,
    /// Shmem: a touch allocates a page of zeros, without a daemon.
    Allocate,
    /// vmem, `FILL_PAGES`.
    Vmem,
    /// The same; what is brought in the background goes into the page tables (`MAKE_PAGES_PRESENT`).
    VmemMapped,
    /// vmem, `FILL_PAGES`, a region of huge pages.
    VmemHuge,
    /// vmem, `SET_BACKING`: a touch reads its page from a file in memory, without a daemon.
    Backed,
    /// The same, and the [`BLOCK`] pages around it.
    BackedAround,
    /// userfaultfd on private anonymous memory, `UFFDIO_COPY`.
    Missing,
    /// userfaultfd on a shmem file: `pwrite` into the file, then `UFFDIO_CONTINUE`.
    Minor,
    /// The same, with a store through the daemon's own mapping instead of `pwrite`.
    MinorStore,
    /// [`Kind::Minor`] where shmem makes huge pages.
    MinorHuge,
}

impl Kind {
    /// How the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "shmem, minor fault",
            Self::Allocate => "shmem, zero page",
            Self::Vmem => VMEM,
            Self::VmemMapped => VMEM_MAPPED,
            Self::VmemHuge => VMEM_HUGE,
            Self::Backed | Self::BackedAround => VMEM_BACKED,
            Self::Missing => MISSING,
            Self::Minor => MINOR,
            Self::MinorStore => MINOR_STORE,
            Self::MinorHuge => MINOR_HUGE,
        }
    }

    /// Whether a daemon brings its pages.
    pub(crate) fn is_served(self) -> bool {
        !matches!(self, Self::Floor | Self::Allocate | Self::Backed | Self::BackedAround)
    }

    /// Turns on what it needs of the system, as long as the value lives.
    pub(crate) fn prepare(self) -> Outcome<Option<HugePages>> {
        (self == Self::MinorHuge).then(HugePages::new).transpose()
    }

    /// Makes memory of `pages` pages, absent but for [`Kind::Floor`].
    pub(crate) fn make(self, pages: u64, contents: &Contents) -> Outcome<Arc<dyn Peer>> {
        Ok(match self {
            Self::Floor => Arc::new(Shmem::full(pages, contents)?),
            Self::Allocate => Arc::new(Shmem::empty(pages)?),
            Self::Vmem => Arc::new(RegionPeer::new(pages)?),
            Self::VmemMapped => Arc::new(RegionPeer::mapped(pages)?),
            Self::VmemHuge => Arc::new(RegionPeer::huge(pages)?),
            Self::Backed => Arc::new(RegionPeer::backed(pages, contents, 1)?),
            Self::BackedAround => Arc::new(RegionPeer::backed(pages, contents, BLOCK as u32)?),
            Self::Missing => Arc::new(missing::Missing::new(pages)?),
            Self::Minor | Self::MinorHuge => Arc::new(Minor::new(pages, minor::Write::Call)?),
            Self::MinorStore => Arc::new(Minor::new(pages, minor::Write::Store)?),
        })
    }
}

/// That new shmem files get huge pages, as the administrator may wish it; as it was before when dropped.
pub(crate) struct HugePages(String);

impl HugePages {
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

    fn new() -> Outcome<Self> {
        let choices = std::fs::read_to_string(Self::SWITCH).during("read shmem_enabled")?;
        let chosen = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        let (chosen, _) = chosen.ok_or(Failure::Wrong(format!("shmem_enabled is {choices:?}")))?;
        std::fs::write(Self::SWITCH, "always").during("write shmem_enabled")?;
        Ok(Self(chosen.to_owned()))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // It worked a moment ago.
        let _ = std::fs::write(Self::SWITCH, &self.0);
    }
}

pub(crate) const VMEM: &str = "vmem";
pub(crate) const VMEM_HUGE: &str = "vmem, huge";
pub(crate) const VMEM_BACKED: &str = "vmem, backing";
pub(crate) const MINOR_HUGE: &str = "uffd MINOR, huge";
pub(crate) const VMEM_MAPPED: &str = "vmem, mapped";
pub(crate) const MISSING: &str = "uffd MISSING";
pub(crate) const MINOR: &str = "uffd MINOR";
pub(crate) const MINOR_STORE: &str = "uffd MINOR, stores";

/// Which pages a thread of the daemon has taken on itself. With several threads, or several faults on a page, userfaultfd tells of a page
/// more than once; to bring it once more would be lost time, and could undo what the program wrote. Who is told of a page that another
/// thread is bringing has nothing to do: that thread wakes all who wait.
struct Claims(Vec<AtomicBool>);

impl Claims {
    fn new(pages: u64) -> Self {
        Self((0..pages).map(|_| AtomicBool::new(false)).collect())
    }

    /// Whether the caller is the first one.
    fn claim(&self, page: u64) -> bool {
        !self.0[page as usize].swap(true, Ordering::AcqRel)
    }
}

/// A shmem file of so many pages.
pub(crate) fn shmem_file(pages: u64) -> Outcome<File> {
    let file = File::from(rustix::fs::memfd_create("bench", MemfdFlags::CLOEXEC).during("memfd_create")?);
    file.set_len(pages * PAGE_SIZE as u64).during("ftruncate of a memfd")?;
    Ok(file)
}

pub(crate) fn map(file: impl AsFd, pages: u64) -> Outcome<Memory> {
    Memory::of_file(file, pages as usize, Sharing::Shared).during("mmap")
}

/// Touches a page, and returns its first word.
pub(crate) fn touch(peer: &dyn Peer, page: u64) -> u64 {
    peer.memory().read(peer.place(page) as usize)
}

/// Threads that serve a peer until they are stopped, each by a page behind those that are measured.
pub(crate) struct Daemon {
    kind: Kind,
    peer: Arc<dyn Peer>,
    last: Vec<u64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Daemon {
    /// The most threads, which is how many pages beyond those that are measured the memory needs.
    pub(crate) const THREADS: u64 = 8;

    /// Starts so many threads, which bring every page that is wanted; those from `end` on stop one thread each.
    ///
    /// A thread that fails ends the process: who waits for a page would wait for ever.
    pub(crate) fn start(kind: Kind, peer: &Arc<dyn Peer>, contents: &Arc<Contents>, end: u64, threads: u64) -> Self {
        Self::start_with_blocks(kind, peer, contents, end, threads, 1)
    }

    /// The same, but brings the block of so many pages that a page is in. Only one page of each may be waited for.
    pub(crate) fn start_with_blocks(
        kind: Kind,
        peer: &Arc<dyn Peer>,
        contents: &Arc<Contents>,
        end: u64,
        threads: u64,
        block: u64,
    ) -> Self {
        let threads = threads.min(Self::THREADS);
        let spawn = |_| {
            let (peer, contents) = (peer.clone(), contents.clone());
            std::thread::spawn(move || {
                serve(&*peer, &contents, end, block).unwrap_or_else(|failure| {
                    eprintln!("vmem-bench: the daemon failed: {:#}", anyhow::Error::from(failure));
                    std::process::exit(1)
                })
            })
        };
        Self {
            kind,
            peer: peer.clone(),
            last: (end..end + threads).collect(),
            threads: (0..threads).map(spawn).collect(),
        }
    }

    /// Stops them. Returns how many requests they got, without those that stopped them.
    pub(crate) fn stop(self) -> Outcome<u64> {
        let stops = self.last.len() as u64;
        for page in self.last {
            verify(self.kind.name(), page, touch(&*self.peer, page))?;
        }
        // A thread that panicked has ended the process in its own words.
        let taken: u64 = self.threads.into_iter().filter_map(|thread| thread.join().ok()).sum();
        Ok(self.peer.requests().unwrap_or(taken) - stops)
    }
}

fn serve(peer: &dyn Peer, contents: &Contents, end: u64, block: u64) -> Outcome<u64> {
    let (mut pages, mut taken) = (Vec::new(), 0);
    loop {
        peer.take(&mut pages)?;
        taken += pages.len() as u64;
        match block {
            1 => peer.bring(&pages, contents)?,
            _ => bring_blocks(peer, contents, &pages, end, block)?,
        }
        if pages.iter().any(|page| *page >= end) {
            return Ok(taken);
        }
    }
}

fn bring_blocks(peer: &dyn Peer, contents: &Contents, pages: &[u64], end: u64, block: u64) -> Outcome {
    pages.iter().try_for_each(|page| match *page < end {
        true => peer.bring_block(page - page % block, block as usize, contents),
        false => peer.bring(&[*page], contents),
    })
}
