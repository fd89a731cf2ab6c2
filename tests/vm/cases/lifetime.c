// SPDX-License-Identifier: GPL-2.0-or-later
/* Beginnings and ends: exec, exit, trackers that die, tracking that is kept. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "tests/vm/cases/cases.h"

#define PAGES 256ul

static int collect_once(int fd)
{
	struct icp_range records[64];
	struct icp_collect arg = { .end = 1ul << 47, .records = (uintptr_t)records, .capacity = 64 };

	return ioctl(fd, ICP_IOC_COLLECT, &arg);
}

static pid_t sleeper(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		for (;;) pause();
	}
	return pid;
}

static void after_exit(void)
{
	pid_t pid = sleeper();
	struct icp_track wanted = { .flags = 0 };
	int fd = track(pid), handle = open_pidfd(pid), other = open_device();

	CHECK(collect_once(fd) == 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK_ERROR(collect_once(fd), ESRCH);
	CHECK_ERROR(collect_once(fd), ESRCH);
	wanted.pidfd = handle;
	CHECK_ERROR(ioctl(other, ICP_IOC_TRACK, &wanted), ESRCH);
	CHECK(ioctl(fd, ICP_IOC_UNTRACK) == 0);
	wanted.pidfd = open_pidfd(0);
	CHECK(ioctl(fd, ICP_IOC_TRACK, &wanted) == 0); /* the descriptor can be used again */
}

static void after_exec(void)
{
	int to[2], fd, status;
	char go = 1;
	pid_t pid;

	CHECK(pipe(to) == 0);
	pid = fork();
	if (pid == 0) {
		dup2(to[0], 0);
		(void)!read(0, &go, 1);
		execl("/bin/cat", "cat", NULL);
		_exit(1);
	}
	fd = track(pid);
	CHECK(collect_once(fd) == 0);
	CHECK(write(to[1], &go, 1) == 1);
	for (int i = 0; i < 200 && collect_once(fd) == 0; i++) usleep(20000);
	CHECK_ERROR(collect_once(fd), ESRCH);
	fd = track(pid); /* the new program */
	CHECK(collect_once(fd) == 0);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
}

static void exit_in_collect(void)
{
	for (int i = 0; i < 60; i++) {
		char *at = map(PAGES * PAGE, MAP_PRIVATE);
		pid_t pid;
		int fd;

		memset(at, 1, PAGES * PAGE);
		pid = fork();
		if (pid == 0) {
			for (;;) memset(at, 2, PAGES * PAGE);
		}
		fd = track(pid);
		if (fork() == 0) {
			usleep((unsigned)(i * 200));
			kill(pid, SIGKILL);
			_exit(0);
		}
		while (collect_once(fd) == 0)
			;
		CHECK(errno == ESRCH);
		if (i % 2) close(fd); /* while it is still being torn down */
		wait(NULL);
		wait(NULL);
		if (i % 2 == 0) close(fd);
		munmap(at, PAGES * PAGE);
	}
}

/* All trackings of the module, one of our own included. */
static uint64_t views(void)
{
	static int fd = -1;
	struct icp_stats stats;

	if (fd < 0) fd = track(0);
	CHECK(ioctl(fd, ICP_IOC_STATS, &stats) == 0);
	return stats.views;
}

/* Closing is not synchronous: what is freed in the background is gone in a moment. */
static void expect_views(uint64_t most)
{
	for (int i = 0; i < 200 && views() > most; i++) usleep(20000);
	if (views() > most) FAIL("%lu trackings are left, at most %lu expected", (unsigned long)views(), (unsigned long)most);
}

/* What earlier cases left is gone after a moment. */
static uint64_t settled_views(void)
{
	uint64_t last = views();

	for (int same = 0; same < 25; same++) {
		usleep(20000);
		if (views() != last) same = 0;
		last = views();
	}
	return last;
}

