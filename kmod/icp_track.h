/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * icp_track.ko inside. Who calls whom:
 *
 *   device.c -> view.c (a tracking), collect.c (what was written), shm.c (System V events)
 *   fault.c, notifier.c -> log.c (where to look)
 *   collect.c -> log.c, ranges.c (what is armed), walk.c (page-table entries)
 *
 * The truth about a page is in its page-table entry: written when the soft-dirty bit or the write bit is set. The log
 * only says where to look, so that a collect costs what was written. Whatever cannot be logged makes the next collect
 * look further, or take everything: never miss anything.
 *
 * Locks, outermost first: view->mutex; the target's mmap_lock (write); icp_views_lock (spin); view->lock (spin);
 * page-table locks are never held together with view->lock of the same view, except by icp_log_mark() under PTL.
 */
#ifndef ICP_TRACK_H
#define ICP_TRACK_H

#include <linux/kref.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "uapi/icp_track.h"

#ifndef CONFIG_MEM_SOFT_DIRTY
#error "icp_track needs a kernel with CONFIG_MEM_SOFT_DIRTY: without it a write before a fork would be lost"
#endif
#ifdef CONFIG_PREEMPT_RT
#error "icp_track does not support PREEMPT_RT: its fault hook takes spinlocks with preemption disabled"
#endif

#define ICP_REGION_SHIFT PMD_SHIFT
#define ICP_REGION_SIZE (1ul << ICP_REGION_SHIFT)
#define ICP_REGION_PAGES (1u << (PMD_SHIFT - PAGE_SHIFT))

/* What is known of a page of the log */
#define ICP_LOOK 1u  /* its entry may say written */
#define ICP_GONE 2u  /* its entry may have been cleared: written if nothing of ours is there now */
#define ICP_DIRTY 4u /* written, whatever the entry says */

/* Ranges, sorted and disjoint: ranges.c */
struct icp_ranges {
	struct icp_span {
		unsigned long start, end;
	} *spans;
	unsigned int count, room;
};

void icp_ranges_clear(struct icp_ranges *ranges);
/* Both fail with -ENOMEM and leave the ranges as they were. */
int icp_ranges_add(struct icp_ranges *ranges, unsigned long start, unsigned long end);
int icp_ranges_remove(struct icp_ranges *ranges, unsigned long start, unsigned long end);
/* The part of [start, end) at `start`: true when it is inside, and *upto is where that changes. */
bool icp_ranges_part(const struct icp_ranges *ranges, unsigned long start, unsigned long end, unsigned long *upto);
u64 icp_ranges_bytes(const struct icp_ranges *ranges);

/* One region (2 MiB) of the log, page by page */
struct icp_region {
	DECLARE_BITMAP(look, ICP_REGION_PAGES);
	DECLARE_BITMAP(gone, ICP_REGION_PAGES);
	DECLARE_BITMAP(dirty, ICP_REGION_PAGES);
	struct rcu_head rcu;
};

/* log.c. Regions are in an xarray: a value entry holds ICP_* flags for all of the region, a pointer is a region. */
#define ICP_BIG_RANGES 64

struct icp_log {
	struct xarray regions;
	unsigned int region_count, value_count;
	bool lost;     /* all that is tracked counts as new */
	bool closed;   /* nothing is added any more */
	bool look_all; /* look at all entries */
	unsigned int big_count;
	struct icp_span big[ICP_BIG_RANGES]; /* large discarded or unmapped ranges: count as new */
};

/* A tracking: one address space, seen by one user of the device */
struct icp_view {
	struct kref ref;
	struct hlist_node hash; /* in icp_views, RCU */
	struct mm_struct *mm;   /* pinned by the notifier (mm_count) */
	struct mmu_notifier notifier;
	struct work_struct free_work;
	struct rcu_head rcu;

	struct mutex mutex; /* one collect at a time */
	spinlock_t lock;    /* log */
	struct icp_log log;
	atomic_t invalidations; /* between invalidate_range_start and _end */
	bool gone;              /* the address space has ended */

	/* Under the target's mmap_lock (write) */
	struct icp_ranges armed;   /* tracked: an unlogged page is unwritten */
	struct icp_ranges suspect; /* armed, but all entries must be looked at */
	unsigned int copy_events;  /* for icp_copies_since() */

	/* Kept trackings, under icp_views_lock */
	bool keep, held;
	u64 key;
	u64 cookie[2];

