// SPDX-License-Identifier: GPL-2.0-or-later
/* What the kernel does to pages by itself, and ways to write that go past the page tables. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "tests/vm/cases/cases.h"

#define PAGES 512ul
#define MADV_OUT 21 /* MADV_PAGEOUT */

static struct mirror settled(char **at, int flags)
{
	struct mirror mirror;

	small_pages();
	*at = map(PAGES * PAGE, flags);
	for (size_t i = 0; i < PAGES * PAGE / 8; i++) ((uint64_t *)*at)[i] = i * 0x9e3779b97f4a7c15ull;
	mirror = mirror_of(0, *at, PAGES * PAGE);
	settle(&mirror, PAGES);
	settle(&mirror, SLACK);
	return mirror;
}

static size_t swapped(const char *at)
{
	uint64_t entries[PAGES];
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t count = 0;

	CHECK(pread(fd, entries, sizeof entries, (off_t)((uintptr_t)at / PAGE * 8)) == sizeof entries);
	close(fd);
	for (size_t i = 0; i < PAGES; i++) count += entries[i] >> 62 & 1;
	return count;
}

static void swap_private(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	at[3 * PAGE] = 7; /* written, then out before anybody looks */
	CHECK(madvise(at, PAGES * PAGE, MADV_OUT) == 0);
	if (swapped(at) < PAGES / 2) skip("no swap: %zu pages out", swapped(at));
	/* Comparing would bring them in: only the written page is looked at. */
	CHECK(sync_mirror(&mirror) <= 1 + SLACK);
	CHECK(swapped(at) >= PAGES / 2 - 2);
	for (size_t i = 0; i < PAGES; i += 2) (void)*(volatile char *)(at + i * PAGE); /* in, unwritten */
	at[5 * PAGE] = 8;
	settle(&mirror, 1 + SLACK);
	CHECK(madvise(at, PAGES * PAGE, MADV_OUT) == 0);
	at[7 * PAGE] = 9; /* in by a write */
	(void)*(volatile char *)(at + 8 * PAGE);
	at[8 * PAGE] = 9;
	settle(&mirror, 2 + SLACK);
	CHECK(madvise(at, PAGES * PAGE, MADV_OUT) == 0);
	CHECK(madvise(at, 4 * PAGE, MADV_DONTNEED) == 0); /* discarded while out */
	settle(&mirror, 4 + SLACK);
}

static void swap_shared(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_SHARED);

	at[3 * PAGE] = 7;
	CHECK(madvise(at, PAGES * PAGE, MADV_OUT) == 0);
	settle(&mirror, PAGES);
	for (size_t i = 0; i < PAGES; i += 2) (void)*(volatile char *)(at + i * PAGE);
	at[4 * PAGE] = 7, at[5 * PAGE] = 7;
	settle(&mirror, PAGES);
	at[4 * PAGE] = 8;
	settle(&mirror, 1 + SLACK);
}

static void same_page_merging(void)
{
	char *at = map(PAGES * PAGE, MAP_PRIVATE);
	struct mirror mirror;
	int merged = 0;

	small_pages();
	memset(at, 5, PAGES * PAGE);
	mirror = mirror_of(0, at, PAGES * PAGE);
	settle(&mirror, PAGES);
	if (madvise(at, PAGES * PAGE, MADV_MERGEABLE) != 0) skip("no KSM: %m");
	write_text("/sys/kernel/mm/ksm/pages_to_scan", "20000");
	write_text("/sys/kernel/mm/ksm/sleep_millisecs", "10");
	write_text("/sys/kernel/mm/ksm/run", "1");
	for (int i = 0; i < 100 && merged < 100; i++) {
		FILE *file = fopen("/sys/kernel/mm/ksm/pages_sharing", "r");

		CHECK(fscanf(file, "%d", &merged) == 1);
		fclose(file);
		usleep(50000);
		if (i % 10 == 3) {
			at[(size_t)i * PAGE] = (char)i;
			settle(&mirror, PAGES);
		}
	}
	if (merged < 100) skip("only %d pages were merged", merged);
	settle(&mirror, PAGES);
	for (int i = 0; i < 20; i++) at[(size_t)i * 9 * PAGE + 1] = (char)i; /* a write takes a page apart */
	settle(&mirror, PAGES);
	write_text("/sys/kernel/mm/ksm/run", "2");
	at[8 * PAGE] = 6;
	settle(&mirror, PAGES);
}

