/* SPDX-License-Identifier: GPL-2.0-or-later WITH Linux-syscall-note */
/*
 * /dev/icp_track: which pages of a process were written. The interface of icp_track.ko.
 *
 * A descriptor of the device is a handle on at most one process. The first ioctl on it must be HELLO. Opening needs
 * CAP_SYS_ADMIN; TRACK needs CAP_SYS_PTRACE over the process as well.
 *
 * All structures have the same layout for 32- and 64-bit callers. Fields named `zero` must be 0. Addresses are bytes,
 * multiples of the page size. Any ioctl may fail with:
 *   EFAULT  a pointer is wrong          EINVAL  a number or flag is wrong
 *   EPROTO  no HELLO yet                ENOTTY  no such ioctl
 *   ENODEV  nothing is tracked          ESRCH   the address space is gone (exit, exec)
 *   EINTR   a fatal signal
 * A descriptor may be used by several threads; they take turns.
 */
#ifndef ICP_TRACK_UAPI_H
#define ICP_TRACK_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define ICP_TRACK_DEVICE "/dev/icp_track"
#define ICP_TRACK_ABI 1

/* HELLO: in: the ABI the caller was built for. EPROTO when the module speaks another; `abi` then says which. */
struct icp_hello {
	__u32 abi;
	__u32 zero;
	__u64 features; /* out: ICP_FEATURE_* */
};

#define ICP_FEATURE_SHM_CREATE (1ull << 0)  /* SHM_READ reports created segments */
#define ICP_FEATURE_SHM_ATTACH (1ull << 1)  /* ... attached */
#define ICP_FEATURE_SHM_DETACH (1ull << 2)  /* ... detached */
#define ICP_FEATURE_SHM_REMOVE (1ull << 3)  /* ... removed */
#define ICP_FEATURE_BROKEN     (1ull << 63) /* a part was left out on purpose, for tests: never trust this module */

/*
 * TRACK: starts tracking the address space of the process behind `pidfd`. The first COLLECT reports everything.
 *
 * Without flags the tracking ends when the descriptor is closed. With ICP_TRACK_KEEP it ends with the address space or
 * by UNTRACK, and a later TRACK with KEEP and the same key, on another descriptor, goes on with it; ICP_TRACK_EXISTED
 * is then set in `flags`, and `cookie` is what COOKIE left there (zeros when a COLLECT came after it).
 * EBUSY: this descriptor tracks already, or another descriptor holds the tracking kept under this key.
 * EPERM: no CAP_SYS_PTRACE in the user namespace of the address space. ESRCH: the process has ended or is a kernel
 * thread. ENOSPC: too many trackings (module parameter max_views).
 */
struct icp_track {
	__s32 pidfd;
	__u32 flags;
	__u64 key; /* only with KEEP */
	__u64 cookie[2];
};

#define ICP_TRACK_KEEP    (1u << 0)
#define ICP_TRACK_EXISTED (1u << 1) /* out */

/* COOKIE: what later TRACKs are to see, until the next COLLECT. Names the image a COLLECT's pages went to. */
struct icp_cookie {
	__u64 cookie[2];
};

/*
 * COLLECT: what was written in [start, end) since the last COLLECT, and tracks it afresh from this moment: a write
 * during the call is reported by it or by the next one. PEEK: the same answer, but changes nothing.
 *
 * Records are ascending. A mapping gives one ICP_RANGE_MAPPING record per part (a mapping can be partly new), followed
 * by records of pages inside it, merged where adjacent and alike. The call ends early when the vector is full, and then
 * `next` < `end` is where the next call must go on; it is `end` when all is done. What a call has not reported yet is
 * not tracked afresh yet. A vector must have room for at least ICP_MIN_RECORDS.
 * EFAULT with a writable vector elsewhere cannot happen; when it happens all the same, the next COLLECT reports all.
 */
struct icp_collect {
	__u64 start, end;
	__u64 records;  /* struct icp_range *, room for `capacity` */
	__u32 capacity; /* ICP_MIN_RECORDS ... ; more than 65536 are not filled in one call */
	__u32 flags;    /* ICP_COLLECT_* */
	__u32 count;    /* out */
	__u32 zero;
	__u64 next;     /* out */
};

