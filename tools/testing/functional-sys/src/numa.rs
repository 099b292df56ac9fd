// SPDX-License-Identifier: GPL-2.0-or-later
//! Which node memory shall be on, which it is on, and moving it.

use std::fs;
use std::io;
use std::ops::Range;

use crate::{Area, PAGE, checked};

const MPOL_BIND: i32 = 2;
const MPOL_MF_MOVE_ALL: i32 = 4;
const MPOL_F_NODE: u64 = 1;
const MPOL_F_ADDR: u64 = 2;
/// Bits of a mask of nodes, as the kernel counts them: one more than it looks at.
const NODES: u64 = 65;

/// Makes every processor let go of the pages that it has in hand: those that were allocated a moment ago and are not in the lists of memory
/// yet. (`move_pages` of no page does that first. A kernel for machines of one node has no such call; it does the same before it compacts memory.)
pub fn drain_page_lists() -> io::Result<()> {
    let no_page = [0usize; 1];
    let (pages, nodes, status) = (no_page.as_ptr(), no_page.as_ptr(), no_page.as_ptr());
    // SAFETY: the arrays have no entry that the call would read or write.
    let moved = checked(unsafe { libc::syscall(libc::SYS_move_pages, 0, 0, pages, nodes, status, 0) } as libc::c_int);
    moved.map(drop).or_else(|_| fs::write("/proc/sys/vm/compact_memory", "1"))
}

impl Area {
    /// `mbind` of these pages to one node.
    pub fn bind(&self, pages: Range<usize>, node: u32) -> io::Result<()> {
        let (address, len) = self.range(&pages);
        let mask = 1u64 << node;
        // SAFETY: inside the area; the call reads the mask, and changes no contents.
        checked(unsafe { libc::syscall(libc::SYS_mbind, address, len, MPOL_BIND, &raw const mask, NODES, 0) } as libc::c_int)
            .map(drop)
    }

    /// The one node that a page shall be on, if `mbind` has said so.
    pub fn bound_to(&self, page: usize) -> io::Result<Option<u32>> {
        let (mut policy, mut mask) = (0i32, 0u64);
        let (to, nodes) = (&raw mut policy, &raw mut mask);
        let address = self.at(page * PAGE, PAGE);
        // SAFETY: the call writes the policy, and a mask of no more than 64 nodes.
        checked(unsafe { libc::syscall(libc::SYS_get_mempolicy, to, nodes, NODES, address, MPOL_F_ADDR) } as libc::c_int)?;
        Ok((policy == MPOL_BIND && mask.is_power_of_two()).then(|| mask.trailing_zeros()))
    }

    /// `move_pages`: moves a page to a node. The page is as it was but for its place.
    pub fn move_to(&self, page: usize, node: u32) -> io::Result<()> {
        let address = self.at(page * PAGE, PAGE);
        let mut status = 0i32;
        let (addresses, nodes, to) = (&raw const address, &raw const node, &raw mut status);
        // SAFETY: the call reads one address and one node, and writes one status.
        checked(unsafe { libc::syscall(libc::SYS_move_pages, 0, 1, addresses, nodes, to, MPOL_MF_MOVE_ALL) } as libc::c_int)?;
        // A negative one is an errno.
        if status < 0 {
            return Err(io::Error::from_raw_os_error(-status));
        }
        Ok(())
    }

    /// The node that a page is on. It is touched.
    pub fn node_of(&self, page: usize) -> io::Result<u32> {
        let mut node = 0i32;
        let to = &raw mut node;
        let address = self.at(page * PAGE, PAGE);
        let flags = MPOL_F_NODE | MPOL_F_ADDR;
        let no_mask = std::ptr::null_mut::<u64>();
        // SAFETY: the call writes the node.
        let result = unsafe { libc::syscall(libc::SYS_get_mempolicy, to, no_mask, 0, address, flags) };
        checked(result as libc::c_int)?;
        u32::try_from(node).map_err(io::Error::other)
    }
}
