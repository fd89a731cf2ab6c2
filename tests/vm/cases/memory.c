// SPDX-License-Identifier: GPL-2.0-or-later
/* One address space: everything a process does to its own memory. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/vm/cases/cases.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* 1024 pages, half of them with data, tracked and settled. */
#define PAGES 1024ul

static struct mirror settled(char **at, int flags)
{
	struct mirror mirror;

	small_pages();
	*at = map(PAGES * PAGE, flags);
	memset(*at, 1, PAGES / 2 * PAGE);
	mirror = mirror_of(0, *at, PAGES * PAGE);
	settle(&mirror, PAGES);
	settle(&mirror, SLACK);
	return mirror;
}

static void writes(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	settle(&mirror, 0);
	for (int round = 0; round < 20; round++) {
		at[(size_t)round * 7 * PAGE] = (char)(round + 2);
		at[(600 + (size_t)round) * PAGE + 4095] = (char)(round + 2);
		settle(&mirror, 2 + SLACK);
	}
	for (int i = 0; i < 4; i++) sync_mirror(&mirror);
	/* Old pages again: exactly those. */
	at[3 * PAGE] = 77, at[4 * PAGE] = 77, at[500 * PAGE] = 77;
	CHECK(sync_mirror(&mirror) == 3);
	expect_equal(&mirror);
	CHECK(sync_mirror(&mirror) == 0);
}

static void discards(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	CHECK(madvise(at + 10 * PAGE, 20 * PAGE, MADV_DONTNEED) == 0);
	settle(&mirror, 20 + SLACK);
	CHECK(madvise(at, PAGES * PAGE, MADV_DONTNEED) == 0);
	settle(&mirror, PAGES);
	memset(at, 3, PAGES * PAGE);
	CHECK(madvise(at, PAGES * PAGE, MADV_DONTNEED) == 0);
	at[7 * PAGE] = 4;
	settle(&mirror, PAGES);
}

static void frees(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	CHECK(madvise(at, 100 * PAGE, MADV_FREE) == 0);
	at[5 * PAGE] = 9;
	write_text("/proc/self/oom_score_adj", "0");
	CHECK(madvise(at, 100 * PAGE, 21 /* MADV_PAGEOUT: freed pages go */) == 0 || errno == EINVAL);
	settle(&mirror, 100 + SLACK);
}

static void removes(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_SHARED);

	CHECK(madvise(at + 4 * PAGE, 30 * PAGE, MADV_REMOVE) == 0);
	at[6 * PAGE] = 9;
	settle(&mirror, 30 + SLACK);
	CHECK(madvise(at, PAGES * PAGE, MADV_DONTNEED) == 0); /* of shared memory: the data stays */
	at[8 * PAGE] = 9;
	settle(&mirror, PAGES);
}

static void protections(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	CHECK(mprotect(at, 400 * PAGE, PROT_READ) == 0);
	settle(&mirror, SLACK);
	CHECK(mprotect(at, 400 * PAGE, PROT_READ | PROT_WRITE) == 0);
	at[11 * PAGE] = 5;
	settle(&mirror, 1 + SLACK);
	CHECK(mprotect(at + 100 * PAGE, 10 * PAGE, PROT_NONE) == 0);
	at[99 * PAGE] = 6;
	CHECK(mprotect(at + 100 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE) == 0);
	at[101 * PAGE] = 6;
	settle(&mirror, 2 + SLACK);
}

