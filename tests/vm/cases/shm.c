// SPDX-License-Identifier: GPL-2.0-or-later
/* Events of System V shared memory. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/vm/cases/cases.h"

static struct icp_shm_event events[4096];

static unsigned read_events(int fd, uint64_t *lost)
{
	struct icp_shm_read arg = { .events = (uintptr_t)events, .capacity = 4096 };

	CHECK(ioctl(fd, ICP_IOC_SHM_READ, &arg) == 0);
	if (lost) *lost = arg.lost;
	return arg.count;
}

static uint64_t own_namespace(void)
{
	struct stat status;

	CHECK(stat("/proc/self/ns/ipc", &status) == 0);
	return status.st_ino;
}

static int count(unsigned total, unsigned kind, int id, pid_t pid)
{
	int found = 0;

	for (unsigned i = 0; i < total; i++)
		found += events[i].kind == kind && events[i].id == id && events[i].pid == pid;
	return found;
}

/* A process makes a segment, leaves it behind, and is gone before anybody looks. */
static void attributed(void)
{
	int fd = open_device(), pipes[2], id, status;
	unsigned total;
	void *at;
	pid_t pid;

	if (ioctl(fd, ICP_IOC_SHM_WATCH) != 0) skip("not on this kernel: %m");
	CHECK_ERROR(ioctl(fd, ICP_IOC_SHM_WATCH), EBUSY);
	CHECK(pipe(pipes) == 0);
	pid = fork();
	if (pid == 0) {
		id = shmget(0x4711, 12345, IPC_CREAT | IPC_EXCL | 0600);
		shmdt(shmat(id, NULL, 0));
		(void)!write(pipes[1], &id, sizeof id);
		_exit(0);
	}
	CHECK(read(pipes[0], &id, sizeof id) == sizeof id && id >= 0);
	waitpid(pid, &status, 0);
	total = read_events(fd, NULL);
	CHECK(count(total, ICP_SHM_CREATED, id, pid) == 1);
	CHECK(count(total, ICP_SHM_ATTACHED, id, pid) == 1);
	CHECK(count(total, ICP_SHM_DETACHED, id, pid) == 1);
	for (unsigned i = 0; i < total; i++) {
		CHECK(events[i].ipc_inum == own_namespace());
		if (events[i].kind == ICP_SHM_CREATED) CHECK(events[i].key == 0x4711 && events[i].bytes == 12345);
		if (i > 0) CHECK(events[i].time_ns >= events[i - 1].time_ns);
	}
	/* Looking up is not making; a fork attaches; an exit detaches. */
	CHECK(shmget(0x4711, 0, 0) == id);
	at = shmat(id, NULL, 0);
	pid = fork();
	if (pid == 0) _exit(0);
	waitpid(pid, &status, 0);
	total = read_events(fd, NULL);
	CHECK(count(total, ICP_SHM_CREATED, id, getpid()) == 0);
	CHECK(count(total, ICP_SHM_ATTACHED, id, getpid()) == 1);
	CHECK(count(total, ICP_SHM_INHERITED, id, getpid()) >= 1);
	CHECK(count(total, ICP_SHM_DETACHED, id, pid) == 1);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0);
	total = read_events(fd, NULL);
	CHECK(count(total, ICP_SHM_REMOVED, id, getpid()) == 0); /* still attached */
	CHECK(shmdt(at) == 0);
	total = read_events(fd, NULL);
	CHECK(count(total, ICP_SHM_DETACHED, id, getpid()) == 1);
	CHECK(count(total, ICP_SHM_REMOVED, id, getpid()) == 1);
}

static void namespaces(void)
{
	int fd = open_device();
	unsigned total;
	uint64_t outer = own_namespace();

	if (ioctl(fd, ICP_IOC_SHM_WATCH) != 0) skip("not on this kernel: %m");
	CHECK(unshare(CLONE_NEWIPC) == 0);
	CHECK(shmget(IPC_PRIVATE, PAGE, 0600) >= 0);
	total = read_events(fd, NULL);
	CHECK(total == 1 && events[0].ipc_inum == own_namespace() && events[0].ipc_inum != outer);
}

static void overflow(void)
{
	struct icp_shm_read arg = { .events = 8, .capacity = 16 };
	int fd = open_device();
	uint64_t lost;

	CHECK_ERROR(ioctl(fd, ICP_IOC_SHM_READ, &arg), ENODEV);
	if (ioctl(fd, ICP_IOC_SHM_WATCH) != 0) skip("not on this kernel: %m");
	CHECK(read_events(fd, &lost) == 0 && lost == 0);
	for (int i = 0; i < 2500; i++) CHECK(shmctl(shmget(IPC_PRIVATE, PAGE, 0600), IPC_RMID, NULL) == 0);
	CHECK_ERROR(ioctl(fd, ICP_IOC_SHM_READ, &arg), EFAULT);
	arg.capacity = 0;
	CHECK_ERROR(ioctl(fd, ICP_IOC_SHM_READ, &arg), EINVAL);
	arg.capacity = 4097;
	CHECK_ERROR(ioctl(fd, ICP_IOC_SHM_READ, &arg), EINVAL);
	CHECK(read_events(fd, &lost) == 4096 && lost == 904);
	CHECK(read_events(fd, &lost) == 0 && lost == 904);
}

const struct test_case shm_cases[] = {
	{ "shm_events", attributed, 0 },
	{ "shm_namespaces", namespaces, 0 },
	{ "shm_overflow", overflow, 0 },
	{ 0 },
};
