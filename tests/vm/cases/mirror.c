// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/vm/cases/cases.h"

void fail(const char *file, int line, const char *format, ...)
{
	va_list args;

	printf("%s:%d: ", file, line);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

void skip(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(77);
}

int open_pidfd(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid ? pid : getpid(), 0);

	CHECK(fd >= 0);
	return fd;
}

int open_device(void)
{
	struct icp_hello hello = { .abi = ICP_TRACK_ABI };
	int fd = open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(ioctl(fd, ICP_IOC_HELLO, &hello) == 0);
	return fd;
}

int track_with(pid_t pid, struct icp_track *wanted)
{
	int fd = open_device(), error;

	wanted->pidfd = open_pidfd(pid);
	error = ioctl(fd, ICP_IOC_TRACK, wanted) == 0 ? 0 : errno;
	close(wanted->pidfd);
	errno = error;
	return fd;
}

int track(pid_t pid)
{
	struct icp_track wanted = { .flags = 0 };
	int fd = track_with(pid, &wanted);

	CHECK(errno == 0);
	return fd;
}

void collect(int fd, uint64_t start, uint64_t end, bool peek, uint32_t flags, uint32_t capacity, struct records *records)
{
	records->count = 0;
	while (start < end) {
		struct icp_collect arg = { .start = start, .end = end, .capacity = capacity, .flags = flags };

		if (records->room < records->count + capacity) {
			records->room = (records->count + capacity) * 2;
			records->at = realloc(records->at, records->room * sizeof(struct icp_range));
		}
		arg.records = (uintptr_t)(records->at + records->count);
		if (ioctl(fd, peek ? ICP_IOC_PEEK : ICP_IOC_COLLECT, &arg) != 0) FAIL("collect: %m");
		CHECK(arg.next > start && arg.next <= end && arg.count <= capacity);
		for (uint32_t i = 0; i < arg.count; i++) {
			const struct icp_range *one = &records->at[records->count + i];

			CHECK(one->start < one->end && one->start >= start && one->end <= end);
		}
		records->count += arg.count;
		start = arg.next;
	}
}

uint32_t flags_of(const struct records *records, uint64_t address)
{
	for (size_t i = 0; i < records->count; i++) {
		const struct icp_range *one = &records->at[i];

		if (!(one->flags & ICP_RANGE_MAPPING) && one->start <= address && address < one->end) return one->flags;
	}
	return 0;
}

uint32_t mapping_flags_of(const struct records *records, uint64_t address)
{
	for (size_t i = 0; i < records->count; i++) {
		const struct icp_range *one = &records->at[i];

		if ((one->flags & ICP_RANGE_MAPPING) && one->start <= address && address < one->end) return one->flags;
	}
	return 0;
}

uint64_t written_pages(const struct records *records, uint64_t start, uint64_t end)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < records->count; i++) {
		const struct icp_range *one = &records->at[i];
		uint64_t from = one->start > start ? one->start : start, to = one->end < end ? one->end : end;

		if ((one->flags & ICP_RANGE_WRITTEN) && from < to) bytes += to - from;
	}
	return bytes / PAGE;
}

struct mirror mirror_of(pid_t pid, void *start, size_t bytes)
{
	struct mirror mirror = { .pid = pid, .start = start, .pages = bytes / PAGE, .capacity = 512 };

	mirror.copy = calloc(1, bytes);
	mirror.fd = track(pid);
	return mirror;
}

/* How many pages from `page` on have no page-table entry, hence hold zeros. */
static size_t holes(const struct mirror *mirror, size_t page, size_t count)
{
	static uint64_t entries[8192];
	static int pagemap = -1;
	size_t found = 0;

	if (pagemap < 0) pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (count > sizeof entries / 8) count = sizeof entries / 8;
	CHECK(pread(pagemap, entries, count * 8, (off_t)(((uintptr_t)mirror->start / PAGE + page) * 8)) == (ssize_t)count * 8);
	while (found < count && !(entries[found] >> 62)) found++; /* neither present nor swapped */
	return found;
}

/* Pages that are not mapped or not readable count as zeros. */
static void read_pages(const struct mirror *mirror, size_t page, size_t count, char *to)
{
	char path[64];
	static int mem = -1;
	static pid_t mem_of = -1;

	if (mem_of != mirror->pid) {
		if (mem >= 0) close(mem);
		snprintf(path, sizeof path, "/proc/%d/mem", mirror->pid ? mirror->pid : getpid());
		mem = open(path, O_RDONLY | O_CLOEXEC);
		CHECK(mem >= 0);
		mem_of = mirror->pid;
	}
	for (size_t done = 0; done < count;) {
		size_t empty = mirror->sparse ? holes(mirror, page + done, count - done) : 0, pages;
		ssize_t got;

		if (empty) {
			memset(to + done * PAGE, 0, empty * PAGE);
			done += empty;
			continue;
		}
		got = pread(mem, to + done * PAGE, (mirror->sparse ? 1 : count - done) * PAGE,
			    (off_t)(uintptr_t)(mirror->start + (page + done) * PAGE));
		pages = got > 0 ? (size_t)got / PAGE : 0;

		done += pages;
		if (done < count && pages == 0) memset(to + done++ * PAGE, 0, PAGE);
	}
}

