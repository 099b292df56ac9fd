// SPDX-License-Identifier: GPL-2.0
//! The NBD protocol (Network Block Device, `doc/proto.md` of github.com/NetworkBlockDevice/nbd), as far as memory images need it.
//!
//! [`client`] reads an export of any server. It has the fixed newstyle handshake, `NBD_OPT_GO`, structured replies and `base:allocation`, each where the
//! server has it.
//!
//! [`server`] exports images read-only, for `nbdcopy`, `qemu-img` or the kernel's client. It has the fixed newstyle handshake, structured
//! replies and the metadata context `base:allocation`.
//!
//! Neither has TLS.
#![forbid(unsafe_code)]

pub mod client;
mod extent;
mod link;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;
