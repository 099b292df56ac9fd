// SPDX-License-Identifier: GPL-2.0
//! Whether the source may give pages back.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether the source may give pages back. Until it is sure that the program runs here, it must be able to run there.
#[derive(Debug)]
pub struct Release(AtomicU8);

/// The state of [`Release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Permission {
    /// Nobody will say so.
    Never = 0,
    /// Somebody may say so.
    Pending = 1,
    /// It may.
    Given = 2,
    /// It has been told of every page.
    Done = 3,
}

impl Release {
    /// One that begins so.
    pub const fn new(permission: Permission) -> Self {
        Self(AtomicU8::new(permission as u8))
    }

    /// From now on it is so.
    pub fn set(&self, permission: Permission) {
        self.0.store(permission as u8, Ordering::Relaxed);
    }

    /// How it is now.
    pub fn get(&self) -> Permission {
        match self.0.load(Ordering::Relaxed) {
            0 => Permission::Never,
            1 => Permission::Pending,
            2 => Permission::Given,
            _ => Permission::Done,
        }
    }
}