	atomic64_t faults, events;
	u64 collects, resets, pages_walked;
};

/* view.c */
extern unsigned int icp_view_count;
struct icp_view *icp_view_track(struct icp_track *track); /* ERR_PTR; a reference, to be let go by release */
void icp_view_release(struct icp_view *view);             /* the descriptor is closed */
void icp_view_untrack(struct icp_view *view);             /* ends it, kept or not */
void icp_view_set_cookie(struct icp_view *view, const u64 cookie[2]);
void icp_view_ended(struct icp_view *view, bool unused);  /* from the notifier; unused: no process has it any more */
void icp_view_stats(struct icp_view *view, struct icp_stats *stats);
/* Calls for each view of the address space; under RCU. */
void icp_views_for_each(struct mm_struct *mm, void (*call)(struct icp_view *, void *), void *arg);
int icp_views_init(void);
void icp_views_exit(void);

/* log.c: all callable with preemption disabled */
int icp_log_init(void);
void icp_log_exit(void);
void icp_log_setup(struct icp_log *log);
void icp_log_page(struct icp_view *view, unsigned long address, unsigned int what);
void icp_log_range(struct icp_view *view, unsigned long start, unsigned long end, unsigned int what);
void icp_log_lost(struct icp_view *view);
void icp_log_look_all(struct icp_view *view);
/* Takes a region out of the log into *region. False when it holds nothing. */
bool icp_log_take(struct icp_view *view, unsigned long index, struct icp_region *region);
/* Puts pages [first, end) of *region back. */
void icp_log_put_back(struct icp_view *view, unsigned long index, const struct icp_region *region, unsigned int first,
		      unsigned int end);
/* The same without taking out, for PEEK */
bool icp_log_read(struct icp_view *view, unsigned long index, struct icp_region *region);
/* First logged region in [index, last]; ULONG_MAX when there is none. */
unsigned long icp_log_next(struct icp_view *view, unsigned long index, unsigned long last);
void icp_log_forget(struct icp_view *view, unsigned long first, unsigned long last); /* drops whole regions */
/* Frees all of it, for good. The fault hook must not run any more. */
void icp_log_purge(struct icp_view *view);
u64 icp_log_bytes(struct icp_view *view);

/* walk.c */
struct icp_walk {
	bool rearm;
	unsigned long flushed; /* entries changed so far: a TLB flush is due */
	u64 looked;
	/*
	 * For each entry, under its lock: what it holds (ICP_RANGE_DATA ...), whether it says written, and whether it
	 * is busy: left as it is, to be looked at again. `pages` is more than 1 for huge pages and holes. Returns < 0
	 * to stop before this entry is changed, with walk->stop set to where to go on.
	 */
	int (*entry)(struct icp_walk *walk, unsigned long address, unsigned int pages, u32 state, bool written,
		     bool busy);
	unsigned long stop;
	/* Set by the walk: the large page that the last entry maps a part of; equal when it is none. */
	unsigned long compound_start, compound_end;
};

/* Visits the entries of [start, end) of one mapping. Returns 0 or what entry() returned. */
int icp_walk_range(struct vm_area_struct *vma, unsigned long start, unsigned long end, struct icp_walk *walk);
/* Mapped by one entry of the next level, or was until it is migrated. */
bool icp_is_huge(struct vm_area_struct *vma, unsigned long address);
bool icp_can_track(struct vm_area_struct *vma);
void icp_arm_vma(struct vm_area_struct *vma);
void icp_flush_tlb(void);
bool icp_can_flush(void);

/* collect.c */
long icp_collect(struct icp_view *view, struct icp_collect *collect, bool rearm);

/* fault.c */
bool icp_copies_since(unsigned int *seen); /* pages installed by userfaultfd, past the fault path */
extern bool icp_no_hook, icp_no_flush; /* negative controls of the tests */
int icp_fault_init(void);
void icp_fault_exit(void);

/* notifier.c */
extern const struct mmu_notifier_ops icp_notifier_ops;

/* shm.c */
int icp_shm_init(void);
void icp_shm_exit(void);
u64 icp_shm_features(void);
struct icp_shm_reader;
struct icp_shm_reader *icp_shm_watch(void); /* ERR_PTR */
void icp_shm_unwatch(struct icp_shm_reader *reader);
long icp_shm_read(struct icp_shm_reader *reader, struct icp_shm_read *read);

/* device.c */
int icp_device_init(void);
void icp_device_exit(void);

#endif
