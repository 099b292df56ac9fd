// SPDX-License-Identifier: GPL-2.0-or-later

//! The module's model layer (`rust/model`), compiled for the host: its state is held against a naive model, and its protocol is run in
//! every order of events.
//!
//! Nothing is copied: the files are those that the module is built from.

#![forbid(unsafe_code)]
#![cfg(test)]

// Formatted as the module is.
#[rustfmt::skip]
#[path = "."]
mod model {
    #[path = "../../../../rust/model/dirty_log.rs"]
    pub(crate) mod dirty_log;
    #[path = "../../../../rust/model/extents.rs"]
    pub(crate) mod extents;
    #[path = "../../../../rust/model/gate.rs"]
    pub(crate) mod gate;
    #[path = "../../../../rust/model/image.rs"]
    pub(crate) mod image;
    #[path = "../../../../rust/model/page_map.rs"]
    pub(crate) mod page_map;
    #[path = "../../../../rust/model/range.rs"]
    pub(crate) mod range;
    #[path = "../../../../rust/model/rendezvous.rs"]
    pub(crate) mod rendezvous;
    #[path = "../../../../rust/model/shards.rs"]
    pub(crate) mod shards;
}

mod dirty_log;
mod extents;
mod gate;
mod image;
mod naive;
mod page_map;
mod range;
mod rendezvous;
mod shards;
