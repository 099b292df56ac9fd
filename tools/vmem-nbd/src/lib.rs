// SPDX-License-Identifier: GPL-2.0-or-later
//! The NBD protocol (Network Block Device, `doc/proto.md` of github.com/NetworkBlockDevice/nbd), as far as memory images need it.
//!
//! [`client`] reads an export of any server. It has the fixed newstyle handshake, `NBD_OPT_STARTTLS`, `NBD_OPT_GO`, structured replies and
//! `base:allocation`, the latter ones each where the server has it.
//!
//! [`server`] exports images read-only, for `nbdcopy`, `qemu-img` or the kernel's client. It has the fixed newstyle handshake, `NBD_OPT_STARTTLS`,
//! structured replies and the metadata context `base:allocation`.
//!
//! This crate negotiates TLS, and leaves the protection itself to its user. Where a side is told to protect its connections, it accepts no other ones.
#![forbid(unsafe_code)]

pub mod client;
mod extent;
mod link;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;
