// SPDX-License-Identifier: GPL-2.0

//! vmem: memory that can start empty.
//!
//! A program maps a region; a touch of an absent page becomes a request; a daemon fetches the page,
//! and the program goes on. `include/uapi/linux/vmem.h` says what the calls do.
//!
//! ```text
//!     device ──► model      what a region is; pure state, no unsafe code, tested on the host too
//!        └─────► sys        safe wrappers of C; the only unsafe code, knows no policy
//! ```
//!
//! The order of the locks stands in `Documentation/locking.rst`.

mod device;
mod model;
mod sys;

use device::{
    control,
    memories,
    region_file,
    registry,
    tracked, //
};
use kernel::prelude::*;
use sys::{
    misc_dev::MiscDev,
    node::Nodes,
    staging::Shmem,
    task::ExitBarrier, //
};

module! {
    type: Vmem,
    name: "vmem",
    authors: ["The vmem authors"],
    description: "Memory that can start empty",
    license: "GPL v2",
}

/// The module. Its parts go in this order: nobody can open a region's node when they go, since an
/// open file holds the module. Last of all it is waited for who still runs in its code.
#[pin_data]
struct Vmem {
    #[pin]
    control: MiscDev,
    nodes: Nodes,
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
            nodes: Nodes::register(module, &region_file::OPS, registry::MAX_NODES)?,
            control <- MiscDev::register(c"vmem", c"vmem/control", &control::OPS),
        })
    }
}
