// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random calls with random arguments from several threads, on processes that fork, exec, exit, map and unmap meanwhile.
 * Nothing is compared: the kernel must stay well, which whoever runs this sees in its log.
 * ICP_FUZZ_SECONDS (20), ICP_FUZZ_SEED (1).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/vm/cases/cases.h"

#define VICTIMS 4
#define DEVICES 6

static _Atomic int victims[VICTIMS], devices[DEVICES];
static atomic_ulong calls[16], succeeded;
static atomic_bool over;

static uint64_t below(unsigned *seed, uint64_t limit)
{
	return (((uint64_t)rand_r(seed) << 31) ^ (uint64_t)rand_r(seed)) % limit;
}

/* Changes its memory in all ways, and ends some day. */
static void be_a_victim(unsigned seed)
{
	char *at = map(8 * HUGE, MAP_PRIVATE), *shared = map(HUGE, MAP_SHARED);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGSEGV, SIG_DFL);
	for (;;) {
		char *part = at + below(&seed, 8 * HUGE / PAGE - 600) * PAGE;
		size_t bytes = (1 + below(&seed, 600)) * PAGE;

		switch (below(&seed, 14)) {
		case 0:
			madvise(part, bytes, MADV_DONTNEED);
			break;
		case 1:
			mmap(part, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			break;
		case 2:
			mprotect(part, bytes, PROT_READ);
			mprotect(part, bytes, PROT_READ | PROT_WRITE);
			break;
		case 3:
			if (fork() == 0) {
				for (int i = 0; i < 100; i++) at[below(&seed, 8 * HUGE)] = 1;
				_exit(0);
			}
			break;
		case 4:
			waitpid(-1, NULL, WNOHANG);
			break;
		case 5:
			madvise(part, bytes, 21);
			break;
		case 6:
			madvise(at, 8 * HUGE, below(&seed, 2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
			break;
		case 7:
			if (below(&seed, 20) == 0) _exit(0);
			break;
		case 8:
			if (below(&seed, 20) == 0) execl("/bin/sleep", "sleep", "0.05", NULL);
			break;
		case 9: {
			int id = shmget(IPC_PRIVATE, 64 * PAGE, 0600);
			char *segment = shmat(id, NULL, 0);

			shmctl(id, IPC_RMID, NULL);
			if (segment != (void *)-1) segment[below(&seed, 64 * PAGE)] = 1;
			break;
		}
		case 10:
			shared[below(&seed, HUGE)] = 1;
			break;
		default:
			for (int i = 0; i < 200; i++) part[below(&seed, bytes)] = (char)i;
		}
	}
}

static void *keep_victims(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!atomic_load(&over)) {
		int slot = (int)below(&seed, VICTIMS);
		pid_t pid = atomic_load(&victims[slot]);

		if (pid > 0) {
			if (below(&seed, 3) == 0) kill(pid, SIGKILL);
			if (waitpid(pid, NULL, WNOHANG) == pid) pid = 0;
		}
		if (pid <= 0) {
			pid = fork();
			if (pid == 0) be_a_victim((unsigned)below(&seed, 1u << 30));
		}
		atomic_store(&victims[slot], pid);
		usleep(5000);
	}
	return NULL;
}

/* A number that is likely to be just inside or just outside of what is allowed. */
static uint64_t number(unsigned *seed)
{
	static const uint64_t edges[] = { 0, 1, 3, 4, 5, 4095, 4096, 4097, 65536, 65537, 1ull << 31, 1ull << 32, (1ull << 47) - 4096,
					  1ull << 47, 1ull << 56, 1ull << 63, ~0ull, ~4095ull };

	switch (below(seed, 4)) {
	case 0:
		return edges[below(seed, sizeof edges / sizeof edges[0])];
	case 1:
		return below(seed, 1ull << 47) & ~4095ull;
	case 2:
		return below(seed, 16);
	default:
		return ((uint64_t)rand_r(seed) << 40) ^ (uint64_t)rand_r(seed) << 20 ^ (uint64_t)rand_r(seed);
	}
}

static void one_call(unsigned *seed, char *buffer)
{
	static const unsigned long commands[] = { ICP_IOC_HELLO,  ICP_IOC_TRACK, ICP_IOC_COLLECT, ICP_IOC_PEEK, ICP_IOC_UNTRACK,
						  ICP_IOC_STATS, ICP_IOC_COOKIE, ICP_IOC_SHM_WATCH, ICP_IOC_SHM_READ };
	int slot = (int)below(seed, DEVICES), fd = atomic_load(&devices[slot]), pidfd = -1;
	unsigned which = (unsigned)below(seed, 10);
	unsigned long command = which < 9 ? commands[which] : _IOC(below(seed, 4), 0xC9, below(seed, 12), below(seed, 64));
	union {
		uint64_t words[16];
		struct icp_hello hello;
		struct icp_track track;
		struct icp_collect collect;
		struct icp_shm_read shm;
	} arg;
	bool sane = below(seed, 4) != 0;

	for (int i = 0; i < 16; i++) arg.words[i] = number(seed);
	if (sane && command == ICP_IOC_HELLO) {
		arg.hello = (struct icp_hello){ .abi = ICP_TRACK_ABI };
	} else if (sane && command == ICP_IOC_TRACK) {
		pid_t pid = below(seed, 5) ? atomic_load(&victims[below(seed, VICTIMS)]) : getpid();

		pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
		arg.track = (struct icp_track){ .pidfd = pidfd, .flags = (uint32_t)below(seed, 2) };
		arg.track.key = arg.track.flags ? below(seed, 3) : 0;
	} else if (sane && (command == ICP_IOC_COLLECT || command == ICP_IOC_PEEK)) {
		arg.collect = (struct icp_collect){ .start = below(seed, 4) ? 0 : number(seed) & ~4095ull,
						    .end = below(seed, 4) ? 1ul << 47 : number(seed) & ~4095ull,
						    .records = (uintptr_t)buffer,
						    .capacity = (uint32_t)(4 + below(seed, below(seed, 2) ? 20 : 4000)),
						    .flags = (uint32_t)below(seed, 2) };
	} else if (sane && command == ICP_IOC_SHM_READ) {
		arg.shm = (struct icp_shm_read){ .events = (uintptr_t)buffer, .capacity = (uint32_t)(1 + below(seed, 100)) };
	}
	/* Wild pointers may point anywhere, but not into our own memory: the fuzzer must survive. */
	if (!sane) arg.collect.records = below(seed, 2) ? number(seed) & 0xffff : 0xffff800000000000ull | number(seed);
	if (!sane && command == ICP_IOC_SHM_READ) arg.shm.events = 64;
	if (ioctl(fd, command, below(seed, 50) ? (void *)&arg : (void *)(uintptr_t)(number(seed) & 0xfff)) == 0) atomic_fetch_add(&succeeded, 1);
	atomic_fetch_add(&calls[which], 1);
	if (pidfd >= 0) close(pidfd);
	if (below(seed, 60) == 0) {
		fd = open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC);
		fd = atomic_exchange(&devices[slot], fd);
		close(fd); /* under the others' feet */
	}
}

