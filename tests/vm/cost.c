// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it costs to find the written pages, by each way that this kernel offers. In a machine without hardware
 * virtualization only ratios mean something, hence all in one run.
 *
 *   icp_track_cost passes MIB   a row for each share of pages written between two passes
 *   icp_track_cost faults       nanoseconds of a page fault of a process that nobody tracks
 *   icp_track_cost faults beside  the same, while another process is tracked
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kmod/uapi/icp_track.h"

#define PAGE 4096ul
#define ROUNDS 5
#define RUN 64 /* pages */

static char *memory;
static size_t pages;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* What others do on the machine only adds to a time. */
static double least(const double *values, int count)
{
	double found = values[0];

	for (int i = 1; i < count; i++)
		if (values[i] < found) found = values[i];
	return found;
}

/* A way to find written pages: `pass` returns how many were written, and tracks them afresh. */
struct way {
	const char *name;
	bool (*begin)(void);
	size_t (*pass)(void);
	void (*end)(void);
};

/* ---- the module ---- */

static int device = -1;

static int track(pid_t pid)
{
	struct icp_hello hello = { .abi = ICP_TRACK_ABI };
	struct icp_track wanted = { .flags = 0 };
	int fd = open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0) return -1;
	wanted.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (ioctl(fd, ICP_IOC_HELLO, &hello) != 0 || ioctl(fd, ICP_IOC_TRACK, &wanted) != 0) die("icp_track");
	close(wanted.pidfd);
	return fd;
}

static bool module_begin(void)
{
	device = track(getpid());
	return device >= 0;
}

static size_t module_pass(void)
{
	static struct icp_range records[16384];
	uint64_t start = (uintptr_t)memory, end = start + pages * PAGE;
	size_t written = 0;

	while (start < end) {
		struct icp_collect arg = { .start = start, .end = end, .records = (uintptr_t)records, .capacity = 16384 };

		if (ioctl(device, ICP_IOC_COLLECT, &arg) != 0) die("COLLECT");
		for (uint32_t i = 0; i < arg.count; i++)
			if (records[i].flags & ICP_RANGE_WRITTEN) written += (records[i].end - records[i].start) / PAGE;
		start = arg.next;
	}
	return written;
}

static void module_end(void) { close(device); }

/* ---- soft-dirty bits ---- */

static int pagemap = -1, clear_refs = -1;

static bool soft_dirty_begin(void)
{
	static uint64_t entry;

	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	clear_refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	if (pagemap < 0 || clear_refs < 0 || write(clear_refs, "4", 1) != 1) return false;
	memory[0]++;
	/* Not every kernel has the bits. */
	return pread(pagemap, &entry, 8, (off_t)((uintptr_t)memory / PAGE * 8)) == 8 && (entry >> 55 & 1);
}

static size_t soft_dirty_pass(void)
{
	static uint64_t entries[32768];
	size_t written = 0;

	for (size_t first = 0; first < pages; first += 32768) {
		size_t count = pages - first < 32768 ? pages - first : 32768;

		if (pread(pagemap, entries, count * 8, (off_t)(((uintptr_t)memory / PAGE + first) * 8)) != (ssize_t)(count * 8))
			die("pagemap");
		for (size_t i = 0; i < count; i++) written += entries[i] >> 55 & 1;
	}
	if (write(clear_refs, "4", 1) != 1) die("clear_refs");
	return written;
}

static void soft_dirty_end(void)
{
	close(pagemap);
	close(clear_refs);
}

/* ---- userfaultfd: as engine/tracker/pagemap_scan.h, of which Debian 12's headers know nothing ---- */

struct region {
	uint64_t start, end, categories;
};
struct scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned;
};
#define SCAN _IOWR('f', 16, struct scan)
#define WP_UNPOPULATED (1u << 13)
#define WP_ASYNC (1u << 15)

static int uffd = -1;

static bool userfaultfd_begin(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = WP_UNPOPULATED | WP_ASYNC };
	struct uffdio_register range = { .range = { (uintptr_t)memory, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_WP };

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* faults of user mode */);
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0;
}

static size_t userfaultfd_pass(void)
{
	static struct region regions[512];
	struct scan arg = { .size = sizeof arg, .flags = 1 | 2 /* protect what matches, fail where it cannot */ };
	size_t written = 0;

	arg.start = (uintptr_t)memory, arg.end = arg.start + pages * PAGE;
	arg.vec = (uintptr_t)regions, arg.vec_len = 512;
	arg.mask = 2 /* written */, arg.anyof = 8 | 16 /* present, swapped */, arg.returned = 2;
	while (arg.start < arg.end) {
		int count = ioctl(pagemap, SCAN, &arg);

		if (count < 0) die("PAGEMAP_SCAN");
		for (int i = 0; i < count; i++) written += (regions[i].end - regions[i].start) / PAGE;
		arg.start = arg.walk_end;
	}
	return written;
}