static atomic_bool compacting;

static void *compact(void *arg)
{
	(void)arg;
	while (atomic_load(&compacting)) {
		write_text("/proc/sys/vm/compact_memory", "1");
		usleep(1000);
	}
	return NULL;
}

/* Pages move in memory while they are written and collected. */
static void compaction(void)
{
	char *at, *holes;
	struct mirror mirror = settled(&at, MAP_PRIVATE);
	unsigned seed = 3;
	pthread_t thread;

	holes = map(64ul << 20, MAP_PRIVATE);
	for (size_t i = 0; i < 64ul << 20; i += PAGE) holes[i] = 1;
	for (size_t i = 0; i < 64ul << 20; i += 2 * PAGE) madvise(holes + i, PAGE, MADV_DONTNEED);
	atomic_store(&compacting, true);
	CHECK(pthread_create(&thread, NULL, compact, NULL) == 0);
	for (int round = 0; round < 60; round++) {
		for (int i = 0; i < 20; i++) at[(size_t)rand_r(&seed) % PAGES * PAGE] = (char)round;
		sync_mirror(&mirror);
		expect_equal(&mirror);
	}
	atomic_store(&compacting, false);
	pthread_join(thread, NULL);
}

static void direct_read(void)
{
	struct mirror mirror;
	char *at, *source = map(64 * PAGE, MAP_PRIVATE);
	int file = open("/run/disk/direct", O_RDWR | O_CREAT | O_DIRECT, 0600);

	if (file < 0) skip("no /run/disk with O_DIRECT: %m");
	mirror = settled(&at, MAP_PRIVATE);
	for (int round = 0; round < 10; round++) {
		memset(source, round + 60, 64 * PAGE);
		CHECK(pwrite(file, source, 64 * PAGE, 0) == (ssize_t)(64 * PAGE));
		CHECK(pread(file, at + (size_t)round * 20 * PAGE, 16 * PAGE, (off_t)((size_t)round * PAGE)) == (ssize_t)(16 * PAGE));
		settle(&mirror, 16 + SLACK);
	}
}

static atomic_bool reading;

static void *read_often(void *arg)
{
	int file = open("/run/disk/direct2", O_RDWR | O_CREAT | O_DIRECT, 0600);
	char *source = map(64 * PAGE, MAP_PRIVATE), *at = arg;

	for (int round = 0; atomic_load(&reading); round++) {
		memset(source, round, 64 * PAGE);
		if (pwrite(file, source, 64 * PAGE, 0) < 0 || pread(file, at, 64 * PAGE, 0) < 0) break;
	}
	return NULL;
}

/* A read that is under way when pages are tracked afresh writes to them later, without any fault. */
static void direct_read_under_way(void)
{
	struct mirror mirror;
	pthread_t thread;
	char *at;
	int file = open("/run/disk/direct2", O_RDWR | O_CREAT | O_DIRECT, 0600);

	if (file < 0) skip("no /run/disk with O_DIRECT: %m");
	mirror = settled(&at, MAP_PRIVATE);
	for (int round = 0; round < 10; round++) {
		atomic_store(&reading, true);
		CHECK(pthread_create(&thread, NULL, read_often, at) == 0);
		for (int i = 0; i < 100; i++) sync_mirror(&mirror);
		atomic_store(&reading, false);
		pthread_join(thread, NULL);
		sync_mirror(&mirror);
		expect_equal(&mirror);
	}
}

