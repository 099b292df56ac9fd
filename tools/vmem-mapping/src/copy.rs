// SPDX-License-Identifier: GPL-2.0-or-later
//! Copies between shared and private memory.
//!
//! Each access to the shared side is a relaxed atomic access, by words of eight bytes where that side is aligned. The compiler does it
//! exactly once, and concurrent accesses are no data race. Nothing orders the accesses of one copy: a page that another thread writes at
//! the same time is read as a mixture of old and new bytes.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::io::Errno;

const WORD: usize = size_of::<u64>();

/// The number of bytes, of `len` from `address` on, before the first aligned word.
fn head_of(address: usize, len: usize) -> usize {
    (address.wrapping_neg() % WORD).min(len)
}

/// Copies `to.len()` bytes out of shared memory at `from`.
///
/// # Safety
///
/// `from` is mapped readable for `to.len()` bytes, for as long as the call takes, and Rust references to it do not exist.
pub(crate) unsafe fn out_of(from: *mut u8, to: &mut [u8]) {
    let (head, rest) = to.split_at_mut(head_of(from as usize, to.len()));
    // SAFETY: `from` is readable for all of `to`, of which `head` is the first part.
    unsafe { bytes_out_of(from, head) };
    let mut at = head.len();
    let mut words = rest.chunks_exact_mut(WORD);
    for word in &mut words {
        // SAFETY: `at` is below `to.len()`.
        let address = unsafe { from.add(at) };
        // SAFETY: the address is readable and, from the end of the head on, a multiple of a word; all access to it is atomic.
        let shared = unsafe { AtomicU64::from_ptr(address.cast()) };
        word.copy_from_slice(&shared.load(Ordering::Relaxed).to_ne_bytes());
        at += WORD;
    }
    // SAFETY: at most `to.len()`.
    let tail = unsafe { from.add(at) };
    // SAFETY: what is left of `to` is what is left of the readable memory.
    unsafe { bytes_out_of(tail, words.into_remainder()) };
}

/// Copies `from` into shared memory at `to`.
///
/// # Safety
///
/// `to` is mapped writable for `from.len()` bytes, for as long as the call takes, and Rust references to it do not exist.
pub(crate) unsafe fn into(to: *mut u8, from: &[u8]) {
    let (head, rest) = from.split_at(head_of(to as usize, from.len()));
    // SAFETY: `to` is writable for all of `from`, of which `head` is the first part.
    unsafe { bytes_into(to, head) };
    let mut at = head.len();
    let words = rest.chunks_exact(WORD);
    let tail = words.remainder();
    for word in words {
        // SAFETY: `at` is below `from.len()`.
        let address = unsafe { to.add(at) };
        // SAFETY: the address is writable and, from the end of the head on, a multiple of a word; all access to it is atomic.
        let shared = unsafe { AtomicU64::from_ptr(address.cast()) };
        let mut value = [0; WORD];
        value.copy_from_slice(word);
        shared.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        at += WORD;
    }
    // SAFETY: at most `from.len()`.
    let end = unsafe { to.add(at) };
    // SAFETY: what is left of `from` is what is left of the writable memory.
    unsafe { bytes_into(end, tail) };
}

/// Copies up to `to.len()` bytes out of this process's memory at `from`, which need not be mapped. Returns the number of bytes before the
/// first page that cannot be read. The kernel does not hold a lock of this process while it waits for an absent page.
pub(crate) fn out_of_until_fault(from: *mut u8, to: &mut [u8]) -> Result<usize, Errno> {
    let this = std::process::id() as libc::pid_t;
    let mut copied = 0;
    while copied < to.len() {
        let rest = &mut to[copied..];
        let local = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        let remote = libc::iovec {
            iov_base: from.wrapping_add(copied).cast(),
            iov_len: rest.len(),
        };
        // SAFETY: the call writes to `rest` alone, which is borrowed mutably; what it cannot read is an error.
        let result = unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) };
        match usize::try_from(result) {
            Ok(len) if len > 0 => copied += len,
            Ok(_) => break,
            Err(_) => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EFAULT) => break,
                Some(libc::EINTR) => continue,
                errno => return Err(Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            },
        }
    }
    Ok(copied)
}

/// [`out_of`], byte by byte.
///
/// # Safety
///
/// As for [`out_of`].
unsafe fn bytes_out_of(from: *mut u8, to: &mut [u8]) {
    for (at, byte) in to.iter_mut().enumerate() {
        // SAFETY: `at` is below `to.len()`.
        let address = unsafe { from.add(at) };
        // SAFETY: the address is readable by the contract of this function, and all access to it is atomic.
        *byte = unsafe { AtomicU8::from_ptr(address) }.load(Ordering::Relaxed);
    }
}

/// [`into`], byte by byte.
///
/// # Safety
///
/// As for [`into`].
unsafe fn bytes_into(to: *mut u8, from: &[u8]) {
    for (at, byte) in from.iter().enumerate() {
        // SAFETY: `at` is below `from.len()`.
        let address = unsafe { to.add(at) };
        // SAFETY: the address is writable by the contract of this function, and all access to it is atomic.
        unsafe { AtomicU8::from_ptr(address) }.store(*byte, Ordering::Relaxed);
    }
}
