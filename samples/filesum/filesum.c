// SPDX-License-Identifier: GPL-2.0
/*
 * Adds up the bytes of a file, by read() and through a mapping, and says whether both
 * have found the same.
 *
 * Nothing in here is of vmem. The file of a region is a regular file, and this program
 * can be started on it while the contents are still on another machine:
 *
 *	filesum /run/vmem/guest0
 *
 * read() and the mapping wait for each page that is not there yet. A page that cannot
 * come is EIO for read(), and SIGBUS for the mapping, as on a disk that fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK 65536

static const char *path;

static void die(const char *what)
{
	fprintf(stderr, "filesum: %s: %s: %s\n", path, what, strerror(errno));
	exit(1);
}

static unsigned long long sum_of(const unsigned char *bytes, size_t count)
{
	unsigned long long sum = 0;

	while (count--)
		sum += *bytes++;
	return sum;
}

/* Each read() also asks for what comes next: pages that are still away come together. */
static unsigned long long sum_by_read(int fd, off_t size)
{
	static unsigned char bytes[CHUNK];
	unsigned long long sum = 0;
	off_t at = 0;
	ssize_t got;

	for (;;) {
		posix_fadvise(fd, at, 2 * CHUNK, POSIX_FADV_WILLNEED);
		got = read(fd, bytes, CHUNK);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			die("read");
		if (!got)
			break;
		sum += sum_of(bytes, got);
		at += got;
	}
	if (at != size) {
		fprintf(stderr, "filesum: %s: %jd bytes instead of %jd\n", path, (intmax_t)at,
			(intmax_t)size);
		exit(1);
	}
	return sum;
}

int main(int argc, char **argv)
{
	const unsigned char *bytes;
	unsigned long long by_map, by_read;
	struct stat stat;
	off_t half;
	int fd;

	if (argc != 2) {
		fprintf(stderr, "usage: filesum FILE\n");
		return 2;
	}
	path = argv[1];
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("open");
	if (fstat(fd, &stat))
		die("fstat");
	if (!S_ISREG(stat.st_mode) || !stat.st_size) {
		fprintf(stderr, "filesum: %s: not a regular file with contents\n", path);
		return 1;
	}
	bytes = mmap(NULL, stat.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (bytes == MAP_FAILED)
		die("mmap");
	/* While the file comes, the mapping waits for one half, and read() for the rest. */
	half = stat.st_size / 2;
	by_map = sum_of(bytes + half, stat.st_size - half);
	by_read = sum_by_read(fd, stat.st_size);
	by_map += sum_of(bytes, half);
	if (by_read != by_map) {
		fprintf(stderr, "filesum: %s: read() finds %llu, and the mapping %llu\n", path,
			by_read, by_map);
		return 1;
	}
	printf("%llu %jd %s\n", by_map, (intmax_t)stat.st_size, path);
	return 0;
}
