// SPDX-License-Identifier: GPL-2.0-or-later
//! Typed ioctls: the argument struct determines the number of the call.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, ioctl};

use crate::Errno;
use crate::bindings::*;

/// The argument struct of a call.
///
/// # Safety
///
/// `NUMBER` must be the number that the header defines with `Self`.
pub(crate) unsafe trait Argument {
    const NUMBER: Opcode;
}

macro_rules! argument {
    ($($argument:ty => $number:ident),* $(,)?) => {
        $(
            // SAFETY: the header defines this number with this struct; `layout` asserts that the size in it is the struct's.
            unsafe impl Argument for $argument {
                const NUMBER: Opcode = $number;
            }
        )*
    };
}

argument! {
    vmem_features => VMEM_GET_FEATURES,
    vmem_create => VMEM_CREATE_VMEM,
    vmem_attach => VMEM_ATTACH,
    vmem_adopt => VMEM_ADOPT,
    vmem_page_request => VMEM_GET_PAGE_REQUEST,
    vmem_mark => VMEM_MARK_PAGE_CACHED,
    vmem_populate => VMEM_MAKE_PAGES_PRESENT,
    vmem_fill => VMEM_FILL_PAGES,
    vmem_backing => VMEM_SET_BACKING,
    vmem_present => VMEM_GET_PRESENT,
    vmem_info => VMEM_GET_INFO,
    vmem_map_fd => VMEM_GET_MAP_FD,
    vmem_resume => VMEM_RESUME,
    vmem_track => VMEM_TRACK,
    vmem_dirty => VMEM_DIRTY,
    vmem_tracking => VMEM_GET_TRACKING,
    vmem_snapshot => VMEM_SNAPSHOT,
    vmem_range => VMEM_SNAPSHOT_DONE,
    vmem_snapshot_info => VMEM_GET_SNAPSHOT,
}

/// A call with an argument that the kernel reads and writes.
struct Call<'a, A>(&'a mut A);

// SAFETY: the pointer is that of an `A`, which the kernel may write, and `A` is what the number stands for (`Argument`).
unsafe impl<A: Argument> Ioctl for Call<'_, A> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        A::NUMBER
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Makes the call whose argument is `A`. `argument` has what the kernel wrote, also after an error.
///
/// # Safety
///
/// Each address in `argument` is that of memory which the call may read or write as the header says.
pub(crate) unsafe fn call<A: Argument>(fd: BorrowedFd<'_>, argument: &mut A) -> Result<(), Errno> {
    // SAFETY: the number and the argument belong together by the contract of `Argument`, the addresses in it are right by the
    // contract of this function.
    unsafe { ioctl(fd, Call(argument)) }
}

/// Makes a call without an argument.
pub(crate) fn call_plain<const NUMBER: Opcode>(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the numbers given here are made with `_IO`: they have no argument.
    let call = unsafe { NoArg::<NUMBER>::new() };
    // SAFETY: as above; the kernel gets no pointer.
    unsafe { ioctl(fd, call) }
}