#define ICP_COLLECT_ALL (1u << 0) /* unwritten pages with data as well (goes through all page tables) */
#define ICP_MIN_RECORDS 4
#define ICP_MAX_ADDRESS (1ull << 56) /* no `end` is above; what user space cannot have is empty */

struct icp_range {
	__u64 start, end;
	__u32 flags;
	__u32 zero;
};

/* Records of mappings */
#define ICP_RANGE_MAPPING (1u << 0)
#define ICP_RANGE_NEW     (1u << 1) /* was not tracked: all its pages with data are listed, as written */
#define ICP_RANGE_WHOLE   (1u << 2) /* cannot be tracked (device, hugetlb): take all of it; no page records follow */
#define ICP_RANGE_SHARED  (1u << 3) /* MAP_SHARED: if also NEW, no page records follow and all counts as written */
/* Records of pages */
#define ICP_RANGE_WRITTEN (1u << 8)
/* What is there now: one of */
#define ICP_RANGE_DATA    (1u << 9)  /* private data, present or swapped */
#define ICP_RANGE_FILE    (1u << 10) /* a page of the file or shared object */
#define ICP_RANGE_ZERO    (1u << 11) /* the shared page of zeros */
#define ICP_RANGE_NONE    (1u << 12) /* nothing: discarded, or dropped from the page table */

/* STATS: of the tracking, since TRACK. */
struct icp_stats {
	__u64 faults;        /* logged page faults */
	__u64 events;        /* invalidations looked at */
	__u64 collects;      /* calls that tracked afresh */
	__u64 resets;        /* times the log was lost (memory, foreign clear_refs) and all counted as new */
	__u64 pages_walked;  /* page-table entries looked at */
	__u64 log_bytes;     /* memory of the log now */
	__u64 armed_bytes;   /* bytes tracked now */
	__u64 views;         /* trackings in the module, of all processes */
};

/*
 * SHM_WATCH: from now on, keep events of System V shared memory for this descriptor. SHM_READ: takes them out, oldest
 * first. `lost` counts those that fell out of the buffer before they were read (it holds 4096, for all descriptors).
 */
struct icp_shm_read {
	__u64 events;   /* struct icp_shm_event * */
	__u32 capacity; /* 1 ... 4096 */
	__u32 count;    /* out */
	__u64 lost;     /* out */
};

struct icp_shm_event {
	__u64 time_ns;   /* CLOCK_BOOTTIME */
	__u64 ipc_inum;  /* inode number of /proc/PID/ns/ipc */
	__u64 bytes;     /* created: size asked for; else 0 */
	__s32 id;
	__s32 key;       /* created: the key; else 0 */
	__s32 pid;       /* thread group, in the initial pid namespace */
	__u32 uid;       /* effective, in the initial user namespace */
	__u32 kind;      /* ICP_SHM_* */
	__u32 zero;
	__u64 cgroup;         /* inode number of the process's cgroup in the unified hierarchy (version 2) */
	__u64 cgroup_freezer; /* the same in the hierarchy that has version 1's freezer; 0: the kernel has none */
};

#define ICP_SHM_CREATED  1
#define ICP_SHM_ATTACHED 2 /* shmat */
#define ICP_SHM_DETACHED 3 /* shmdt, munmap, exit: a mapping is gone */
#define ICP_SHM_REMOVED  4
#define ICP_SHM_INHERITED 5 /* a mapping was copied: fork (pid is the parent's), split, move */

#define ICP_IOC_HELLO    _IOWR(0xC9, 0, struct icp_hello)
#define ICP_IOC_TRACK    _IOWR(0xC9, 1, struct icp_track)
#define ICP_IOC_COLLECT  _IOWR(0xC9, 2, struct icp_collect)
#define ICP_IOC_PEEK     _IOWR(0xC9, 3, struct icp_collect)
#define ICP_IOC_UNTRACK  _IO(0xC9, 4)
#define ICP_IOC_STATS    _IOR(0xC9, 5, struct icp_stats)
#define ICP_IOC_COOKIE   _IOW(0xC9, 6, struct icp_cookie)
#define ICP_IOC_SHM_WATCH _IO(0xC9, 7)
#define ICP_IOC_SHM_READ _IOWR(0xC9, 8, struct icp_shm_read)

#endif
