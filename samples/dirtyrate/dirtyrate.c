// SPDX-License-Identifier: GPL-2.0
/*
 * How fast a running program writes to its shared memory, on the bare header.
 *
 * The program knows nothing of vmem and takes no part. Its memory is adopted by
 * the descriptor that it has itself, its writes are logged for some seconds, and
 * then the memory is as before.
 *
 * With --verify the memory is copied meanwhile, as a migration or a backup would
 * do: first all of it, then each second what the log has. In the end the program
 * is stopped for a moment, the last pages are copied, and the copy has to be equal
 * to the memory.
 *
 * With --snapshot FILE the program is stopped for a moment in the end, all of its memory
 * is copied, and a snapshot is taken. The program goes on and writes to its memory. Only
 * then the snapshot is written to FILE, which has to be equal to the copy.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/vmem.h>

#define PAGE 4096u
#define MIB (1024 * 1024.0)
#define CHUNK 1048576u

/* A program that does not stop within this many milliseconds hangs in the kernel. */
#define STOP_MS 10000

/* For so long the program writes after a snapshot of it before that is read. */
#define WRITE_SECONDS 2

struct memory {
	char path[PATH_MAX];	/* as /proc/PID/fd shows it */
	int fd;			/* the program's own open file */
	int vmem;		/* the adopted descriptor */
	__u64 pages;
};

/* The program, and whether it is stopped. */
static int process = -1;
static int is_stopped;