static void move_aligned(void)
{
	char *at = map(8 * HUGE, MAP_PRIVATE), *from, *to;
	struct mirror mirror;

	small_pages();
	from = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	to = from + 4 * HUGE;
	CHECK(munmap(to, 2 * HUGE) == 0);
	memset(from, 1, 2 * HUGE);
	mirror = mirror_of(0, from, 6 * HUGE);
	sync_mirror(&mirror);
	sync_mirror(&mirror);
	expect_equal(&mirror);
	CHECK(mremap(from, 2 * HUGE, 2 * HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	to[5 * PAGE] = 2;
	settle(&mirror, 6 * HUGE / PAGE);
}

/* Whole page tables move onto a range that was mapped and tracked before: the kernel's soft-dirty bits lose this. */
static void move_onto_mapped(void)
{
	char *at = map(9 * HUGE, MAP_PRIVATE), *from, *to;
	struct mirror mirror;

	small_pages();
	from = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	to = from + 4 * HUGE;
	memset(from, 1, 4 * HUGE);
	memset(to, 2, 4 * HUGE);
	mirror = mirror_of(0, from, 8 * HUGE);
	sync_mirror(&mirror);
	sync_mirror(&mirror);
	expect_equal(&mirror);
	CHECK(mremap(from, 4 * HUGE, 4 * HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	settle(&mirror, 8 * HUGE / PAGE);
	CHECK(to[0] == 1);
}

static void move_unaligned(void)
{
	char *at, *to, *aside = map(PAGES * PAGE, MAP_PRIVATE);
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	to = at + 600 * PAGE;
	CHECK(mremap(at + 3 * PAGE, 30 * PAGE, 30 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	settle(&mirror, 60 + SLACK);
	/* Out, written there, and back. */
	CHECK(mremap(at + 100 * PAGE, 50 * PAGE, 50 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside);
	aside[9 * PAGE] = 8;
	CHECK(mremap(aside, 50 * PAGE, 50 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 100 * PAGE) == at + 100 * PAGE);
	settle(&mirror, 50 + SLACK);
	/* Two ranges change places. */
	CHECK(mremap(at + 200 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside);
	CHECK(mremap(at + 300 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 200 * PAGE) ==
	      at + 200 * PAGE);
	CHECK(mremap(aside, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 300 * PAGE) == at + 300 * PAGE);
	settle(&mirror, 8 + SLACK);
}

static void replaced(void)
{
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	/* Unmapped and mapped again between two looks: the same bounds, other content. */
	CHECK(mmap(at, 50 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	settle(&mirror, 50 + SLACK);
	CHECK(munmap(at + 60 * PAGE, PAGE) == 0);
	settle(&mirror, 1 + SLACK);
	CHECK(mmap(at + 60 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      at + 60 * PAGE);
	at[60 * PAGE] = 3;
	settle(&mirror, 1 + SLACK);
}

static void large_ranges(void)
{
	size_t bytes = 150ul << 20; /* more than the log notes region by region */
	struct mirror mirror;
	char *at;

	small_pages();
	at = map(bytes, MAP_PRIVATE | MAP_NORESERVE);
	for (size_t i = 0; i < bytes; i += 8 * HUGE) at[i] = 1;
	mirror = mirror_of(0, at, bytes);
	mirror.sparse = true;
	settle(&mirror, SLACK);
	settle(&mirror, SLACK);
	CHECK(madvise(at, bytes - HUGE, MADV_DONTNEED) == 0);
	at[bytes / 2] = 2;
	settle(&mirror, SLACK);
	CHECK(mprotect(at, bytes, PROT_READ) == 0);
	CHECK(mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0);
	at[bytes / 4] = 3;
	settle(&mirror, SLACK);
	CHECK(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
	at[bytes / 8] = 3;
	settle(&mirror, SLACK);
}

static char *top;

/* In a child that does nothing else: malloc() uses brk as well. */
static void move_brk(int step, void *arg)
{
	(void)arg;
	switch (step) {
	case 0:
		if (brk(top + 64 * PAGE) != 0) _exit(1);
		memset(top, 1, 64 * PAGE);
		break;
	case 1:
		if (brk(top + 200 * PAGE) != 0) _exit(1);
		memset(top + 100 * PAGE, 2, 100 * PAGE);
		break;
	case 2:
		if (brk(top + 32 * PAGE) != 0) _exit(1);
		break;
	default:
		if (brk(top + 128 * PAGE) != 0) _exit(1);
		top[90 * PAGE] = 1;
	}
}

static void heap_and_stack(void)
{
	static const size_t most[] = { 64, 136, 256, 1 };
	struct mirror mirror;
	struct child child;
	char *bottom;

	small_pages();
	top = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & ~(PAGE - 1));
	child = start_child(move_brk, NULL);
	mirror = mirror_of(child.pid, top, 256 * PAGE);
	for (int step = 0; step < 4; step++) {
		turn(&child, step);
		settle(&mirror, most[step] + SLACK);
	}
	end_child(&child);

	/* A mapping that grows down, as the stack does. */
	bottom = map(600 * PAGE, MAP_PRIVATE);
	mirror = mirror_of(0, bottom + 300 * PAGE, 300 * PAGE); /* now: its memory must not lie in the way */
	sync_mirror(&mirror);
	CHECK(munmap(bottom, 600 * PAGE) == 0);
	CHECK(mmap(bottom + 599 * PAGE, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0) == bottom + 599 * PAGE);
	bottom[599 * PAGE] = 1;
	sync_mirror(&mirror);
	for (int i = 598; i > 590; i--) bottom[i * (long)PAGE] = 2;
	settle(&mirror, 8 + SLACK);
}

static void huge_pages(void)
{
	char *at = map_huge(4 * HUGE);
	struct mirror mirror = mirror_of(0, at, 4 * HUGE);

	memset(at, 1, 4 * HUGE);
	if (!is_huge(at)) skip("no transparent huge pages here");
	settle(&mirror, 4 * HUGE / PAGE);
	settle(&mirror, 0);
	at[HUGE + 5 * PAGE] = 2; /* a huge page counts whole */
	settle(&mirror, HUGE / PAGE);
	/* Split: by discarding a part, by protecting a part. */
	CHECK(madvise(at + 3 * PAGE, PAGE, MADV_DONTNEED) == 0);
	settle(&mirror, HUGE / PAGE);
	at[9 * PAGE] = 3;
	settle(&mirror, HUGE / PAGE);
	at[2 * HUGE + 7 * PAGE] = 4;
	CHECK(mprotect(at + 2 * HUGE + 100 * PAGE, PAGE, PROT_READ) == 0);
	settle(&mirror, HUGE / PAGE);
	at[2 * HUGE + 8 * PAGE] = 4;
	settle(&mirror, HUGE / PAGE);
	/* Written while huge, then split before anybody looked. */
	at[3 * HUGE + 300 * PAGE] = 5;
	CHECK(madvise(at + 3 * HUGE, PAGE, MADV_DONTNEED) == 0);
	settle(&mirror, HUGE / PAGE);
}

static void collapse(void)
{
	char *at = map_huge(2 * HUGE);
	struct mirror mirror;

	CHECK(madvise(at, 2 * HUGE, MADV_NOHUGEPAGE) == 0);
	memset(at, 1, 2 * HUGE);
	mirror = mirror_of(0, at, 2 * HUGE);
	sync_mirror(&mirror);
	sync_mirror(&mirror);
	expect_equal(&mirror);
	CHECK(madvise(at, 2 * HUGE, MADV_HUGEPAGE) == 0);
	at[3 * PAGE] = 2;
	if (madvise(at, 2 * HUGE, MADV_COLLAPSE) != 0) {
		/* An older kernel collapses by itself. */
		write_text("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "10");
		for (int i = 0; i < 200 && !is_huge(at); i++) usleep(50000);
		if (!is_huge(at)) skip("nothing was collapsed");
	}
	at[HUGE + 8 * PAGE] = 3; /* the new huge page is writable: no fault */
	settle(&mirror, 2 * HUGE / PAGE);
	sync_mirror(&mirror);
	at[4 * PAGE] = 3;
	settle(&mirror, 2 * HUGE / PAGE);
}

static void private_file(void)
{
	char path[] = "/run/private-XXXXXX", *at, buffer[PAGE];
	int file = mkstemp(path);
	struct mirror mirror;

	small_pages();
	for (int i = 0; i < 64; i++) {
		memset(buffer, i, PAGE);
		CHECK(write(file, buffer, PAGE) == (ssize_t)PAGE);
	}
	at = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	for (int i = 0; i < 32; i++) (void)*(volatile char *)(at + i * PAGE);
	mirror = mirror_of(0, at, 64 * PAGE);
	sync_mirror(&mirror);
	expect_equal(&mirror);
	at[3 * PAGE] = 99, at[40 * PAGE] = 99;
	settle(&mirror, 2 + SLACK);
	CHECK(madvise(at, 64 * PAGE, MADV_DONTNEED) == 0); /* the file's content is back */
	settle(&mirror, 64);
	CHECK(ftruncate(file, 8 * PAGE) == 0);
	CHECK(ftruncate(file, 64 * PAGE) == 0);
	sync_mirror(&mirror);
	(void)*(volatile char *)(at + 20 * PAGE);
	at[30 * PAGE] = 5;
	CHECK(ftruncate(file, 8 * PAGE) == 0);
	settle(&mirror, 64);
	unlink(path);
}

/* A file that was mapped but never read is new in the mirror when it is first written only. */
static void shared_file(void)
{
	char path[] = "/run/shared-XXXXXX", *at;
	int file = mkstemp(path);
	struct mirror mirror;

	small_pages();
	CHECK(ftruncate(file, 256 * PAGE) == 0);
	at = mmap(NULL, 256 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	memset(at, 1, 128 * PAGE);
	mirror = mirror_of(0, at, 256 * PAGE);
	settle(&mirror, 256);
	settle(&mirror, SLACK);
	at[3 * PAGE] = 2, at[200 * PAGE] = 2;
	(void)*(volatile char *)(at + 100 * PAGE);
	settle(&mirror, 2 + SLACK);
	CHECK(fsync(file) == 0);
	at[4 * PAGE] = 2;
	CHECK(msync(at, 256 * PAGE, MS_SYNC) == 0);
	settle(&mirror, 1 + SLACK);
	unlink(path);
}

/* The same on a file system of a block device, whose pages are cleaned by writeback. */
static void shared_file_on_disk(void)
{
	char *at;
	struct mirror mirror;
	int file = open("/run/disk/shared", O_RDWR | O_CREAT, 0600);

	if (file < 0) skip("no /run/disk");
	small_pages();
	CHECK(ftruncate(file, 256 * PAGE) == 0);
	at = mmap(NULL, 256 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(at != MAP_FAILED);
	memset(at, 1, 256 * PAGE);
	mirror = mirror_of(0, at, 256 * PAGE);
	sync_mirror(&mirror);
	for (int round = 0; round < 5; round++) {
		at[(3 + round) * PAGE] = 2;
		if (round % 2) CHECK(msync(at, 256 * PAGE, MS_SYNC) == 0);
		at[(100 + round) * PAGE] = 3;
		settle(&mirror, 4 + SLACK);
	}
}

/* Threads write while others collect; each page ends with what its writer said last. */
struct storm {
	char *at;
	size_t pages;
	atomic_bool stop;
	unsigned seed;
};

static void *write_storm(void *arg)
{
	struct storm *storm = arg;
	unsigned seed = storm->seed;

	while (!atomic_load(&storm->stop)) {
		/* A tight loop without system calls: only a TLB flush makes it fault. */
		for (int i = 0; i < 2000; i++) {
			volatile uint64_t *word = (volatile uint64_t *)(storm->at + (size_t)rand_r(&seed) % storm->pages * PAGE);

			word[storm->seed % 8] += 1;
		}
	}
	return NULL;
}

static void storm_over(char *at, size_t pages, int rounds)
{
	struct storm storms[2] = { { .at = at, .pages = pages, .seed = 1 }, { .at = at, .pages = pages, .seed = 2 } };
	struct mirror mirror;
	pthread_t threads[2];

	mirror = mirror_of(0, at, pages * PAGE);
	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < 2; i++) {
			atomic_store(&storms[i].stop, false);
			CHECK(pthread_create(&threads[i], NULL, write_storm, &storms[i]) == 0);
		}
		for (int i = 0; i < 25; i++) {
			sync_mirror(&mirror);
			usleep(500);
		}
		for (int i = 0; i < 2; i++) {
			atomic_store(&storms[i].stop, true);
			pthread_join(threads[i], NULL);
		}
		sync_mirror(&mirror);
		expect_equal(&mirror);
	}
}

static void threads(void)
{
	small_pages();
	storm_over(map(64 * PAGE, MAP_PRIVATE), 64, 5);
	storm_over(map(512 * PAGE, MAP_SHARED), 512, 3);
}

static void threads_huge(void) { storm_over(map_huge(2 * HUGE), 2 * HUGE / PAGE, 3); }

/* Random doings, with the mirror compared after each handful. */
static void random_doings(void)
{
	char *at, *aside = map(PAGES * PAGE, MAP_PRIVATE);
	struct mirror mirror = settled(&at, MAP_PRIVATE);
	unsigned seed = 4711;

	for (int round = 0; round < 150; round++) {
		for (int i = 0; i < 4; i++) {
			size_t first = (size_t)rand_r(&seed) % PAGES, count = 1 + (size_t)rand_r(&seed) % 40;
			char *part = at + first * PAGE;

			if (first + count > PAGES) count = PAGES - first;
			switch (rand_r(&seed) % 9) {
			case 0:
				madvise(part, count * PAGE, MADV_DONTNEED);
				break;
			case 1:
				mprotect(part, count * PAGE, PROT_READ);
				mprotect(part, count * PAGE, PROT_READ | PROT_WRITE);
				break;
			case 2:
				CHECK(mmap(part, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
					   -1, 0) == part);
				break;
			case 3: {
				size_t to = (size_t)rand_r(&seed) % (PAGES - count + 1);
				void *moved = mremap(part, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, aside);

				if (moved == MAP_FAILED) break; /* of several mappings */
				CHECK(mmap(part, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
					   -1, 0) == part);
				CHECK(mremap(aside, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
					     at + to * PAGE) == at + to * PAGE);
				break;
			}
			case 4:
				madvise(part, count * PAGE, 21 /* MADV_PAGEOUT */);
				break;
			case 5:
				(void)*(volatile char *)part;
				break;
			default:
				for (size_t page = 0; page < count; page += 3) part[page * PAGE + 17] = (char)rand_r(&seed);
			}
		}
		if (rand_r(&seed) % 3) {
			sync_mirror(&mirror);
			expect_equal(&mirror);
		}
	}
}

/* After the tracker is gone, a page costs one fault more at most, and is never slower after that. */
static void cost_after_close(void)
{
	struct rusage before, after;
	char *at;
	struct mirror mirror = settled(&at, MAP_PRIVATE);

	sync_mirror(&mirror);
	close(mirror.fd);
	getrusage(RUSAGE_SELF, &before);
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < PAGES / 2; i++) at[i * PAGE] = (char)round;
	getrusage(RUSAGE_SELF, &after);
	if (after.ru_minflt - before.ru_minflt > (long)PAGES / 2 + 16)
		FAIL("%ld faults for %lu pages", after.ru_minflt - before.ru_minflt, PAGES / 2);
}

const struct test_case memory_cases[] = {
	{ "writes", writes, 0 },
	{ "madvise_dontneed", discards, 0 },
	{ "madvise_free", frees, 0 },
	{ "madvise_remove", removes, 0 },
	{ "madvise_collapse", collapse, 0 },
	{ "mprotect", protections, 0 },
	{ "mremap_aligned", move_aligned, 0 },
	{ "mremap_onto_mapped", move_onto_mapped, 0 },
	{ "mremap_unaligned", move_unaligned, 0 },
	{ "mmap_over", replaced, 0 },
	{ "large_ranges", large_ranges, 0 },
	{ "brk_and_stack", heap_and_stack, 0 },
	{ "huge_pages", huge_pages, 0 },
	{ "private_file", private_file, 0 },
	{ "shared_file", shared_file, 0 },
	{ "shared_file_on_disk", shared_file_on_disk, 0 },
	{ "threads", threads, 0 },
	{ "threads_huge", threads_huge, 0 },
	{ "random", random_doings, 0 },
	{ "cost_after_close", cost_after_close, 0 },
	{ 0 },
};