static void userfaultfd_end(void)
{
	close(uffd);
	close(pagemap);
}

static const struct way ways[] = {
	{ "module", module_begin, module_pass, module_end },
	{ "soft-dirty", soft_dirty_begin, soft_dirty_pass, soft_dirty_end },
	{ "userfaultfd", userfaultfd_begin, userfaultfd_pass, userfaultfd_end },
};
#define WAYS (sizeof ways / sizeof ways[0])

/* ---- passes ---- */

/* Which pages are written: `count` different ones, alone or in runs. */
static void choose(uint32_t *chosen, size_t count, bool runs, unsigned seed)
{
	size_t unit = runs ? RUN : 1, units = pages / unit, wanted = (count + unit - 1) / unit;
	uint32_t *order = malloc(units * sizeof *order);

	for (size_t i = 0; i < units; i++) order[i] = (uint32_t)i;
	for (size_t i = 0; i < wanted; i++) {
		size_t other = i + ((size_t)rand_r(&seed) << 15 ^ (size_t)rand_r(&seed)) % (units - i);
		uint32_t swap = order[i];

		order[i] = order[other], order[other] = swap;
	}
	for (size_t i = 0; i < count; i++) chosen[i] = (uint32_t)(order[i / unit] * unit + i % unit);
	free(order);
}

static double write_pages(const uint32_t *chosen, size_t count)
{
	double begin = now();

	for (size_t i = 0; i < count; i++) ((volatile char *)memory)[chosen[i] * PAGE]++;
	return now() - begin;
}

/* Least seconds of a pass, and what the first write to a page costs more than a later one, in seconds. */
static void measure(const struct way *way, size_t count, bool runs, double *pass, double *write)
{
	uint32_t *chosen = malloc(count * sizeof *chosen);
	double passes[ROUNDS], first[ROUNDS], later[ROUNDS];

	for (int round = 0; round < ROUNDS; round++) {
		double begin;
		size_t written;

		choose(chosen, count, runs, (unsigned)round + 1);
		first[round] = write_pages(chosen, count);
		later[round] = write_pages(chosen, count);
		begin = now();
		written = way->pass();
		passes[round] = now() - begin;
		if (written < count || written > count + count / 10 + 600) {
			printf("FAIL %s found %zu of %zu pages\n", way->name, written, count);
			exit(1);
		}
	}
	*pass = least(passes, ROUNDS);
	*write = (least(first, ROUNDS) - least(later, ROUNDS)) / (double)count;
	free(chosen);
}

static int passes(size_t mib)
{
	static const double shares[] = { 0.001, 0.01, 0.1, 1 };
	double results[2 * 4][WAYS][2];
	const struct way *there[WAYS];
	size_t found = 0;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	pages = mib << 8;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) die("mmap");
	memset(memory, 1, pages * PAGE);
	for (size_t way = 0; way < WAYS; way++) {
		if (!ways[way].begin()) {
			ways[way].end();
			continue;
		}
		there[found] = &ways[way];
		ways[way].pass();
		ways[way].pass();
		for (int row = 0; row < 8; row++)
			measure(&ways[way], (size_t)((double)pages * shares[row / 2]), row % 2, &results[row][found][0], &results[row][found][1]);
		ways[way].end();
		found++;
	}
	printf("%zu MiB; pass: ms, and by how much longer than the first way; first write to a page: us more\n", mib);
	printf("%-16s |", "written");
	for (size_t i = 0; i < found; i++) printf(" %-23s |", there[i]->name);
	printf("\n");
	for (int row = 0; row < 8; row++) {
		printf("%5.1f %% %-8s |", shares[row / 2] * 100, row % 2 ? "runs" : "random");
		for (size_t i = 0; i < found; i++)
			printf(" %9.3f %6.2f %6.2f |", results[row][i][0] * 1e3, results[row][i][0] / results[row][0][0],
			       results[row][i][1] * 1e6);
		printf("\n");
	}
	return found == 0;
}

/* ---- processes that are not tracked ---- */

static int faults(bool beside)
{
	const size_t bytes = 8ul << 20;
	double times[41];
	pid_t child = 0;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (beside) {
		child = fork();
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) pause();
		}
		if (track(child) < 0) die(ICP_TRACK_DEVICE);
	}
	for (int round = 0; round < 41; round++) {
		char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		double begin = now();

		for (size_t i = 0; i < bytes; i += PAGE) at[i] = 1;
		times[round] = (now() - begin) / (double)(bytes / PAGE);
		munmap(at, bytes);
	}
	if (child) kill(child, SIGKILL);
	printf("%.0f\n", least(times, 41) * 1e9);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "passes") == 0) return passes(strtoul(argv[2], NULL, 10));
	if (argc >= 2 && strcmp(argv[1], "faults") == 0) return faults(argc > 2);
	fprintf(stderr, "usage: icp_track_cost passes MIB | faults [beside]\n");
	return 2;
}
