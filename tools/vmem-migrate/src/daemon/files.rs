// SPDX-License-Identifier: GPL-2.0-or-later
//! The files of a vmemd in the guest's directory.

/// The file with the identity of the latest vmemd's process.
pub(super) const PID: &str = "vmemd.pid";

/// The socket of the latest vmemd.
pub(crate) const SOCKET: &str = "vmemd.sock";
