// SPDX-License-Identifier: GPL-2.0-or-later
/* The device itself: who may, what it refuses, and the shape of its answers. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/vm/cases/cases.h"

static void handshake(void)
{
	struct icp_hello hello = { .abi = ICP_TRACK_ABI + 1 };
	struct icp_track wanted = { .pidfd = open_pidfd(0) };
	int fd = open(ICP_TRACK_DEVICE, O_RDWR);

	CHECK(fd >= 0);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EPROTO);
	CHECK_ERROR(ioctl(fd, ICP_IOC_HELLO, &hello), EPROTO);
	CHECK(hello.abi == ICP_TRACK_ABI);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EPROTO);
	hello.zero = 1;
	CHECK_ERROR(ioctl(fd, ICP_IOC_HELLO, &hello), EINVAL);
	hello.zero = 0;
	CHECK(ioctl(fd, ICP_IOC_HELLO, &hello) == 0);
	CHECK(ioctl(fd, ICP_IOC_TRACK, &wanted) == 0);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EBUSY);
	CHECK_ERROR(ioctl(fd, _IO(0xC9, 99), 0), ENOTTY);
	CHECK_ERROR(ioctl(fd, _IOWR(0xC9, 2, char[4]), &hello), ENOTTY);
	CHECK_ERROR(ioctl(fd, ICP_IOC_HELLO, (void *)8), EFAULT);
	CHECK_ERROR((int)read(fd, &hello, 1), EINVAL);
}

static int try(int fd, struct icp_collect arg) { return ioctl(fd, ICP_IOC_COLLECT, &arg); }

static void wrong_arguments(void)
{
	struct icp_range records[8];
	struct icp_collect good = { .start = 0, .end = 1ul << 47, .records = (uintptr_t)records, .capacity = 8 }, bad;
	struct icp_track wanted = { .pidfd = -1 };
	struct icp_stats stats;
	int fd = open_device(), file = open("/proc/self/exe", O_RDONLY), named;

	CHECK_ERROR(try(fd, good), ENODEV);
	CHECK_ERROR(ioctl(fd, ICP_IOC_STATS, &stats), ENODEV);
	CHECK_ERROR(ioctl(fd, ICP_IOC_UNTRACK), ENODEV);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EBADF);
	wanted.pidfd = file;
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EBADF);
	/* A file may have any name. */
	named = open("/run/[pidfd]", O_CREAT | O_RDWR, 0600);
	CHECK(named >= 0);
	wanted.pidfd = named;
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EBADF);
	wanted.pidfd = (int)syscall(SYS_eventfd2, 0, 0);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EBADF);
	wanted.pidfd = open_pidfd(2); /* kthreadd */
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), ESRCH);
	wanted.pidfd = open_pidfd(0);
	wanted.flags = 1u << 5;
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EINVAL);
	wanted.flags = ICP_TRACK_EXISTED;
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EINVAL);
	wanted.flags = 0;
	wanted.key = 7;
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EINVAL);
	wanted.key = 0;
	CHECK(ioctl(fd, ICP_IOC_TRACK, &wanted) == 0);

	bad = good, bad.start = 1;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.end = 4095;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.start = bad.end;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.start = 2 * PAGE, bad.end = PAGE;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.end = 1ul << 63;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.end = -PAGE;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.capacity = ICP_MIN_RECORDS - 1;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.flags = 2;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.zero = 1;
	CHECK_ERROR(try(fd, bad), EINVAL);
	bad = good, bad.capacity = 0xffffffff, bad.records = 64;
	CHECK_ERROR(try(fd, bad), EFAULT);
	bad.records = 0xffff888000000000ul; /* kernel memory */
	CHECK_ERROR(try(fd, bad), EFAULT);
	CHECK_ERROR(ioctl(fd, ICP_IOC_STATS, (void *)8), EFAULT);
	CHECK(try(fd, good) == 0);
}

