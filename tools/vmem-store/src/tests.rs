// SPDX-License-Identifier: GPL-2.0-or-later
//! Tests of the store as a whole.
#![allow(clippy::unwrap_used)]

mod cost;
mod crash;
mod damage;
mod garbage;
mod model;
mod order;
mod outage;
mod removal;
mod write_and_read;

#[cfg(feature = "s3")]
pub(crate) use cost::is_a_store;