static void everything_is_freed(void)
{
	uint64_t before;
	pid_t pid = sleeper(), tracker;

	before = settled_views();
	for (int i = 0; i < 20; i++) close(track(pid));
	expect_views(before);
	tracker = fork();
	if (tracker == 0) {
		for (int i = 0; i < 10; i++) collect_once(track(pid));
		pause();
	}
	usleep(300000);
	kill(tracker, SIGKILL);
	waitpid(tracker, NULL, 0);
	expect_views(before);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void too_many(void)
{
	struct icp_track wanted = { .flags = 0 };
	int fd;

	write_text("/sys/module/icp_track/parameters/max_views", "1");
	fd = track_with(0, &wanted);
	if (errno == 0) {
		fd = track_with(0, &wanted);
	}
	CHECK(errno == ENOSPC);
	close(fd);
	write_text("/sys/module/icp_track/parameters/max_views", "4096");
}

static char *area;

static void child_turn(int step, void *arg)
{
	(void)arg;
	area[(size_t)step * PAGE] = 'x';
}

/* Nobody holds a descriptor between two looks, and the second one is incremental all the same. */
static void kept(void)
{
	struct icp_track wanted = { .flags = ICP_TRACK_KEEP, .key = 0x1234 };
	struct icp_cookie cookie = { { 11, 22 } };
	struct records records = { 0 };
	struct child child;
	uint64_t start;
	int fd, other;

	small_pages();
	area = map(PAGES * PAGE, MAP_PRIVATE);
	memset(area, 1, PAGES * PAGE);
	start = (uintptr_t)area;
	child = start_child(child_turn, NULL);
	fd = track_with(child.pid, &wanted);
	CHECK(errno == 0 && !(wanted.flags & ICP_TRACK_EXISTED));
	collect(fd, start, start + PAGES * PAGE, false, 0, 64, &records);
	collect(fd, start, start + PAGES * PAGE, false, 0, 64, &records);
	CHECK(ioctl(fd, ICP_IOC_COOKIE, &cookie) == 0);
	wanted = (struct icp_track){ .flags = ICP_TRACK_KEEP, .key = 0x1234 };
	other = track_with(child.pid, &wanted);
	CHECK(errno == EBUSY);
	close(other);
	close(fd);

	turn(&child, 7);
	wanted = (struct icp_track){ .flags = ICP_TRACK_KEEP, .key = 0x1234 };
	fd = track_with(child.pid, &wanted);
	CHECK(errno == 0 && (wanted.flags & ICP_TRACK_EXISTED) && wanted.cookie[0] == 11 && wanted.cookie[1] == 22);
	collect(fd, start, start + PAGES * PAGE, false, 0, 64, &records);
	CHECK(!(mapping_flags_of(&records, start) & ICP_RANGE_NEW));
	CHECK(flags_of(&records, start + 7 * PAGE) & ICP_RANGE_WRITTEN);
	CHECK(written_pages(&records, start, start + PAGES * PAGE) <= 1 + SLACK);
	close(fd);

	/* The collect made the cookie void; another key is another tracking. */
	wanted = (struct icp_track){ .flags = ICP_TRACK_KEEP, .key = 0x1234 };
	fd = track_with(child.pid, &wanted);
	CHECK(errno == 0 && (wanted.flags & ICP_TRACK_EXISTED) && wanted.cookie[0] == 0 && wanted.cookie[1] == 0);
	wanted = (struct icp_track){ .flags = ICP_TRACK_KEEP, .key = 0x99 };
	other = track_with(child.pid, &wanted);
	CHECK(errno == 0 && !(wanted.flags & ICP_TRACK_EXISTED));
	close(other);
	CHECK(ioctl(fd, ICP_IOC_UNTRACK) == 0);
	close(fd);
	wanted = (struct icp_track){ .flags = ICP_TRACK_KEEP, .key = 0x1234 };
	fd = track_with(child.pid, &wanted);
	CHECK(errno == 0 && !(wanted.flags & ICP_TRACK_EXISTED));
	close(fd);
	end_child(&child);
}

static void kept_is_freed(void)
{
	struct icp_track wanted = { .flags = ICP_TRACK_KEEP, .key = 1 };
	uint64_t before;
	pid_t pid = sleeper();

	before = settled_views();
	close(track_with(pid, &wanted));
	CHECK(views() == before + 1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	expect_views(before);
}

const struct test_case lifetime_cases[] = {
	{ "exit", after_exit, 0 },
	{ "exec", after_exec, 0 },
	{ "exit_in_collect", exit_in_collect, 0 },
	{ "everything_is_freed", everything_is_freed, 0 },
	{ "too_many", too_many, 0 },
	{ "kept", kept, 0 },
	{ "kept_is_freed", kept_is_freed, 0 },
	{ 0 },
};
