// SPDX-License-Identifier: GPL-2.0-or-later
/* Several address spaces: forks, shared segments, files, and writers from outside. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/vm/cases/cases.h"

#define PAGES 512ul

static struct mirror settled(char **at)
{
	struct mirror mirror;

	small_pages();
	*at = map(PAGES * PAGE, MAP_PRIVATE);
	memset(*at, 1, PAGES * PAGE);
	mirror = mirror_of(0, *at, PAGES * PAGE);
	settle(&mirror, PAGES);
	settle(&mirror, SLACK);
	return mirror;
}

/* fork() takes the write bit away in the parent: what was written before must not be lost. */
static void fork_child_alive(void)
{
	char *at;
	struct mirror mirror = settled(&at);
	pid_t pid;

	at[7 * PAGE] = 2;
	pid = fork();
	if (pid == 0) {
		memset(at, 9, PAGES * PAGE);
		pause();
	}
	usleep(100000);
	at[8 * PAGE] = 3;
	settle(&mirror, 2 + SLACK);
	at[7 * PAGE] = 4, at[300 * PAGE] = 4;
	settle(&mirror, 2 + SLACK);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	at[9 * PAGE] = 5;
	settle(&mirror, 1 + SLACK);
}

static void fork_child_exited(void)
{
	char *at;
	struct mirror mirror = settled(&at);

	for (int i = 0; i < 10; i++) {
		pid_t pid;

		at[(size_t)i * 11 * PAGE] = 2;
		pid = fork();
		if (pid == 0) {
			at[(size_t)i * 11 * PAGE] = 77;
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		at[(size_t)i * 13 * PAGE + 5] = 3; /* the page is ours alone again: no copy */
		settle(&mirror, 2 + SLACK);
	}
}

static char *area;

static void child_turn(int step, void *arg)
{
	(void)arg;
	for (int i = 0; i < 5; i++) area[((size_t)step * 17 + (size_t)i * 31) % PAGES * PAGE + 9] = (char)(step + 40);
}

static void fork_child_tracked(void)
{
	struct mirror mirror, other;
	struct child child;

	mirror = settled(&area);
	child = start_child(child_turn, NULL);
	other = mirror_of(child.pid, area, PAGES * PAGE);
	settle(&other, PAGES);
	for (int i = 0; i < 20; i++) {
		area[((size_t)i * 23) % PAGES * PAGE] = (char)i;
		turn(&child, i);
		if (i % 3) settle(&mirror, 3 + SLACK);
		if (i % 2) settle(&other, 10 + SLACK);
	}
	end_child(&child);
}

/* A segment's written pages are the union of what its processes wrote. */
static void segment(int children)
{
	int id = shmget(IPC_PRIVATE, PAGES * PAGE, 0600), fds[3];
	char *copy = calloc(1, PAGES * PAGE);
	struct child child[3];
	struct records records = { 0 };

	area = shmat(id, NULL, 0);
	CHECK(area != (void *)-1);
	shmctl(id, IPC_RMID, NULL);
	memset(area, 1, PAGES * PAGE);
	for (int i = 0; i < children; i++) {
		child[i] = start_child(child_turn, NULL);
		fds[i] = track(child[i].pid);
	}
	for (int round = 0; round < 20; round++) {
		size_t reported = 0;

		for (int i = 0; i < children; i++) turn(&child[i], round * 3 + i);
		for (int i = 0; i < children; i++) {
			uint64_t start = (uintptr_t)area, end = start + PAGES * PAGE;

			collect(fds[i], start, end, false, 0, 128, &records);
			CHECK(mapping_flags_of(&records, start) & ICP_RANGE_SHARED);
			if (mapping_flags_of(&records, start) & ICP_RANGE_NEW) memcpy(copy, area, PAGES * PAGE);
			for (size_t r = 0; r < records.count; r++) {
				if (records.at[r].flags & ICP_RANGE_MAPPING) continue;
				reported += (records.at[r].end - records.at[r].start) / PAGE;
				memcpy(copy + (records.at[r].start - start), (char *)(uintptr_t)records.at[r].start,
				       records.at[r].end - records.at[r].start);
			}
		}
		for (size_t page = 0; page < PAGES; page++)
			if (memcmp(copy + page * PAGE, area + page * PAGE, PAGE) != 0) FAIL("round %d, page %zu", round, page);
		if (round > 0 && reported > (size_t)children * 5 + SLACK) FAIL("%zu pages reported", reported);
	}
	for (int i = 0; i < children; i++) end_child(&child[i]);
}

static void segment_of_two(void) { segment(2); }
static void segment_of_three(void) { segment(3); }

static void written_from_outside(void)
{
	char *at;
	struct mirror mirror = settled(&at);

	for (int round = 0; round < 10; round++) {
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			char text[] = "from outside";
			struct iovec here = { text, sizeof text }, there = { at + (size_t)(round * 20 + 5) * PAGE, sizeof text };

			_exit(process_vm_writev(getppid(), &here, 1, &there, 1, 0) != sizeof text);
		}
		waitpid(pid, &status, 0);
		CHECK(status == 0);
		settle(&mirror, 1 + SLACK);
	}
	/* A debugger's way: also into read-only memory. */
	CHECK(mprotect(at, 4 * PAGE, PROT_READ) == 0);
	sync_mirror(&mirror);
	{
		int mem = open("/proc/self/mem", O_RDWR);

		CHECK(pwrite(mem, "poke", 4, (off_t)(uintptr_t)(at + PAGE)) == 4);
		close(mem);
	}
	settle(&mirror, 1 + SLACK);
}

