// SPDX-License-Identifier: GPL-2.0

//! The state of a region, and nothing else.
//!
//! This layer has no unsafe code, takes no lock, sleeps nowhere and calls no kernel function. It is
//! compiled into the module, and a second time on the host, where it is tested against a naive
//! model (`tools/testing/model`).

pub(crate) mod page_map;
pub(crate) mod range;
pub(crate) mod shards;
