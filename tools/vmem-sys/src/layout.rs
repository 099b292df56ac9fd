// SPDX-License-Identifier: GPL-2.0-or-later
//! The ABI: sizes, offsets and numbers, which never change. `tests/layout.c` checks the same in C.

use std::mem::{offset_of, size_of};

use rustix::ioctl::opcode;

use crate::bindings::*;

macro_rules! layout {
    ($name:ident is $size:literal bytes: $($field:ident at $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $offset);)+
        };
    };
}

layout!(vmem_features is 64 bytes: features at 0, max_size at 8, page_size at 16, max_batch at 20, reserved at 24);
layout!(vmem_create is 96 bytes:
    size at 0, flags at 8, fault_timeout_ms at 12, name at 16, mode at 48, uid at 52, gid at 56, vmem_fd at 60,
    shmem_fd at 64, reserved0 at 68, id at 72, reserved at 80
);
layout!(vmem_attach is 80 bytes:
    name at 0, id at 32, flags at 40, vmem_fd at 44, shmem_fd at 48, reserved0 at 52, size at 56, reserved at 64
);
layout!(vmem_adopt is 48 bytes: fd at 0, flags at 4, vmem_fd at 8, reserved0 at 12, size at 16, id at 24, reserved at 32);
layout!(vmem_track is 40 bytes: flags at 0, reserved0 at 4, mappings at 8, held at 16, reserved at 24);
layout!(vmem_dirty is 64 bytes:
    pgoff at 0, nr_pages at 8, out at 16, nr at 24, flags at 28, done at 32, dirty at 40, held at 48, reserved at 56
);
layout!(vmem_tracking is 64 bytes:
    tracked at 0, mappings at 8, dirty at 16, faults at 24, written at 32, cleaned at 40, held at 48, reserved at 56
);
layout!(vmem_snapshot_member is 8 bytes: vmem_fd at 0, snapshot_fd at 4);
layout!(vmem_snapshot is 48 bytes: members at 0, nr at 8, flags at 12, limit at 16, closed_ns at 24, reserved at 32);
layout!(vmem_snapshot_info is 64 bytes:
    size at 0, dirty at 8, pending at 16, copied at 24, kept at 32, done at 40, failed at 48, reserved at 56
);
layout!(vmem_range is 16 bytes: pgoff at 0, nr_pages at 8);
layout!(vmem_page_request is 16 bytes: pgoffs at 0, nr at 8, flags at 12);
layout!(vmem_mark is 32 bytes: ranges at 0, nr at 8, flags at 12, done at 16, changed at 24);
layout!(vmem_fill_range is 24 bytes: pgoff at 0, nr_pages at 8, addr at 16);
layout!(vmem_fill is 32 bytes: ranges at 0, nr at 8, flags at 12, done at 16, changed at 24);
layout!(vmem_backing is 56 bytes:
    fd at 0, flags at 4, offset at 8, pgoff at 16, nr_pages at 24, around at 32, reserved0 at 36, reserved at 40
);
layout!(vmem_populate is 32 bytes: ranges at 0, nr at 8, flags at 12, done at 16, pages at 24);
layout!(vmem_present is 32 bytes: pgoff at 0, nr_pages at 8, bitmap at 16, present at 24);
layout!(vmem_map_fd is 8 bytes: flags at 0, fd at 4);
layout!(vmem_resume is 72 bytes: flags at 0, shmem_fd at 4, size at 8, id at 16, name at 24, reserved at 56);
layout!(vmem_info is 128 bytes:
    id at 0, size at 8, flags at 16, state at 20, present at 24, unreadable at 32, requested at 40, queued at 48,
    waiters at 56, oldest_wait_ns at 64, faults at 72, requests at 80, sigbus at 88, mappings at 96, length at 104,
    backed at 112, reserved at 120
);

/// Checks a number against its constant value, and against its direction and the size of its argument.
macro_rules! number {
    ($name:ident is $fixed:literal: $computed:expr) => {
        const _: () = {
            assert!($name == $fixed);
            assert!($name == $computed);
        };
    };
}

