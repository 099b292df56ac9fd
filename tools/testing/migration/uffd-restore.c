// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Restores the memory of a QEMU as the example handlers of Firecracker do: the memory is missing, and a userfaultfd handler copies it from a
 * mapped file. For LD_PRELOAD. The handler is a thread of QEMU and not a process of its own, which spares it a change of address spaces.
 *
 *	UFFD_RESTORE_FILE	the memory: a file. A shared mapping of a file of this size is QEMU's memory
 *	UFFD_RESTORE_PAGES	pages that are copied for a fault; 0 for all of the memory at the first one
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
#define PIECE (2ul << 20)

static struct {
	int uffd;
	const char *file;
	char *memory;
	size_t size;
	size_t pages;
} served = { .uffd = -1 };

static void die(const char *what)
{
	fprintf(stderr, "uffd-restore: %s: %m\n", what);
	_exit(1);
}

/* Copies a piece; of one that is there in part, the pages that are not. */
static void copy(size_t from, size_t size)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)served.memory + from,
		.src = (uintptr_t)served.file + from,
		.len = size,
	};

	while (ioctl(served.uffd, UFFDIO_COPY, &copy)) {
		size_t done = copy.copy > 0 ? copy.copy : 0;

		if (errno != EAGAIN && errno != EEXIST)
			die("UFFDIO_COPY");
		/* A page that is there already, and nobody waits for it any more. */
		if (errno == EEXIST) {
			struct uffdio_range range = { copy.dst + done, PAGE };

			ioctl(served.uffd, UFFDIO_WAKE, &range);
			done += PAGE;
		}
		if (done >= copy.len)
			return;
		copy.dst += done;
		copy.src += done;
		copy.len -= done;
		copy.copy = 0;
	}
}

static void *serve(void *unused)
{
	struct uffd_msg msg;

	for (;;) {
		ssize_t got = read(served.uffd, &msg, sizeof(msg));

		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
			die("read of the userfaultfd");
		if (served.pages) {
			size_t piece = served.pages * PAGE;
			size_t from = (msg.arg.pagefault.address - (uintptr_t)served.memory) / piece * piece;

			copy(from, from + piece > served.size ? served.size - from : piece);
		} else {
			for (size_t from = 0; from < served.size; from += PIECE)
				copy(from, from + PIECE > served.size ? served.size - from : PIECE);
		}
	}
	return unused;
}

static void begin(void *memory, size_t size, const char *path)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	struct uffdio_register reg = { { (uintptr_t)memory, size }, UFFDIO_REGISTER_MODE_MISSING, 0 };
	const char *pages = getenv("UFFD_RESTORE_PAGES");
	void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
	int file = open(path, O_RDONLY | O_CLOEXEC);
	pthread_t thread;

	served.memory = memory;
	served.size = size;
	served.pages = pages ? strtoul(pages, NULL, 10) : 1;
	served.file = real(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
	served.uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (file < 0 || served.file == MAP_FAILED || served.uffd < 0)
		die("cannot begin");
	if (ioctl(served.uffd, UFFDIO_API, &api) || ioctl(served.uffd, UFFDIO_REGISTER, &reg))
		die("cannot register the memory");
	if (pthread_create(&thread, NULL, serve, NULL))
		die("no thread");
	fprintf(stderr, "uffd-restore: serves %zu bytes\n", size);
}

void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
	void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
	void *memory = real(address, length, prot, flags, fd, offset);
	const char *path = getenv("UFFD_RESTORE_FILE");
	struct stat file;

	if (memory != MAP_FAILED && path && fd >= 0 && (flags & MAP_SHARED) && served.uffd < 0 && !stat(path, &file) &&
	    (size_t)file.st_size == length)
		begin(memory, length, path);
	return memory;
}

void *mmap64(void *address, size_t length, int prot, int flags, int fd, off_t offset)
{
	return mmap(address, length, prot, flags, fd, offset);
}