size_t sync_mirror(struct mirror *mirror)
{
	uint64_t start = (uintptr_t)mirror->start, end = start + mirror->pages * PAGE;
	struct records *records = &mirror->records;
	size_t reported = 0;
	uint64_t mapped = start; /* what lies between mappings is not there */

	collect(mirror->fd, start, end, false, 0, mirror->capacity, records);
	for (size_t i = 0; i <= records->count; i++) {
		const struct icp_range *one = i < records->count ? &records->at[i] : NULL;
		bool whole;

		if (one && !(one->flags & ICP_RANGE_MAPPING)) {
			if (!(one->flags & ICP_RANGE_WRITTEN)) continue;
			/* Zeros and holes cost nothing; any split of a mapping may report them again. */
			if (one->flags & (ICP_RANGE_DATA | ICP_RANGE_FILE)) reported += (one->end - one->start) / PAGE;
			read_pages(mirror, (one->start - start) / PAGE, (one->end - one->start) / PAGE,
				   mirror->copy + (one->start - start));
			continue;
		}
		if (mapped < (one ? one->start : end)) memset(mirror->copy + (mapped - start), 0, (one ? one->start : end) - mapped);
		if (!one) break;
		mapped = one->end;
		whole = (one->flags & ICP_RANGE_WHOLE) ||
			((one->flags & ICP_RANGE_NEW) && (one->flags & ICP_RANGE_SHARED));
		if (!(one->flags & (ICP_RANGE_NEW | ICP_RANGE_WHOLE))) continue;
		/* Of a new private mapping the pages with data follow; the rest is zeros or the file. */
		read_pages(mirror, (one->start - start) / PAGE, (one->end - one->start) / PAGE,
			   mirror->copy + (one->start - start));
		reported += whole ? (one->end - one->start) / PAGE : 0;
	}
	return reported;
}

long first_difference(struct mirror *mirror)
{
	static char now[64 * PAGE];

	for (size_t i = 0; i < mirror->pages; i += 64) {
		size_t count = mirror->pages - i < 64 ? mirror->pages - i : 64;

		read_pages(mirror, i, count, now);
		for (size_t page = 0; page < count; page++)
			if (memcmp(now + page * PAGE, mirror->copy + (i + page) * PAGE, PAGE) != 0) return (long)(i + page);
	}
	return -1;
}

void expect_equal(struct mirror *mirror)
{
	long page = first_difference(mirror);

	if (page >= 0) FAIL("page %ld was written and not reported", page);
}

/* Moving a page (here: none) empties the lists of all processors. */
static void drain(void)
{
	void *page = NULL;
	int node = 0, status;

	syscall(SYS_move_pages, 0, 1, &page, &node, &status, 0);
}

void settle(struct mirror *mirror, size_t most)
{
	size_t reported;

	drain();
	reported = sync_mirror(mirror);
	expect_equal(mirror);
	if (reported <= most) return;
	for (size_t i = 0; i < mirror->records.count && i < 40; i++) {
		const struct icp_range *one = &mirror->records.at[i];

		printf("%6ld + %-5lu %s%s%s%s%s%s%s%s%s\n", ((long)one->start - (long)(uintptr_t)mirror->start) / (long)PAGE,
		       (unsigned long)(one->end - one->start) / PAGE, one->flags & ICP_RANGE_MAPPING ? " mapping" : "",
		       one->flags & ICP_RANGE_NEW ? " new" : "", one->flags & ICP_RANGE_WHOLE ? " whole" : "",
		       one->flags & ICP_RANGE_SHARED ? " shared" : "", one->flags & ICP_RANGE_WRITTEN ? " written" : "",
		       one->flags & ICP_RANGE_DATA ? " data" : "", one->flags & ICP_RANGE_FILE ? " file" : "",
		       one->flags & ICP_RANGE_ZERO ? " zero" : "", one->flags & ICP_RANGE_NONE ? " none" : "");
	}
	FAIL("%zu pages reported, at most %zu expected", reported, most);
}

char *map(size_t bytes, int flags)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

char *map_huge(size_t bytes)
{
	char *at = map(bytes + HUGE, MAP_PRIVATE);

	at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	CHECK(madvise(at, bytes, MADV_HUGEPAGE) == 0);
	return at;
}

bool is_huge(void *at)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[512];
	bool here = false, huge = false;

	CHECK(smaps != NULL);
	while (fgets(line, sizeof line, smaps)) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (uintptr_t)at && (uintptr_t)at < end;
		else if (here && sscanf(line, "AnonHugePages: %lu", &start) == 1)
			huge = start > 0;
	}
	fclose(smaps);
	return huge;
}

void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0) FAIL("cannot write '%s' to %s: %m", text, path);
	close(fd);
}

void small_pages(void) { CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0); }

struct child start_child(void (*body)(int step, void *arg), void *arg)
{
	struct child child;
	int to[2], from[2], step;

	CHECK(pipe(to) == 0 && pipe(from) == 0);
	child.pid = fork();
	CHECK(child.pid >= 0);
	if (child.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		close(from[0]);
		while (read(to[0], &step, sizeof step) == sizeof step) {
			body(step, arg);
			if (write(from[1], &step, sizeof step) != sizeof step) break;
		}
		_exit(0);
	}
	close(to[0]);
	close(from[1]);
	child.to = to[1];
	child.from = from[0];
	return child;
}

void turn(struct child *child, int step)
{
	CHECK(write(child->to, &step, sizeof step) == sizeof step);
	if (read(child->from, &step, sizeof step) != sizeof step) FAIL("the child died");
}

void end_child(struct child *child)
{
	close(child->to);
	close(child->from);
	kill(child->pid, SIGKILL);
	waitpid(child->pid, NULL, 0);
}
