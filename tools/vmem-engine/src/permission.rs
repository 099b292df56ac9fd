// SPDX-License-Identifier: GPL-2.0-or-later
//! Whether the source may release pages.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether the source may release pages. Until it is sure that the guest runs here, the guest must be able to run at the source.
#[derive(Debug)]
pub struct Release(AtomicU8);

/// The state of [`Release`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Permission {
    /// The source never releases pages.
    Never = 0,
    /// The source may be permitted to later.
    Pending = 1,
    /// The source may release the pages that it is notified of.
    Given = 2,
    /// The source has been notified of every page.
    Done = 3,
}

impl Release {
    /// Begins with this permission.
    pub const fn new(permission: Permission) -> Self {
        Self(AtomicU8::new(permission as u8))
    }

    /// Changes the permission.
    pub fn set(&self, permission: Permission) {
        self.0.store(permission as u8, Ordering::Relaxed);
    }

    /// Whether the source is to be notified of pages, now or later.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.get(), Permission::Pending | Permission::Given)
    }

    /// The current permission.
    pub fn get(&self) -> Permission {
        match self.0.load(Ordering::Relaxed) {
            0 => Permission::Never,
            1 => Permission::Pending,
            2 => Permission::Given,
            _ => Permission::Done,
        }
    }
}
