// SPDX-License-Identifier: GPL-2.0-or-later
//! Memory that can start empty.
//!
//! A *region* is memory of a fixed size whose *pages* may be *absent*. Programs map it. A touch of an absent page, a *fault*, becomes a
//! *request*; the region's *daemon* takes it, gets the contents from wherever they are, and fills the page. When all pages are
//! *present*, the region can become plain shared memory, and nothing of vmem is left.
//!
//! - [`Control`] is the device: it creates regions ([`RegionBuilder`]) and attaches a daemon to one that lost its own.
//! - [`Region`] is the daemon's side: it takes requests, fills and marks pages, and ends with [`Region::make_vma_anonymous`].
//! - [`MapHandle`] is the other side: it maps a region, and can do nothing else with it.
//! - [`Adopted`] is shared memory that exists already, of programs that know nothing of vmem, or a region; [`Tracking`] logs the writes
//!   to it.
//! - [`Snapshot`] is what tracked memory held at one instant.
//! - [`Files`] says where programs find regions as regular files, and mounts these.
//! - [`PageIndex`] and [`PageRange`] name pages.
//!
//! # A daemon
//!
//! ```no_run
#![doc = include_str!("../doc/daemon.rs")]
//!
//! fn main() -> Result<(), Error> {
//!     let control = vmem::Control::open()?;
//!     let region = vmem::RegionBuilder::new(1 << 20).name("guest0").mode(0o600).create(&control)?;
//!     region.ready()?;
//!     serve(&region)
//! }
//! ```
//!
//! # A program that uses the region
//!
//! ```no_run
//! use vmem::{Access, MapHandle, Sharing};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let handle = MapHandle::open("guest0", Access::ReadWrite)?;
//! handle.wait_ready()?;
//! let memory = handle.map(Access::ReadWrite, Sharing::Shared)?;
//! let mut bytes = [0; 16];
//! memory.read_at(0, &mut bytes)?; // waits until the daemon has filled page 0
//! # Ok(())
//! # }
//! ```
//!
//! # The writes of a program that knows nothing of vmem
//!
//! ```no_run
//! use vmem::{Control, DirtyRate, ProcessMemory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = ProcessMemory::open(812, "/memfd:ram")?; // as /proc/812/fd shows it
//! let adopted = Control::open()?.adopt(&memory)?;
//! let tracking = adopted.track()?;
//! let mut rate = DirtyRate::begin(&tracking)?;
//! for _ in 0..10 {
//!     std::thread::sleep(std::time::Duration::from_secs(1));
//!     println!("{:.0} pages/s", rate.sample()?.pages_per_second());
//! }
//! tracking.stop()?; // the memory is plain again
//! # Ok(())
//! # }
//! ```
//!
//! # Asynchronous use
//!
//! The descriptor of a [`Region`] is always `O_NONBLOCK`, and it is readable when a page is wanted: give it to any reactor (`AsFd`,
//! `AsRawFd`). When the reactor says that it is readable, call [`Region::try_next_requests`] until that returns no pages, and only then
//! wait again. With the feature `tokio`, `AsyncRegion` does this on tokio's `AsyncFd`:
//!
#![cfg_attr(feature = "tokio", doc = "```no_run")]
#![cfg_attr(not(feature = "tokio"), doc = "```ignore")]
//! # async fn serve(region: vmem::Region) -> Result<(), Box<dyn std::error::Error>> {
//! let requests = vmem::AsyncRegion::new(region)?;
//! requests.region().ready()?;
//! loop {
//!     for page in requests.next_requests(64).await? {
//!         let contents = [1; vmem::PAGE_SIZE];
//!         requests.region().fill(&[vmem::Fill::new(page, &contents)?]).complete()?;
//!     }
//! }
//! # }
//! ```
//!
//! # Depending on this crate
//!
//! It is in no package registry. A program outside of vmem's source tree names the tree, or a git repository with it:
//!
//! ```toml
//! [dependencies]
//! vmem = { path = "../vmem/tools/vmem" }
//! # vmem = { git = "https://example.org/vmem.git" }
//! ```
//!
//! It needs Rust 1.85 and Linux on x86-64 or arm64 to build, and neither the module nor its header. `MADV_REMOVE`, cgroups and all else that the
//! module promises are described in `Documentation/semantics.rst`.
//!
//! # Memory of the daemon's own regions
//!
//! The contents that a daemon fills pages with must not lie in memory of a region that it serves itself: it would wait for itself. The
//! same is true of a thread that serves a region and reads a [`Snapshot`] of it.

#![forbid(unsafe_code)]

mod adopted;
mod control;
mod dirty;
mod error;
mod fdinfo;
mod file_kind;
mod files;
mod handle;
mod host_memory;
mod info;
mod map;
mod mapped;
mod memory;
mod memory_file;
mod mount;
mod name;
mod node;
mod present;
mod rate;
mod region;
mod region_path;
mod snapshot;
mod sys_range;
#[cfg(feature = "tokio")]
mod tokio;
mod tracking;

pub use vmem_mapping::{Access, Error as MappingError, Mapping, Sharing};
pub use vmem_pages::{PAGE_SIZE, PageIndex, PageRange, PageSet};

const _: () = assert!(PAGE_SIZE == vmem_mapping::PAGE_SIZE && PAGE_SIZE == vmem_sys::PAGE_SIZE);

#[cfg(feature = "tokio")]
pub use crate::tokio::AsyncRegion;
pub use adopted::Adopted;
pub use control::{Control, Features, RegionBuilder};
pub use dirty::{DirtyLog, DirtyMap};
pub use error::{Error, OpenMemory};
pub use fdinfo::{Descriptor, DescriptorInfo, descriptors};
pub use files::{Files, FilesOption};
pub use handle::MemoryHandle;
pub use host_memory::available_memory;
pub use info::Info;
pub use map::MapHandle;
pub use mapped::{MappedPages, MapsLine, mapped_pages, maps_lines};
pub use memory::ProcessMemory;
pub use memory_file::MemoryFile;
pub use mount::MountError;
pub use name::{DIRECTORY, FILES_DIRECTORY, Name, node_path};
pub use node::{Node, nodes};
pub use present::PresentMap;
pub use rate::{DirtyRate, DirtySample, WriteHistogram};
pub use region::{Backing, Fill, MAX_BATCH, Progress, Region};
pub use region_path::{region_at, region_name, region_node, region_of};
pub use snapshot::{Snapshot, SnapshotInfo, SnapshotOptions};
pub use tracking::{TrackOptions, Tracking, TrackingInfo};