static void hugetlb(void)
{
	struct records records = { 0 };
	char *at;
	int fd;

	write_text("/proc/sys/vm/nr_hugepages", "4");
	at = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (at == MAP_FAILED) {
		write_text("/proc/sys/vm/nr_hugepages", "0");
		skip("no hugetlb pages: %m");
	}
	fd = track(0);
	for (int i = 0; i < 4; i++) {
		at[(size_t)i * PAGE] = 1;
		collect(fd, (uintptr_t)at, (uintptr_t)at + 2 * HUGE, false, 0, 16, &records);
		CHECK(mapping_flags_of(&records, (uintptr_t)at) & ICP_RANGE_WHOLE);
	}
	munmap(at, 2 * HUGE);
	/* The range is ordinary memory now: all new. */
	CHECK(mmap(at, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	at[0] = 1;
	collect(fd, (uintptr_t)at, (uintptr_t)at + 2 * HUGE, false, 0, 16, &records);
	CHECK(mapping_flags_of(&records, (uintptr_t)at) & ICP_RANGE_NEW);
	write_text("/proc/sys/vm/nr_hugepages", "0");
}

/* userfaultfd's copies install pages without a fault. */
static void userfaultfd_copy(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .len = 4 * PAGE };
	char *at, *source = map(4 * PAGE, MAP_PRIVATE);
	struct mirror mirror = settled(&at, MAP_PRIVATE);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0) skip("no userfaultfd: %m");
	CHECK(ioctl(uffd, UFFDIO_API, &api) == 0);
	area.range.start = (uintptr_t)at;
	area.range.len = PAGES * PAGE;
	CHECK(ioctl(uffd, UFFDIO_REGISTER, &area) == 0);
	CHECK(madvise(at + 100 * PAGE, 100 * PAGE, MADV_DONTNEED) == 0);
	sync_mirror(&mirror); /* all of it is settled now, holes included */
	for (int i = 0; i < 10; i++) {
		memset(source, 100 + i, 4 * PAGE);
		copy.dst = (uintptr_t)at + (size_t)(100 + i * 8) * PAGE;
		copy.src = (uintptr_t)source;
		CHECK(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
		CHECK(sync_mirror(&mirror) <= 4 + SLACK);
		CHECK(memcmp(mirror.copy + (size_t)(100 + i * 8) * PAGE, source, 4 * PAGE) == 0);
	}
	memset(source, 7, 4 * PAGE);
	copy.dst = (uintptr_t)at + 190 * PAGE;
	CHECK(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
	close(uffd);
	at[10 * PAGE] = 1;
	settle(&mirror, 5 + SLACK);
}

/* Its write protection shares the write bit with ours: pages that were written before it, and after it is taken away. */
static void userfaultfd_protect(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register area = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect change = { .range.len = 40 * PAGE };
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0) skip("no userfaultfd with write protection: %m");
	area.range.start = (uintptr_t)at;
	area.range.len = PAGES * PAGE;
	CHECK(ioctl(uffd, UFFDIO_REGISTER, &area) == 0);
	for (size_t i = 0; i < 10; i++) {
		char *part = at + i * 40 * PAGE;

		part[5 * PAGE] = (char)i;
		change.range.start = (uintptr_t)part;
		change.mode = UFFDIO_WRITEPROTECT_MODE_WP;
		CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &change) == 0);
		if (i % 2) settle(&mirror, 1 + SLACK);
		change.mode = 0;
		CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &change) == 0);
		part[20 * PAGE] = (char)i;
		settle(&mirror, 2 + SLACK);
	}
	change.mode = UFFDIO_WRITEPROTECT_MODE_WP;
	CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &change) == 0);
	close(uffd);
	at[370 * PAGE] = 1;
	settle(&mirror, 1 + SLACK);
}

const struct test_case kernel_cases[] = {
	{ "swap_private", swap_private, 0 },
	{ "swap_shared", swap_shared, 0 },
	{ "ksm", same_page_merging, 0 },
	{ "compaction", compaction, 0 },
	{ "direct_read", direct_read, 0 },
	{ "direct_read_under_way", direct_read_under_way, 0 },
	{ "hugetlb", hugetlb, 0 },
	{ "userfaultfd", userfaultfd_copy, 0 },
	{ "userfaultfd_protect", userfaultfd_protect, 0 },
	{ 0 },
};
