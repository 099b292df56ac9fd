/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads: the interface, and by value what it cannot evaluate itself (macros with casts or sizeof).
 */
#include <linux/vmem.h>

#define VALUE(type, name) static const type VALUE_OF_##name = name

VALUE(__u32, VMEM_ID_KEEP);
VALUE(__u32, VMEM_GET_FEATURES);
VALUE(__u32, VMEM_CREATE_VMEM);
VALUE(__u32, VMEM_ATTACH);
VALUE(__u32, VMEM_ADOPT);
VALUE(__u32, VMEM_WAIT_READY);
VALUE(__u32, VMEM_READY);
VALUE(__u32, VMEM_GET_PAGE_REQUEST);
VALUE(__u32, VMEM_MARK_PAGE_CACHED);
VALUE(__u32, VMEM_MAKE_PAGES_PRESENT);
VALUE(__u32, VMEM_MAKE_VMA_ANONYMOUS);
VALUE(__u32, VMEM_FILL_PAGES);
VALUE(__u32, VMEM_GET_PRESENT);
VALUE(__u32, VMEM_GET_INFO);
VALUE(__u32, VMEM_GET_MAP_FD);
VALUE(__u32, VMEM_TRACK);
VALUE(__u32, VMEM_UNTRACK);
VALUE(__u32, VMEM_DIRTY);
VALUE(__u32, VMEM_GET_TRACKING);
