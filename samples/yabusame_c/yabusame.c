// SPDX-License-Identifier: GPL-2.0
/*
 * The test program of 2011, on the bare header.
 *
 * Eight pages. The child is the daemon: it fills page 0 ahead and answers
 * requests with pages filled by a running number. The parent is the reader: it
 * touches the pages out of order, with a pause before the third and the
 * seventh touch, and says what it reads. When all is there, the region becomes
 * plain memory, the daemon ends, and the reader reads everything once more.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vmem.h>

#define PAGE 4096u
#define PAGES 8u
#define FIRST_NUMBER 100

/* The pages in the order of their touch, each with the number that it then holds. */
static const struct {
	unsigned int pgoff;
	unsigned char number;
} touches[PAGES] = {
	{ 7, 101 }, { 1, 102 }, { 6, 103 }, { 2, 104 },
	{ 0, FIRST_NUMBER }, { 5, 105 }, { 3, 106 }, { 4, 107 },
};

static void die(const char *what)
{
	fprintf(stderr, "yabusame: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The old way of 2011: into the staging file, marked, then into the page tables. */
static void fill(int vmem, int shmem, uint64_t pgoff, int number)
{
	unsigned char contents[PAGE];
	struct vmem_range range = { .pgoff = pgoff, .nr_pages = 1 };
	struct vmem_mark mark = { .ranges = (uintptr_t)&range, .nr = 1 };
	struct vmem_populate populate = { .ranges = (uintptr_t)&range, .nr = 1 };

	memset(contents, number, sizeof(contents));
	if (pwrite(shmem, contents, sizeof(contents), pgoff * PAGE) != sizeof(contents))
		die("writing to the staging file");
	if (ioctl(vmem, VMEM_MARK_PAGE_CACHED, &mark))
		die("MARK_PAGE_CACHED");
	if (ioctl(vmem, VMEM_MAKE_PAGES_PRESENT, &populate))
		die("MAKE_PAGES_PRESENT");
	printf("daemon: filled page %llu with %d\n", (unsigned long long)pgoff, number);
}

static void serve(int vmem, int shmem)
{
	unsigned int filled = 1;
	int number = FIRST_NUMBER;

	fill(vmem, shmem, 0, number);
	if (ioctl(vmem, VMEM_READY))
		die("READY");
	while (filled < PAGES) {
		__u64 pgoffs[PAGES];
		struct vmem_page_request request = {
			.pgoffs = (uintptr_t)pgoffs,
			.nr = PAGES,
		};

		if (ioctl(vmem, VMEM_GET_PAGE_REQUEST, &request))
			die("GET_PAGE_REQUEST");
		for (__u32 i = 0; i < request.nr; i++, filled++)
			fill(vmem, shmem, pgoffs[i], ++number);
	}
	if (ioctl(vmem, VMEM_MAKE_VMA_ANONYMOUS))
		die("MAKE_VMA_ANONYMOUS");
	printf("daemon: all pages are present, the region is plain memory\n");
}

/* The reader would wait for the pages of a daemon that has failed without end. */
static void daemon_ended(int signal)
{
	int status;

	(void)signal;
	if (waitpid(-1, &status, WNOHANG) > 0 && status != 0)
		_exit(1);
}

static int holds(const unsigned char *page, unsigned char number)
{
	for (unsigned int i = 0; i < PAGE; i++) {
		if (page[i] != number)
			return 0;
	}
	return 1;
}

static int check(const unsigned char *memory, unsigned int touch)
{
	unsigned int pgoff = touches[touch].pgoff;

	if (holds(memory + pgoff * PAGE, touches[touch].number))
		return 0;
	fprintf(stderr, "yabusame: page %u holds %d and not %d\n", pgoff,
		memory[pgoff * PAGE], touches[touch].number);
	return 1;
}

static int read_all(int map)
{
	const unsigned char *memory;
	struct vmem_info info;

	if (ioctl(map, VMEM_WAIT_READY))
		die("WAIT_READY");
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	printf("reader: the daemon is ready, the region is mapped\n");
	for (unsigned int i = 0; i < PAGES; i++) {
		if (i == 2 || i == 6) {
			printf("reader: sleeps\n");
			sleep(1);
		}
		if (check(memory, i))
			return 1;
		printf("reader: touch %u: page %u holds %d\n", i + 1, touches[i].pgoff,
		       touches[i].number);
	}

	/* The daemon's descriptors close when it ends, and the region has none left but this. */
	do {
		if (ioctl(map, VMEM_GET_INFO, &info))
			die("GET_INFO");
		usleep(10000);
	} while (info.state & VMEM_STATE_ATTACHED);
	if (!(info.state & VMEM_STATE_PLAIN)) {
		fprintf(stderr, "yabusame: the daemon is gone and the region is not plain\n");
		return 1;
	}
	for (unsigned int i = 0; i < PAGES; i++) {
		if (check(memory, i))
			return 1;
	}
	printf("reader: the daemon is gone, the memory is plain, all pages hold what they held\n");
	return 0;
}

int main(void)
{
	struct sigaction ended = { .sa_handler = daemon_ended, .sa_flags = SA_RESTART };
	struct vmem_create create = {
		.size = PAGES * PAGE,
		.uid = VMEM_ID_KEEP,
		.gid = VMEM_ID_KEEP,
	};
	struct vmem_map_fd map = { .fd = -1 };
	int control;
	pid_t child;

	setvbuf(stdout, NULL, _IOLBF, 0);
	control = open("/dev/vmem/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		die("/dev/vmem/control");
	if (ioctl(control, VMEM_CREATE_VMEM, &create))
		die("CREATE_VMEM");
	if (ioctl(create.vmem_fd, VMEM_GET_MAP_FD, &map))
		die("GET_MAP_FD");
	if (sigaction(SIGCHLD, &ended, NULL))
		die("sigaction");

	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		close(map.fd);
		serve(create.vmem_fd, create.shmem_fd);
		return 0;
	}
	/* The daemon is the child alone. */
	close(create.vmem_fd);
	close(create.shmem_fd);
	return read_all(map.fd);
}
