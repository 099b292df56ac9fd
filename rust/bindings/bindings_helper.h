/* SPDX-License-Identifier: GPL-2.0 */
/* The only input of bindgen; see rust/bindings/generate. */
#include <linux/fadvise.h>
#include <linux/falloc.h>

#include "../../include/uapi/linux/vmem.h"
#include "../sys/helpers.h"

/* bindgen cannot evaluate _IOWR(): give it constants. */
#define IOCTL(name) static const __u32 VMEM_IOCTL_##name = VMEM_##name
IOCTL(GET_FEATURES);
IOCTL(CREATE_VMEM);
IOCTL(ATTACH);
IOCTL(ADOPT);
IOCTL(WAIT_READY);
IOCTL(READY);
IOCTL(GET_PAGE_REQUEST);
IOCTL(MARK_PAGE_CACHED);
IOCTL(MAKE_PAGES_PRESENT);
IOCTL(MAKE_VMA_ANONYMOUS);
IOCTL(FILL_PAGES);
IOCTL(GET_PRESENT);
IOCTL(GET_INFO);
IOCTL(GET_MAP_FD);
IOCTL(SET_BACKING);
IOCTL(RESUME);
IOCTL(TRACK);
IOCTL(UNTRACK);
IOCTL(DIRTY);
IOCTL(GET_TRACKING);
IOCTL(SNAPSHOT);
IOCTL(SNAPSHOT_DONE);
IOCTL(GET_SNAPSHOT);
