/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What can never change once programs are built with it: sizes, offsets and numbers. src/layout.rs says the same in Rust;
 * tests/layout.rs compiles this file.
 */
#include <stddef.h>
#include <linux/vmem.h>

#define SIZE(type, size) \
	_Static_assert(sizeof(struct type) == (size), #type)
#define FIELD(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define NUMBER(name, number) \
	_Static_assert(name == (number), #name)

SIZE(vmem_features, 64);
FIELD(vmem_features, features, 0);
FIELD(vmem_features, max_size, 8);
FIELD(vmem_features, page_size, 16);
FIELD(vmem_features, max_batch, 20);
FIELD(vmem_features, reserved, 24);

SIZE(vmem_create, 96);
FIELD(vmem_create, size, 0);
FIELD(vmem_create, flags, 8);
FIELD(vmem_create, fault_timeout_ms, 12);
FIELD(vmem_create, name, 16);
FIELD(vmem_create, mode, 48);
FIELD(vmem_create, uid, 52);
FIELD(vmem_create, gid, 56);
FIELD(vmem_create, vmem_fd, 60);
FIELD(vmem_create, shmem_fd, 64);
FIELD(vmem_create, reserved0, 68);
FIELD(vmem_create, id, 72);
FIELD(vmem_create, reserved, 80);

SIZE(vmem_attach, 80);
FIELD(vmem_attach, name, 0);
FIELD(vmem_attach, id, 32);
FIELD(vmem_attach, flags, 40);
FIELD(vmem_attach, vmem_fd, 44);
FIELD(vmem_attach, shmem_fd, 48);
FIELD(vmem_attach, reserved0, 52);
FIELD(vmem_attach, size, 56);
FIELD(vmem_attach, reserved, 64);

SIZE(vmem_adopt, 48);
FIELD(vmem_adopt, fd, 0);
FIELD(vmem_adopt, flags, 4);
FIELD(vmem_adopt, vmem_fd, 8);
FIELD(vmem_adopt, reserved0, 12);
FIELD(vmem_adopt, size, 16);
FIELD(vmem_adopt, id, 24);
FIELD(vmem_adopt, reserved, 32);

SIZE(vmem_track, 40);
FIELD(vmem_track, flags, 0);
FIELD(vmem_track, reserved0, 4);
FIELD(vmem_track, mappings, 8);
FIELD(vmem_track, held, 16);
FIELD(vmem_track, reserved, 24);

SIZE(vmem_dirty, 64);
FIELD(vmem_dirty, pgoff, 0);
FIELD(vmem_dirty, nr_pages, 8);
FIELD(vmem_dirty, out, 16);
FIELD(vmem_dirty, nr, 24);
FIELD(vmem_dirty, flags, 28);
FIELD(vmem_dirty, done, 32);
FIELD(vmem_dirty, dirty, 40);
FIELD(vmem_dirty, held, 48);
FIELD(vmem_dirty, reserved, 56);

SIZE(vmem_tracking, 64);
FIELD(vmem_tracking, tracked, 0);
FIELD(vmem_tracking, mappings, 8);
FIELD(vmem_tracking, dirty, 16);
FIELD(vmem_tracking, faults, 24);
FIELD(vmem_tracking, written, 32);
FIELD(vmem_tracking, cleaned, 40);
FIELD(vmem_tracking, held, 48);
FIELD(vmem_tracking, reserved, 56);

SIZE(vmem_range, 16);
FIELD(vmem_range, pgoff, 0);
FIELD(vmem_range, nr_pages, 8);

SIZE(vmem_page_request, 16);
FIELD(vmem_page_request, pgoffs, 0);
FIELD(vmem_page_request, nr, 8);
FIELD(vmem_page_request, flags, 12);

SIZE(vmem_mark, 32);
FIELD(vmem_mark, ranges, 0);
FIELD(vmem_mark, nr, 8);
FIELD(vmem_mark, flags, 12);
FIELD(vmem_mark, done, 16);
FIELD(vmem_mark, changed, 24);

SIZE(vmem_fill_range, 24);
FIELD(vmem_fill_range, pgoff, 0);
FIELD(vmem_fill_range, nr_pages, 8);
FIELD(vmem_fill_range, addr, 16);

SIZE(vmem_fill, 32);
FIELD(vmem_fill, ranges, 0);
FIELD(vmem_fill, nr, 8);
FIELD(vmem_fill, flags, 12);
FIELD(vmem_fill, done, 16);
FIELD(vmem_fill, changed, 24);

SIZE(vmem_backing, 56);
FIELD(vmem_backing, fd, 0);
FIELD(vmem_backing, flags, 4);
FIELD(vmem_backing, offset, 8);
FIELD(vmem_backing, pgoff, 16);
FIELD(vmem_backing, nr_pages, 24);
FIELD(vmem_backing, around, 32);
FIELD(vmem_backing, reserved0, 36);
FIELD(vmem_backing, reserved, 40);

SIZE(vmem_populate, 32);
FIELD(vmem_populate, ranges, 0);
FIELD(vmem_populate, nr, 8);
FIELD(vmem_populate, flags, 12);
FIELD(vmem_populate, done, 16);
FIELD(vmem_populate, pages, 24);

SIZE(vmem_present, 32);
FIELD(vmem_present, pgoff, 0);
FIELD(vmem_present, nr_pages, 8);
FIELD(vmem_present, bitmap, 16);
FIELD(vmem_present, present, 24);

SIZE(vmem_map_fd, 8);
FIELD(vmem_map_fd, flags, 0);
FIELD(vmem_map_fd, fd, 4);

SIZE(vmem_resume, 72);
FIELD(vmem_resume, flags, 0);
FIELD(vmem_resume, shmem_fd, 4);
FIELD(vmem_resume, size, 8);
FIELD(vmem_resume, id, 16);
FIELD(vmem_resume, name, 24);
FIELD(vmem_resume, reserved, 56);

SIZE(vmem_info, 128);
FIELD(vmem_info, id, 0);
FIELD(vmem_info, size, 8);
FIELD(vmem_info, flags, 16);
FIELD(vmem_info, state, 20);
FIELD(vmem_info, present, 24);
FIELD(vmem_info, unreadable, 32);
FIELD(vmem_info, requested, 40);
FIELD(vmem_info, queued, 48);
FIELD(vmem_info, waiters, 56);
FIELD(vmem_info, oldest_wait_ns, 64);
FIELD(vmem_info, faults, 72);
FIELD(vmem_info, requests, 80);
FIELD(vmem_info, sigbus, 88);
FIELD(vmem_info, mappings, 96);
FIELD(vmem_info, length, 104);
FIELD(vmem_info, backed, 112);
FIELD(vmem_info, reserved, 120);

NUMBER(VMEM_GET_FEATURES, 0x8040bb00);
NUMBER(VMEM_CREATE_VMEM, 0xc060bb01);
NUMBER(VMEM_ATTACH, 0xc050bb02);
NUMBER(VMEM_ADOPT, 0xc030bb03);
NUMBER(VMEM_WAIT_READY, 0x0000bb10);
NUMBER(VMEM_READY, 0x0000bb11);
NUMBER(VMEM_GET_PAGE_REQUEST, 0xc010bb12);
NUMBER(VMEM_MARK_PAGE_CACHED, 0xc020bb13);
NUMBER(VMEM_MAKE_PAGES_PRESENT, 0xc020bb14);
NUMBER(VMEM_MAKE_VMA_ANONYMOUS, 0x0000bb15);
NUMBER(VMEM_FILL_PAGES, 0xc020bb16);
NUMBER(VMEM_GET_PRESENT, 0xc020bb17);
NUMBER(VMEM_GET_INFO, 0x8080bb18);
NUMBER(VMEM_GET_MAP_FD, 0xc008bb19);
NUMBER(VMEM_SET_BACKING, 0x4038bb1a);
NUMBER(VMEM_RESUME, 0xc048bb1b);
NUMBER(VMEM_TRACK, 0xc028bb20);
NUMBER(VMEM_UNTRACK, 0x0000bb21);
NUMBER(VMEM_DIRTY, 0xc040bb22);
NUMBER(VMEM_GET_TRACKING, 0x8040bb23);
