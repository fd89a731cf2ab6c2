/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the cases share. A case runs in a process of its own, and passes when it returns.
 *
 * The heart is the mirror: a copy of some memory of a process that is brought up to date only where the module says
 * that something was written. Whenever the process stands still, mirror and memory must be equal.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include "kmod/uapi/icp_track.h"

#define PAGE 4096ul
#define HUGE (2ul << 20)

/* Ends the case: failed, or not possible on this kernel. */
void fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4), noreturn));
void skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#define FAIL(...) fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition)                                           \
	do {                                                       \
		if (!(condition)) FAIL("%s (errno %m)", #condition); \
	} while (0)
#define CHECK_ERROR(call, error)                                                      \
	do {                                                                          \
		errno = 0;                                                            \
		if ((call) != -1 || errno != (error)) FAIL("%s: not %s, but %m", #call, #error); \
	} while (0)

/* A descriptor that has said HELLO; tracking `pid` unless 0. */
int open_device(void);
int track(pid_t pid);
int track_with(pid_t pid, struct icp_track *track); /* of a new descriptor; the result of the ioctl in errno */
int open_pidfd(pid_t pid);

/* All records of [start, end), over as many calls as a vector of `capacity` needs. */
struct records {
	struct icp_range *at;
	size_t count, room;
};
void collect(int fd, uint64_t start, uint64_t end, bool peek, uint32_t flags, uint32_t capacity, struct records *records);
/* Flags of the page record that holds an address; 0 when none does. */
uint32_t flags_of(const struct records *records, uint64_t address);
uint32_t mapping_flags_of(const struct records *records, uint64_t address);
uint64_t written_pages(const struct records *records, uint64_t start, uint64_t end);

struct mirror {
	int fd;
	pid_t pid; /* 0: this process */
	char *start;
	size_t pages;
	char *copy;
	uint32_t capacity; /* of the vectors used */
	bool sparse;	   /* private anonymous memory of this process, mostly holes: those are not read, which is slow */
	struct records records;
};
struct mirror mirror_of(pid_t pid, void *start, size_t bytes);
/* Brings the mirror up to date; returns the number of pages with data reported as written (new ones included). */
size_t sync_mirror(struct mirror *mirror);
/* Fails the case when mirror and memory differ. */
void expect_equal(struct mirror *mirror);
/* Both, and at most `most` pages reported. */
void settle(struct mirror *mirror, size_t most);
/* The number of the first page that differs; -1 when none does. */
long first_difference(struct mirror *mirror);

/* Pages of lists of a processor (15 pages, from 6.9 on 31) look as if somebody else had them, and are reported twice.
 * settle() empties those lists; what the case does after that may fill them again. */
#define SLACK 32

char *map(size_t bytes, int flags); /* MAP_ANONYMOUS, readable and writable */
char *map_huge(size_t bytes);	    /* aligned to and advised for huge pages */
bool is_huge(void *at);		    /* mapped by a huge page */
void write_text(const char *path, const char *text);
void small_pages(void); /* no transparent huge pages in this process */

/* A child that runs `body` between two barriers each time `turn` is called; killed with the case. */
struct child {
	pid_t pid;
	int to, from;
};
struct child start_child(void (*body)(int step, void *arg), void *arg);
void turn(struct child *child, int step);
void end_child(struct child *child);

struct test_case {
	const char *name;
	void (*run)(void);
	int seconds; /* 0: 1800 */
};
extern const struct test_case interface_cases[], memory_cases[], sharing_cases[], kernel_cases[], lifetime_cases[],
	shm_cases[], fuzz_cases[];