/* An answer that did not arrive makes the next one complete. */
static void lost_answer(void)
{
	struct mirror mirror;
	struct icp_collect arg;
	char *at;

	small_pages();
	at = map(64 * PAGE, MAP_PRIVATE);
	memset(at, 1, 64 * PAGE);
	mirror = mirror_of(0, at, 64 * PAGE);
	settle(&mirror, 64);
	at[5 * PAGE] = 2;
	arg = (struct icp_collect){ .start = (uintptr_t)at, .end = (uintptr_t)at + 64 * PAGE, .records = 64, .capacity = 8 };
	CHECK_ERROR(ioctl(mirror.fd, ICP_IOC_COLLECT, &arg), EFAULT);
	CHECK(sync_mirror(&mirror) >= 1);
	expect_equal(&mirror);
}

static void drop_capability(int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	CHECK(syscall(SYS_capget, &header, data) == 0);
	data[capability / 32].effective &= ~(1u << (capability % 32));
	CHECK(syscall(SYS_capset, &header, data) == 0);
}

static void rights(void)
{
	struct icp_track wanted = { .pidfd = open_pidfd(0) };
	int status, fd = open_device();
	pid_t pid;

	drop_capability(CAP_SYS_PTRACE);
	CHECK_ERROR(ioctl(fd, ICP_IOC_TRACK, &wanted), EPERM);
	drop_capability(CAP_SYS_ADMIN);
	CHECK_ERROR(open(ICP_TRACK_DEVICE, O_RDWR), EPERM);
	pid = fork();
	if (pid == 0) {
		CHECK(setgid(65534) == 0 && setuid(65534) == 0);
		CHECK_ERROR(open(ICP_TRACK_DEVICE, O_RDWR), EACCES);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	CHECK(status == 0);
}

/* The smallest vector gives the same answer as a large one, in more calls. */
static void resume(void)
{
	struct mirror small, large;
	size_t pages = 2000;
	char *at;

	small_pages();
	at = map(pages * PAGE, MAP_PRIVATE);
	small = mirror_of(0, at, pages * PAGE);
	small.capacity = ICP_MIN_RECORDS;
	large = mirror_of(0, at, pages * PAGE);
	srand(1);
	for (int round = 0; round < 6; round++) {
		for (int i = 0; i < 200; i++) at[(size_t)rand() % pages * PAGE + 8] = (char)(rand() | 1);
		if (round == 3) CHECK(mprotect(at + 700 * PAGE, 90 * PAGE, PROT_READ) == 0);
		if (round == 4) CHECK(munmap(at + 1300 * PAGE, 300 * PAGE) == 0);
		settle(&small, 700 + (round == 0 ? pages : 0));
		settle(&large, 700 + (round == 0 ? pages : 0));
		if (round == 3) CHECK(mprotect(at + 700 * PAGE, 90 * PAGE, PROT_READ | PROT_WRITE) == 0);
		if (round == 4) CHECK(mmap(at + 1300 * PAGE, 300 * PAGE, PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	}
}

static void peek(void)
{
	struct records one = { 0 }, two = { 0 };
	size_t pages = 256;
	char *at;
	uint64_t start;
	int fd;

	small_pages();
	at = map(pages * PAGE, MAP_PRIVATE);
	start = (uintptr_t)at;
	memset(at, 1, pages * PAGE / 2);
	fd = track(0);
	collect(fd, start, start + pages * PAGE, true, 0, 64, &one);
	CHECK(mapping_flags_of(&one, start) & ICP_RANGE_NEW);
	CHECK(written_pages(&one, start, start + pages * PAGE) == pages / 2);
	collect(fd, start, start + pages * PAGE, false, 0, 64, &two);
	collect(fd, start, start + pages * PAGE, false, 0, 64, &two);
	at[77 * PAGE] = 3;
	for (int i = 0; i < 3; i++) {
		collect(fd, start, start + pages * PAGE, true, 0, 64, &one);
		CHECK(flags_of(&one, start + 77 * PAGE) == (ICP_RANGE_WRITTEN | ICP_RANGE_DATA));
	}
	collect(fd, start, start + pages * PAGE, true, ICP_COLLECT_ALL, 64, &one);
	CHECK(flags_of(&one, start + 77 * PAGE) == (ICP_RANGE_WRITTEN | ICP_RANGE_DATA));
	CHECK(flags_of(&one, start + 76 * PAGE) & ICP_RANGE_DATA);
	CHECK(flags_of(&one, start + (pages - 1) * PAGE) == 0);
	collect(fd, start, start + pages * PAGE, false, 0, 64, &two);
	CHECK(flags_of(&two, start + 77 * PAGE) == (ICP_RANGE_WRITTEN | ICP_RANGE_DATA));
}

/* What is reported of pages: data, zeros, file, nothing. */
static void states(void)
{
	struct records records = { 0 };
	char path[] = "/run/states-XXXXXX";
	int file = mkstemp(path), fd;
	char *at, *mapped;
	uint64_t start, of_file;

	small_pages();
	CHECK(ftruncate(file, 16 * PAGE) == 0);
	at = map(16 * PAGE, MAP_PRIVATE);
	mapped = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(mapped != MAP_FAILED);
	start = (uintptr_t)at, of_file = (uintptr_t)mapped;
	at[0] = 1;
	(void)*(volatile char *)(at + PAGE);
	mapped[0] = 1;
	(void)*(volatile char *)(mapped + PAGE);
	fd = track(0);
	collect(fd, 0, 1ul << 47, false, 0, 512, &records);
	collect(fd, 0, 1ul << 47, false, ICP_COLLECT_ALL, 512, &records);
	CHECK(flags_of(&records, start) & ICP_RANGE_DATA);
	CHECK(flags_of(&records, start + PAGE) & ICP_RANGE_ZERO);
	CHECK(flags_of(&records, start + 2 * PAGE) == 0);
	CHECK(flags_of(&records, of_file) & ICP_RANGE_DATA);
	CHECK(flags_of(&records, of_file + PAGE) & ICP_RANGE_FILE);
	CHECK(madvise(at, PAGE, MADV_DONTNEED) == 0);
	CHECK(madvise(mapped, PAGE, MADV_DONTNEED) == 0);
	collect(fd, 0, 1ul << 47, false, 0, 512, &records);
	CHECK(flags_of(&records, start) == (ICP_RANGE_WRITTEN | ICP_RANGE_NONE));
	CHECK(flags_of(&records, of_file) == (ICP_RANGE_WRITTEN | ICP_RANGE_NONE));
	unlink(path);
}

/* Memory for the log is bounded; beyond it the answer is complete. */
static void bounded_log(void)
{
	size_t bytes = 24ul << 20;
	struct icp_stats stats, before;
	struct mirror mirror;
	char *at;

	small_pages();
	at = map(bytes, MAP_PRIVATE);
	for (size_t i = 0; i < bytes; i += PAGE) at[i] = 1;
	write_text("/sys/module/icp_track/parameters/max_log_kib", "2");
	mirror = mirror_of(0, at, bytes);
	for (int round = 0; round < 3; round++) {
		sync_mirror(&mirror);
		CHECK(ioctl(mirror.fd, ICP_IOC_STATS, &before) == 0);
		for (size_t i = 0; i < bytes; i += HUGE) at[i + (3 + (size_t)round) * PAGE] = 2;
		CHECK(ioctl(mirror.fd, ICP_IOC_STATS, &stats) == 0);
		if (stats.log_bytes > 3 * 1024) write_text("/sys/module/icp_track/parameters/max_log_kib", "16384");
		CHECK(stats.log_bytes <= 3 * 1024);
	}
	sync_mirror(&mirror);
	CHECK(ioctl(mirror.fd, ICP_IOC_STATS, &stats) == 0);
	write_text("/sys/module/icp_track/parameters/max_log_kib", "16384");
	CHECK(stats.resets > before.resets);
	expect_equal(&mirror);
	settle(&mirror, SLACK);
	for (size_t i = 0; i < bytes; i += HUGE) at[i + 9 * PAGE] = 3;
	settle(&mirror, bytes / HUGE + SLACK);
}

const struct test_case interface_cases[] = {
	{ "handshake", handshake, 0 },	 { "wrong_arguments", wrong_arguments, 0 }, { "lost_answer", lost_answer, 0 },
	{ "rights", rights, 0 },	 { "resume", resume, 0 },		   { "peek", peek, 0 },
	{ "states", states, 0 },	 { "bounded_log", bounded_log, 0 },	   { 0 },
};
