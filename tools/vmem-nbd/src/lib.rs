// SPDX-License-Identifier: GPL-2.0
//! The NBD protocol (Network Block Device, `doc/proto.md` of github.com/NetworkBlockDevice/nbd), as far as memory images need it.
//!
//! [`server`] exports images read-only, for `nbdcopy`, `qemu-img` or the kernel's client. It has the fixed newstyle handshake, structured
//! replies and the metadata context `base:allocation`, and no TLS.
#![forbid(unsafe_code)]

mod link;
pub mod server;
mod wire;