number!(VMEM_GET_FEATURES is 0x8040_bb00: opcode::read::<vmem_features>(VMEM_IOC_MAGIC as u8, 0x00));
number!(VMEM_CREATE_VMEM is 0xc060_bb01: opcode::read_write::<vmem_create>(VMEM_IOC_MAGIC as u8, 0x01));
number!(VMEM_ATTACH is 0xc050_bb02: opcode::read_write::<vmem_attach>(VMEM_IOC_MAGIC as u8, 0x02));
number!(VMEM_ADOPT is 0xc030_bb03: opcode::read_write::<vmem_adopt>(VMEM_IOC_MAGIC as u8, 0x03));
number!(VMEM_WAIT_READY is 0x0000_bb10: opcode::none(VMEM_IOC_MAGIC as u8, 0x10));
number!(VMEM_READY is 0x0000_bb11: opcode::none(VMEM_IOC_MAGIC as u8, 0x11));
number!(VMEM_GET_PAGE_REQUEST is 0xc010_bb12: opcode::read_write::<vmem_page_request>(VMEM_IOC_MAGIC as u8, 0x12));
number!(VMEM_MARK_PAGE_CACHED is 0xc020_bb13: opcode::read_write::<vmem_mark>(VMEM_IOC_MAGIC as u8, 0x13));
number!(VMEM_MAKE_PAGES_PRESENT is 0xc020_bb14: opcode::read_write::<vmem_populate>(VMEM_IOC_MAGIC as u8, 0x14));
number!(VMEM_MAKE_VMA_ANONYMOUS is 0x0000_bb15: opcode::none(VMEM_IOC_MAGIC as u8, 0x15));
number!(VMEM_FILL_PAGES is 0xc020_bb16: opcode::read_write::<vmem_fill>(VMEM_IOC_MAGIC as u8, 0x16));
number!(VMEM_GET_PRESENT is 0xc020_bb17: opcode::read_write::<vmem_present>(VMEM_IOC_MAGIC as u8, 0x17));
number!(VMEM_GET_INFO is 0x8080_bb18: opcode::read::<vmem_info>(VMEM_IOC_MAGIC as u8, 0x18));
number!(VMEM_GET_MAP_FD is 0xc008_bb19: opcode::read_write::<vmem_map_fd>(VMEM_IOC_MAGIC as u8, 0x19));
number!(VMEM_SET_BACKING is 0x4038_bb1a: opcode::write::<vmem_backing>(VMEM_IOC_MAGIC as u8, 0x1a));
number!(VMEM_RESUME is 0xc048_bb1b: opcode::read_write::<vmem_resume>(VMEM_IOC_MAGIC as u8, 0x1b));
number!(VMEM_TRACK is 0xc028_bb20: opcode::read_write::<vmem_track>(VMEM_IOC_MAGIC as u8, 0x20));
number!(VMEM_UNTRACK is 0x0000_bb21: opcode::none(VMEM_IOC_MAGIC as u8, 0x21));
number!(VMEM_DIRTY is 0xc040_bb22: opcode::read_write::<vmem_dirty>(VMEM_IOC_MAGIC as u8, 0x22));
number!(VMEM_GET_TRACKING is 0x8040_bb23: opcode::read::<vmem_tracking>(VMEM_IOC_MAGIC as u8, 0x23));
number!(VMEM_SNAPSHOT is 0xc030_bb24: opcode::read_write::<vmem_snapshot>(VMEM_IOC_MAGIC as u8, 0x24));
number!(VMEM_SNAPSHOT_DONE is 0x4010_bb30: opcode::write::<vmem_range>(VMEM_IOC_MAGIC as u8, 0x30));
number!(VMEM_GET_SNAPSHOT is 0x8040_bb31: opcode::read::<vmem_snapshot_info>(VMEM_IOC_MAGIC as u8, 0x31));
