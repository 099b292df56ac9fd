// SPDX-License-Identifier: GPL-2.0

//! A vector with a fixed capacity, on the stack.
//!
//! Stands in for `KVec` where an allocation would cost more than the work.

use core::mem::MaybeUninit;

/// Up to `N` values.
///
/// # Invariants
///
/// The first `nr` values are initialized, and `nr` is at most `N`.
pub(crate) struct ArrayVec<T, const N: usize> {
    values: [MaybeUninit<T>; N],
    nr: usize,
}

impl<T: Copy, const N: usize> ArrayVec<T, N> {
    /// An empty vector.
    pub(crate) fn new() -> Self {
        // INVARIANT: No value needs to be initialized.
        Self {
            values: [const { MaybeUninit::uninit() }; N],
            nr: 0,
        }
    }

    /// How many more values fit.
    pub(crate) fn remaining_capacity(&self) -> usize {
        N - self.nr
    }

    /// Adds a value. Returns whether it fits.
    pub(crate) fn push(&mut self, value: T) -> bool {
        let Some(free) = self.values.get_mut(self.nr) else {
            return false;
        };
        free.write(value);
        // INVARIANT: The value was written just now, within the capacity.
        self.nr += 1;
        true
    }

    /// The values.
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: By the type invariants so many values are initialized.
        unsafe { core::slice::from_raw_parts(self.values.as_ptr().cast(), self.nr) }
    }
}
