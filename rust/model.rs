// SPDX-License-Identifier: GPL-2.0

//! The state of a region, and the protocol by which touches and the daemon wait for each other.
//!
//! This layer has no unsafe code and calls no kernel function; the layer above supplies locks and
//! queues. The code is compiled into the module, and a second time on the host, where the state is
//! tested against a naive model and the protocol under a model checker (`tools/testing/model`).

pub(crate) mod dirty_log;
pub(crate) mod extents;
pub(crate) mod gate;
pub(crate) mod image;
pub(crate) mod page_map;
pub(crate) mod range;
pub(crate) mod rendezvous;
pub(crate) mod shards;