static void *call_randomly(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	char *buffer = map(4096 * sizeof(struct icp_range) + PAGE, MAP_PRIVATE);

	while (!atomic_load(&over)) one_call(&seed, buffer);
	return NULL;
}

static void fuzz(void)
{
	const char *text = getenv("ICP_FUZZ_SECONDS");
	unsigned seconds = text ? (unsigned)atoi(text) : 20;
	pthread_t threads[5];
	unsigned seed;

	text = getenv("ICP_FUZZ_SEED");
	seed = text ? (unsigned)atoi(text) : 1;
	alarm(seconds + 1800);
	for (int i = 0; i < DEVICES; i++) atomic_store(&devices[i], open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC));
	for (int i = 0; i < 5; i++)
		CHECK(pthread_create(&threads[i], NULL, i ? call_randomly : keep_victims, (void *)(uintptr_t)(seed * 100 + (unsigned)i)) == 0);
	sleep(seconds);
	atomic_store(&over, true);
	for (int i = 0; i < 5; i++) pthread_join(threads[i], NULL);
	for (int i = 0; i < VICTIMS; i++)
		if (atomic_load(&victims[i]) > 0) kill(atomic_load(&victims[i]), SIGKILL);
	while (wait(NULL) > 0)
		;
	/* A fuzzer that gets nowhere finds nothing. */
	for (int i = 0; i < 9; i++)
		if (atomic_load(&calls[i]) < 20) FAIL("only %lu calls of ioctl %d", atomic_load(&calls[i]), i);
	if (atomic_load(&succeeded) < 100) FAIL("only %lu calls succeeded", atomic_load(&succeeded));
}

const struct test_case fuzz_cases[] = { { "fuzz", fuzz, 0 }, { 0 } };