/* The one hole of every method that looks at page tables: write(2) to a file in memory that is mapped too. The module
 * says that the mapping is shared; who needs all writes has to read such memory whole, or compare it. */
static void file_hole(void)
{
	int file = memfd_create("hole", 0);
	struct mirror mirror;
	char *at;

	small_pages();
	CHECK(ftruncate(file, 16 * PAGE) == 0);
	at = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	memset(at, 1, 16 * PAGE);
	mirror = mirror_of(0, at, 16 * PAGE);
	settle(&mirror, 16);
	for (int i = 0; i < 4; i++) sync_mirror(&mirror);
	CHECK(pwrite(file, "x", 1, 5 * PAGE) == 1);
	sync_mirror(&mirror);
	CHECK(mapping_flags_of(&mirror.records, (uintptr_t)at) & ICP_RANGE_SHARED);
	if (first_difference(&mirror) == -1) FAIL("the hole is closed: the documentation is out of date");
}

static void two_trackers(void)
{
	char *at;
	struct mirror one = settled(&at), two;
	unsigned seed = 5;

	two = mirror_of(0, at, PAGES * PAGE);
	settle(&two, PAGES);
	for (int round = 0; round < 60; round++) {
		for (int i = 0; i < 5; i++) at[(size_t)rand_r(&seed) % PAGES * PAGE] = (char)round;
		if (round % 7 == 3) CHECK(madvise(at + (size_t)round * PAGE, 5 * PAGE, MADV_DONTNEED) == 0);
		if (round % 2) settle(&one, 20 + SLACK);
		if (round % 3 == 0) settle(&two, 30 + SLACK);
	}
	settle(&one, 20 + SLACK);
	settle(&two, 30 + SLACK);
	/* The other's end changes nothing. */
	at[9 * PAGE] = 1;
	close(one.fd);
	settle(&two, 1 + SLACK);
}

/* Somebody else resets the soft-dirty bits that we rely on. */
static void foreign_clear_refs(void)
{
	char *at;
	struct mirror mirror = settled(&at);

	for (int round = 0; round < 3; round++) {
		at[(5 + (size_t)round) * PAGE] = 2;
		write_text("/proc/self/clear_refs", "4");
		at[(9 + (size_t)round) * PAGE] = 2;
		settle(&mirror, PAGES);
		at[(19 + (size_t)round) * PAGE] = 2;
		settle(&mirror, 1 + SLACK);
	}
}

const struct test_case sharing_cases[] = {
	{ "fork_child_alive", fork_child_alive, 0 },
	{ "fork_child_exited", fork_child_exited, 0 },
	{ "fork_child_tracked", fork_child_tracked, 0 },
	{ "shm_two_processes", segment_of_two, 0 },
	{ "shm_three_processes", segment_of_three, 0 },
	{ "process_vm_writev", written_from_outside, 0 },
	{ "tmpfs_write_hole", file_hole, 0 },
	{ "two_trackers", two_trackers, 0 },
	{ "foreign_clear_refs", foreign_clear_refs, 0 },
	{ 0 },
};
