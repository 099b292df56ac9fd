// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that are a source, and a server of them.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tempfile::NamedTempFile;
use vmem::PAGE_SIZE;
use vmem_source::memory::Memory as Exported;
use vmem_source::serve::{Event, Limits, Server};
use vmem_wait::StopEvent;

/// Memory of `pages` pages whose contents are made from `seed`: one in four is zero, one in eight repeats its neighbour.
pub(super) fn source_file(pages: u64, seed: u64) -> NamedTempFile {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut file = NamedTempFile::new_in("/dev/shm").expect("a file");
    let mut page = [0; PAGE_SIZE];
    for _ in 0..pages {
        match random() % 8 {
            0 | 1 => page = [0; PAGE_SIZE],
            2 => {}
            _ => page
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random().to_le_bytes())),
        }
        file.write_all(&page).expect("room");
    }
    file
}

/// What is offered of a file.
pub(super) fn spec(name: &str, file: &NamedTempFile) -> String {
    format!("{name}={}", file.path().display())
}

/// A server of some files, until it is dropped.
pub(super) struct Source {
    pub(super) address: SocketAddr,
    stop: Arc<StopEvent>,
    served: Arc<AtomicU64>,
}

impl Source {
    pub(super) fn new(files: &[(&str, &NamedTempFile)]) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), files)
    }

    pub(super) fn at(address: SocketAddr, files: &[(&str, &NamedTempFile)]) -> Self {
        let open = |(name, file): &(&str, &NamedTempFile)| Exported::open(&spec(name, file)).expect("memory");
        Self::of(address, files.iter().map(open).collect())
    }

    pub(super) fn of(address: SocketAddr, memories: Vec<Exported>) -> Self {
        let served = Arc::new(AtomicU64::new(0));
        let sum = Arc::clone(&served);
        let server = Server::bind(address, memories, Limits::default(), None, move |event| {
            if let Event::Ended { served, .. } = event {
                sum.fetch_add(served.data + served.zero + served.unreadable, Ordering::Relaxed);
            }
        })
        .expect("a server");
        let address = server.local_addr().expect("its address");
        let stop = Arc::new(StopEvent::new().expect("an eventfd"));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            server.run(stopped.as_fd()).expect("a run");
        });
        Self { address, stop, served }
    }

    /// Pages that it sent on connections that have ended.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.set();
    }
}
