// SPDX-License-Identifier: GPL-2.0

//! vmem: memory that can start empty.
//!
//! A program maps a region. A touch of an absent page becomes a request. A daemon fetches the page,
//! and the program continues. `include/uapi/linux/vmem.h` documents the calls.
//!
//! ```text
//!     device ──► model      what a region is; pure state, no unsafe code, tested on the host too
//!        └─────► sys        safe wrappers of C; the only unsafe code, knows no policy
//! ```
//!
//! `Documentation/locking.rst` has the order of the locks.

mod device;
mod model;
mod sys;

use device::{
    control,
    directory,
    memories,
    named_file,
    region_file,
    registry,
    tracked, //
};
use kernel::prelude::*;
use sys::{
    backing_file::Readers,
    file_system::FileSystem,
    misc_dev::MiscDev,
    node::Nodes,
    staging::Shmem,
    task::ExitBarrier, //
};

// The model counts in pages of this size, and C in those of the kernel.
const _: () = assert!(
    kernel::page::PAGE_SIZE as u64 == model::range::PAGE_SIZE,
    "vmem supports kernels with pages of 4 KiB only (CONFIG_PAGE_SIZE_4KB)"
);

module! {
    type: Vmem,
    name: "vmem",
    authors: ["The vmem authors"],
    description: "Memory that can start empty",
    license: "GPL v2",
}

/// The module. Its fields are dropped in this order. No region's node can be opened while they are
/// dropped, since an open file holds a reference to the module. The last field waits for tasks that
/// are still in the module's code.
#[pin_data]
struct Vmem {
    file_system: FileSystem,
    #[pin]
    control: MiscDev,
    nodes: Nodes,
    readers: Readers,
    shmem: Shmem,
    exit_barrier: ExitBarrier,
}

impl kernel::InPlaceModule for Vmem {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        registry::init(module);
        memories::init(module);
        try_pin_init!(Self {
            exit_barrier: ExitBarrier,
            shmem: tracked::init(Shmem::init(module)?, module),
            readers: Readers::init(module)?,
            nodes: Nodes::register(module, &region_file::OPS, registry::MAX_NODES)?,
            control <- MiscDev::register(c"vmem", c"vmem/control", &control::OPS),
            file_system: FileSystem::register(module, &directory::DIRECTORY, &named_file::OPS)?,
        })
    }
}