static void die(const char *what)
{
	fprintf(stderr, "dirtyrate: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void fail(const char *what, const char *name)
{
	fprintf(stderr, "dirtyrate: %s: %s\n", name, what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/*
 * Takes the program's descriptor number fd. It has to be the same open file: an open of
 * /proc/PID/fd/FD would be a second one, and the memory could not be adopted.
 */
static int take_descriptor(int fd, struct stat *stat)
{
	int taken = syscall(SYS_pidfd_getfd, process, fd, 0);

	if (taken < 0 && (errno == EPERM || errno == EACCES))
		die("pidfd_getfd (only root may look into any process)");
	if (taken < 0)
		return -1;
	/* The memory is read through it, and has to be open for writing to be adopted. */
	if (fstat(taken, stat) || !S_ISREG(stat->st_mode) ||
	    (fcntl(taken, F_GETFL) & O_ACCMODE) != O_RDWR) {
		close(taken);
		return -1;
	}
	return taken;
}

/* Finds the shared memory of the program that has this in its path. */
static void find(struct memory *memory, const char *pid, const char *name)
{
	char directory[64], link[PATH_MAX];
	struct stat stat, found = {};
	struct dirent *entry;
	DIR *fds;

	snprintf(directory, sizeof(directory), "/proc/%s/fd", pid);
	fds = opendir(directory);
	if (!fds)
		die(directory);
	memory->fd = -1;
	while ((entry = readdir(fds))) {
		ssize_t len = readlinkat(dirfd(fds), entry->d_name, link, sizeof(link) - 1);
		int taken;

		if (len < 0)
			continue;
		link[len] = 0;
		if (!strstr(link, name))
			continue;
		taken = take_descriptor(atoi(entry->d_name), &stat);
		if (taken < 0)
			continue;
		if (memory->fd < 0) {
			memory->fd = taken;
			found = stat;
			memcpy(memory->path, link, len + 1);
			continue;
		}
		close(taken);
		if (stat.st_dev != found.st_dev || stat.st_ino != found.st_ino)
			fail("several files of the program have this in their path", name);
	}
	closedir(fds);
	if (memory->fd < 0)
		fail("the program has no such file open for reading and writing", name);
}

static void adopt(struct memory *memory)
{
	int control = open("/dev/vmem/control", O_RDWR | O_CLOEXEC);
	struct vmem_adopt adopt = { .fd = memory->fd };

	if (control < 0)
		die("/dev/vmem/control");
	if (ioctl(control, VMEM_ADOPT, &adopt))
		die(errno == EBUSY ? "ADOPT (adopted already, or open for writing a second time)" :
		    "ADOPT");
	close(control);
	memory->vmem = adopt.vmem_fd;
	memory->pages = adopt.size / PAGE;
}

/* Copies pages of the memory. To read a file is no write: it does not make them dirty. */
static void copy_pages(const struct memory *memory, __u64 pgoff, __u64 nr_pages,
		       unsigned char *to)
{
	__u64 at = pgoff * PAGE, end = at + nr_pages * PAGE;

	while (at < end) {
		ssize_t len = pread(memory->fd, to, end - at, at);

		if (len < 0 && errno == EINTR)
			continue;
		if (len < 0)
			die("reading the memory");
		if (!len) {
			/* The file ends within its last page. */
			memset(to, 0, end - at);
			return;
		}
		at += len;
		to += len;
	}
}

/*
 * Takes all pages out of the log, and brings the copy, if there is one, up to date. A page
 * is read after the call that has protected it again: what is written to it later is for
 * the next round. Returns how many pages those were.
 */
static __u64 take_round(const struct memory *memory, unsigned char *copy)
{
	static struct vmem_range ranges[VMEM_MAX_BATCH];
	__u64 pgoff = 0, dirty = 0;

	while (pgoff < memory->pages) {
		struct vmem_dirty call = {
			.pgoff = pgoff,
			.nr_pages = memory->pages - pgoff,
			.out = (uintptr_t)ranges,
			.nr = VMEM_MAX_BATCH,
			.flags = VMEM_DIRTY_CLEAN | VMEM_DIRTY_RANGES,
		};

		if (ioctl(memory->vmem, VMEM_DIRTY, &call))
			die("DIRTY");
		for (__u32 i = 0; copy && i < call.nr; i++)
			copy_pages(memory, ranges[i].pgoff, ranges[i].nr_pages,
				   copy + ranges[i].pgoff * PAGE);
		pgoff += call.done;
		dirty += call.dirty;
	}
	return dirty;
}

static int is_in_log(const struct memory *memory, __u64 pgoff)
{
	struct vmem_range range;
	struct vmem_dirty call = {
		.pgoff = pgoff,
		.nr_pages = 1,
		.out = (uintptr_t)&range,
		.nr = 1,
		.flags = VMEM_DIRTY_RANGES,
	};

	if (ioctl(memory->vmem, VMEM_DIRTY, &call))
		die("DIRTY");
	return call.dirty != 0;
}

static void resume(void)
{
	if (is_stopped)
		syscall(SYS_pidfd_send_signal, process, SIGCONT, NULL, 0);
	is_stopped = 0;
}

/* Whether all threads of the program are stopped, or have ended. */
static int are_stopped(const char *pid)
{
	char path[300], line[512];
	struct dirent *entry;
	int stopped = 1;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	tasks = opendir(path);
	while (tasks && stopped && (entry = readdir(tasks))) {
		const char *state;
		FILE *stat;

		snprintf(path, sizeof(path), "/proc/%s/task/%s/stat", pid, entry->d_name);
		stat = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
		if (!stat)
			continue;
		/* The name, in parentheses, may have any character in it. */
		if (fgets(line, sizeof(line), stat)) {
			state = strrchr(line, ')');
			stopped = state && state[1] && strchr("TtZX", state[2]);
		}
		fclose(stat);
	}
	if (tasks)
		closedir(tasks);
	return stopped;
}

static void stop_program(const char *pid)
{
	double since = now();

	is_stopped = 1;
	if (syscall(SYS_pidfd_send_signal, process, SIGSTOP, NULL, 0) && errno != ESRCH)
		die("stopping the program");
	while (!are_stopped(pid)) {
		if ((now() - since) * 1000 > STOP_MS)
			fail("the program does not stop", pid);
		usleep(1000);
	}
}

/*
 * Compares the copy with the memory, or with a snapshot of it. If somebody else writes to
 * it as well, who was not stopped, a page may differ; but then it is in the log.
 */
static int compare(const char *what, const struct memory *memory, const unsigned char *copy)
{
	unsigned char page[PAGE];
	__u64 later = 0, lost = 0;

	for (__u64 pgoff = 0; pgoff < memory->pages; pgoff++) {
		copy_pages(memory, pgoff, 1, page);
		if (!memcmp(page, copy + pgoff * PAGE, PAGE))
			continue;
		if (is_in_log(memory, pgoff)) {
			later++;
			continue;
		}
		if (!lost++)
			fprintf(stderr, "dirtyrate: page %llu differs and is not in the log\n",
				(unsigned long long)pgoff);
	}
	printf("%s: %llu pages are equal, %llu are written to by others, %llu are lost\n", what,
	       (unsigned long long)(memory->pages - later - lost), (unsigned long long)later,
	       (unsigned long long)lost);
	return lost != 0;
}

static int verify(const struct memory *memory, const char *pid, unsigned char *copy)
{
	__u64 dirty;
	int status;

	stop_program(pid);
	dirty = take_round(memory, copy);
	printf("last round, the program is stopped: %llu pages\n", (unsigned long long)dirty);
	status = compare("verify", memory, copy);
	resume();
	return status;
}

/* The file is made before the program is stopped. What the memory holds is not for everybody. */
static int create(const char *path)
{
	int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (file < 0)
		die(path);
	return file;
}

/* Writes a snapshot to a file. Holes of the memory are holes of the file. */
static void write_image(int snapshot, int file, __u64 pages)
{
	static unsigned char bytes[CHUNK];
	off_t at = 0, hole = 0;

	if (ftruncate(file, pages * PAGE))
		die("writing the snapshot");
	while ((at = lseek(snapshot, hole, SEEK_DATA)) >= 0) {
		hole = lseek(snapshot, at, SEEK_HOLE);
		if (hole < 0)
			die("lseek of the snapshot");
		while (at < hole) {
			size_t len = hole - at < CHUNK ? hole - at : CHUNK;
			ssize_t got = pread(snapshot, bytes, len, at);

			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0)
				die(got < 0 && errno == ESTALE ?
				    "reading the snapshot (it has failed: no memory for a copy)" :
				    "reading the snapshot");
			if (pwrite(file, bytes, got, at) != got)
				die("writing the snapshot");
			at += got;
		}
	}
	if (errno != ENXIO)
		die("lseek of the snapshot");
}

/*
 * Has the snapshot written to a file, and compares that with what the memory held while the
 * program was stopped. Who else writes to the memory between that copy and the instant of
 * the snapshot has these pages in the log, which the snapshot has, too.
 */
static int take_snapshot(const struct memory *memory, const char *pid, int file,
			 unsigned char *copy)
{
	struct vmem_snapshot_member member = { .vmem_fd = memory->vmem };
	/* Each page is read once: its old contents are given back then. */
	struct vmem_snapshot call = {
		.members = (uintptr_t)&member,
		.nr = 1,
		.flags = VMEM_SNAPSHOT_ONCE,
	};
	struct memory image = { .fd = file, .pages = memory->pages };
	struct vmem_snapshot_info info;
	int status;

	stop_program(pid);
	take_round(memory, NULL);
	copy_pages(memory, 0, memory->pages, copy);
	if (ioctl(memory->vmem, VMEM_SNAPSHOT, &call))
		die(errno == ENOTTY ? "SNAPSHOT (this module cannot)" : "SNAPSHOT");
	resume();
	sleep(WRITE_SECONDS);

	image.vmem = member.snapshot_fd;
	write_image(image.vmem, file, image.pages);
	if (ioctl(image.vmem, VMEM_GET_SNAPSHOT, &info))
		die("GET_SNAPSHOT");
	printf("snapshot: writers were held up for %.2f ms, %llu pages were copied for them\n",
	       call.closed_ns / 1e6, (unsigned long long)info.copied);
	status = compare("snapshot", &image, copy);
	close(image.vmem);
	return status;
}

static void help(void)
{
	fprintf(stderr,
		"usage: dirtyrate [--seconds N] [--verify] [--snapshot FILE] PID NAME\n"
		"NAME is the path of the memory, or a part of it, as /proc/PID/fd shows it\n");
	exit(1);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "verify", no_argument, NULL, 'v' },
		{ "snapshot", required_argument, NULL, 'f' },
		{}
	};
	const struct timespec second = { .tv_sec = 1 };
	struct vmem_track track = {};
	unsigned char *copy = NULL;
	struct memory memory;
	sigset_t signals;
	long seconds = 10;
	int option, copies = 0, status = 0, file = -1;
	const char *path = NULL;
	const char *pid;
	double since;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 's')
			seconds = atol(optarg);
		else if (option == 'v')
			copies = 1;
		else if (option == 'f')
			path = optarg;
		else
			help();
	}
	if (argc - optind != 2 || seconds <= 0)
		help();
	pid = argv[optind];
	setvbuf(stdout, NULL, _IOLBF, 0);

	if (path)
		file = create(path);
	atexit(resume);
	process = syscall(SYS_pidfd_open, atoi(pid), 0);
	if (process < 0)
		die("pidfd_open");
	find(&memory, pid, argv[optind + 1]);
	adopt(&memory);
	/* They are waited for where nothing else is to be done: the end is in order. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		die("sigprocmask");
	if (ioctl(memory.vmem, VMEM_TRACK, &track))
		die("TRACK");
	printf("%s: %.1f MiB, %llu mappings, %llu pages are held\n", memory.path,
	       memory.pages * PAGE / MIB, (unsigned long long)track.mappings,
	       (unsigned long long)track.held);
	if (copies || path) {
		copy = malloc(memory.pages * PAGE);
		if (!copy)
			die("memory for the copy");
	}
	if (copies)
		copy_pages(&memory, 0, memory.pages, copy);

	since = now();
	while (seconds-- > 0 && sigtimedwait(&signals, NULL, &second) < 0) {
		__u64 dirty;
		double rate;

		dirty = take_round(&memory, copies ? copy : NULL);
		rate = dirty / (now() - since);
		since = now();
		printf("%10.0f pages/s %10.1f MiB/s\n", rate, rate * PAGE / MIB);
	}

	if (copies)
		status = verify(&memory, pid, copy);
	if (path)
		status |= take_snapshot(&memory, pid, file, copy);
	if (ioctl(memory.vmem, VMEM_UNTRACK))
		die("UNTRACK");
	free(copy);
	return status;
}
