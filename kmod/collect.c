// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * COLLECT and PEEK: what was written, in the order of addresses.
 *
 * Mappings are cut into parts that are armed (tracked since the last collect) and new ones. In an armed part only logged
 * pages are looked at, unless all must be; a new one is gone through, and armed. Records go to memory of the kernel
 * first: the caller's memory may need a fault, which would wait for the lock we hold.
 */
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "icp_features.h"
#include "icp_track.h"

#define MAX_RECORDS 65536u
#define NO_REGION ULONG_MAX



struct icp_pass {
	struct icp_walk walk;
	struct icp_view *view;
	bool rearm, all, others;
	unsigned long start; /* of the call */

	struct icp_range *records;
	u32 count, capacity;

	/* The mapping's part under way */
	bool fresh;  /* not armed so far */
	bool shared; /* MAP_SHARED */
	/* The region under way, taken out of the log */
	unsigned long index;
	struct icp_region region;
	bool logged;
};

static int emit(struct icp_pass *pass, unsigned long start, unsigned long end, u32 flags)
{
	struct icp_range *last = pass->count ? &pass->records[pass->count - 1] : NULL;

	if (last && last->end == start && last->flags == flags && !(flags & ICP_RANGE_MAPPING)) {
		last->end = end;
		return 0;
	}
	if (pass->count == pass->capacity)
		return -ENOSPC;
	pass->records[pass->count++] = (struct icp_range){ .start = start, .end = end, .flags = flags };
	return 0;
}

struct dirty_range {
	struct icp_view *from;
	unsigned long start, end;
};

static void tell_other(struct icp_view *view, void *arg)
{
	struct dirty_range *range = arg;

	if (view != range->from)
		icp_log_range(view, range->start, range->end, ICP_DIRTY);
}

/* What this page is reported as; 0: not at all. */
static u32 verdict(const struct icp_pass *pass, unsigned long address, u32 state, bool written)
{
	unsigned int page = (address & (ICP_REGION_SIZE - 1)) >> PAGE_SHIFT;

	if (pass->fresh)
		return pass->shared || state == ICP_RANGE_NONE ? 0 : state | ICP_RANGE_WRITTEN;
	if (pass->logged)
		written = written || test_bit(page, pass->region.dirty) ||
			  (test_bit(page, pass->region.gone) && state != ICP_RANGE_DATA);
	if (written)
		return state | ICP_RANGE_WRITTEN;
	return pass->all && state != ICP_RANGE_NONE ? state : 0;
}

static int on_entry(struct icp_walk *walk, unsigned long address, unsigned int pages, u32 state, bool written, bool busy)
{
	struct icp_pass *pass = container_of(walk, struct icp_pass, walk);
	unsigned long end = address + ((unsigned long)pages << PAGE_SHIFT), at = address;

	while (at < end) {
		/* Entries of the page tables lie within a region; only a hole in a new part is larger. */
		unsigned long next = pass->fresh || !pass->logged ? end : at + PAGE_SIZE;
		u32 flags = verdict(pass, at, state, written);

		if (flags && emit(pass, at, next, flags)) {
			walk->stop = at;
			return -ENOSPC;
		}
		at = next;
	}
	if (!pass->rearm || !written)
		return 0;
	if (busy)
		icp_log_range(pass->view, address, end, ICP_LOOK);
	else if (pass->others)
		icp_views_for_each(pass->view->mm, tell_other,
				   &(struct dirty_range){ pass->view, address, end });
	return 0;
}

/* Lets go of the region under way. What lies before the call's start or after its stop was not looked at. */
static void finish_region(struct icp_pass *pass, unsigned long stop)
{
	unsigned long base = pass->index << ICP_REGION_SHIFT;

	if (pass->index == NO_REGION)
		return;
	if (pass->rearm && pass->logged) {
		if (atomic_read(&pass->view->invalidations)) {
			/* The change that was announced may come only now. */
			icp_log_put_back(pass->view, pass->index, &pass->region, 0, ICP_REGION_PAGES);
		} else {
			if (pass->start > base)
				icp_log_put_back(pass->view, pass->index, &pass->region, 0,
						 (pass->start - base) >> PAGE_SHIFT);
			if (stop < base + ICP_REGION_SIZE)
				icp_log_put_back(pass->view, pass->index, &pass->region,
						 stop > base ? (stop - base) >> PAGE_SHIFT : 0, ICP_REGION_PAGES);
		}
	}
	pass->index = NO_REGION;
	pass->logged = false;
}

static void begin_region(struct icp_pass *pass, unsigned long index)
{
	if (pass->index == index)
		return;
	finish_region(pass, ULONG_MAX);
	pass->index = index;
	if (pass->rearm)
		pass->logged = icp_log_take(pass->view, index, &pass->region);
	else
		pass->logged = icp_log_read(pass->view, index, &pass->region);
}

#ifdef ICP_HAVE_LARGE_FOLIOS
struct widening {
	struct icp_walk walk;
	struct icp_region *region;
	unsigned long base;
};

static int widen_entry(struct icp_walk *walk, unsigned long address, unsigned int pages, u32 state, bool written,
		       bool busy)
{
	struct widening *widening = container_of(walk, struct widening, walk);
	unsigned long start = max(walk->compound_start, widening->base);
	unsigned long end = min(walk->compound_end, widening->base + ICP_REGION_SIZE);

	if (start < end)
		bitmap_set(widening->region->look, (start - widening->base) >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT);
	return 0;
}
#endif

/* The next logged page at or after `page`, and the end of its run. */
static bool next_run(const struct icp_region *region, unsigned int page, unsigned int limit, unsigned int *first,
		     unsigned int *last)
{
	unsigned int word;

	for (; page < limit; page++) {
		word = page / BITS_PER_LONG;
		if (!(page % BITS_PER_LONG) && !(region->look[word] | region->gone[word] | region->dirty[word])) {
			page += BITS_PER_LONG - 1;
			continue;
		}
		if (test_bit(page, region->look) || test_bit(page, region->gone) || test_bit(page, region->dirty))
			break;
	}
	*first = page;
	while (page < limit &&
	       (test_bit(page, region->look) || test_bit(page, region->gone) || test_bit(page, region->dirty)))
		page++;
	*last = page;
	return *first < limit;
}

/* Only the logged pages of [start, end), which lies in the region under way. */
static int walk_logged(struct icp_pass *pass, struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
	unsigned long base = pass->index << ICP_REGION_SHIFT;
	unsigned int page = (start - base) >> PAGE_SHIFT, limit = (end - base) >> PAGE_SHIFT, first, last;
	int error = 0;

	if (!pass->logged)
		return 0;
	/* A write anywhere in a huge page is logged for one address, and its entry speaks for all of it. */
	if (icp_is_huge(vma, start))
		return icp_walk_range(vma, start, end, &pass->walk);
#ifdef ICP_HAVE_LARGE_FOLIOS
	{
		/* One fault can make all of a large page writable. */
		struct widening widening = { .walk.entry = widen_entry, .region = &pass->region, .base = base };
		unsigned int at = page;

		for (; next_run(&pass->region, at, limit, &first, &last); at = last)
			icp_walk_range(vma, base + ((unsigned long)first << PAGE_SHIFT),
				       base + ((unsigned long)last << PAGE_SHIFT), &widening.walk);
	}
#endif
	while (!error && next_run(&pass->region, page, limit, &first, &last)) {
		error = icp_walk_range(vma, base + ((unsigned long)first << PAGE_SHIFT),
				       base + ((unsigned long)last << PAGE_SHIFT), &pass->walk);
		page = last;
	}
	return error;
}

/* An armed part, or with `everywhere` any part, region by region. *stop: where it ended. */
static int walk_part(struct icp_pass *pass, struct vm_area_struct *vma, unsigned long start, unsigned long end,
		     bool everywhere, unsigned long *stop)
{
	unsigned long last = (end - 1) >> ICP_REGION_SHIFT, index = start >> ICP_REGION_SHIFT;
	int error = 0;

	for (; index <= last; index++) {
		unsigned long from, to;

		if (!everywhere && index != pass->index) {
			index = icp_log_next(pass->view, index, last);
			if (index > last)
				break;
		}
		begin_region(pass, index);
		from = max(start, index << ICP_REGION_SHIFT);
		to = min(end, (index + 1) << ICP_REGION_SHIFT);
		error = everywhere ? icp_walk_range(vma, from, to, &pass->walk) : walk_logged(pass, vma, from, to);
		if (error) {
			*stop = pass->walk.stop;
			return error;
		}
		if (fatal_signal_pending(current)) {
			*stop = to;
			return -EINTR;
		}
		cond_resched();
	}
	*stop = end;
	return 0;
}

static void must(struct icp_view *view, int error)
{
	if (error)
		icp_log_lost(view);
}

/* One part: armed or new throughout. */
static int collect_part(struct icp_pass *pass, struct vm_area_struct *vma, unsigned long start, unsigned long end,
			unsigned long *stop)
{
	struct icp_view *view = pass->view;
	unsigned long upto = start;
	u32 count = pass->count;
	bool suspect;
	int error = 0;

	*stop = start;
	error = emit(pass, start, end,
		     ICP_RANGE_MAPPING | (pass->shared ? ICP_RANGE_SHARED : 0) | (pass->fresh ? ICP_RANGE_NEW : 0));
	while (!error && *stop < end) {
		suspect = icp_ranges_part(&view->suspect, *stop, end, &upto);
		error = walk_part(pass, vma, *stop, upto, pass->fresh || pass->all || suspect, stop);
	}
	if (error && *stop == start)
		pass->count = count;
	else if (error && pass->count > count)
		pass->records[count].end = *stop;
	if (!pass->rearm || *stop == start)
		return error;
	must(view, icp_ranges_remove(&view->suspect, start, *stop));
	if (pass->fresh && !icp_ranges_add(&view->armed, start, *stop) && atomic_read(&view->invalidations))
		icp_log_range(view, start, *stop, ICP_GONE);
	return error;
}

static int collect_vma(struct icp_pass *pass, struct vm_area_struct *vma, unsigned long start, unsigned long end,
		       unsigned long *stop)
{
	struct icp_view *view = pass->view;
	unsigned long upto;
	int error = 0;

	*stop = start;
	pass->shared = vma->vm_flags & VM_SHARED;
	if (!icp_can_track(vma)) {
		error = emit(pass, start, end,
			     ICP_RANGE_MAPPING | ICP_RANGE_WHOLE | (pass->shared ? ICP_RANGE_SHARED : 0));
		if (error)
			return error;
		if (pass->rearm)
			must(view, icp_ranges_remove(&view->armed, start, end));
		*stop = end;
		return 0;
	}
	if (pass->rearm)
		icp_arm_vma(vma);
	while (!error && *stop < end) {
		pass->fresh = !icp_ranges_part(&view->armed, *stop, end, &upto);
		error = collect_part(pass, vma, *stop, upto, stop);
	}
	return error;
}

/* Nothing is mapped in [start, end): what comes there later is new. */
static void collect_gap(struct icp_pass *pass, unsigned long start, unsigned long end)
{
	if (!pass->rearm || start >= end)
		return;
	must(pass->view, icp_ranges_remove(&pass->view->armed, start, end));
	must(pass->view, icp_ranges_remove(&pass->view->suspect, start, end));
	if (end - start >= ICP_REGION_SIZE)
		icp_log_forget(pass->view, (start + ICP_REGION_SIZE - 1) >> ICP_REGION_SHIFT,
			       (end >> ICP_REGION_SHIFT) - 1);
}

static int collect_all(struct icp_pass *pass, unsigned long end, unsigned long *stop)
{
	struct mm_struct *mm = pass->view->mm;
	struct vm_area_struct *vma;
	int error = 0;

	*stop = pass->start;
	while (!error && *stop < end && (vma = find_vma(mm, *stop)) && vma->vm_start < end) {
		unsigned long from = max(*stop, vma->vm_start);

		collect_gap(pass, *stop, from);
		*stop = from;
		error = collect_vma(pass, vma, from, min(end, vma->vm_end), stop);
	}
	if (!error) {
		collect_gap(pass, *stop, end);
		*stop = end;
	}
	finish_region(pass, *stop);
	return error;
}

/* Where mappings have locks of their own, faults may be under way with those alone. */
static void lock_mappings(struct mm_struct *mm, unsigned long start, unsigned long end)
{
#ifdef ICP_HAVE_VMA_LOCK
	struct vm_area_struct *vma;
	unsigned long address = start & ~(ICP_REGION_SIZE - 1);

	end = ALIGN(end, ICP_REGION_SIZE);
	while (address < end && (vma = find_vma(mm, address)) && vma->vm_start < end) {
		vma_start_write(vma);
		address = vma->vm_end;
	}
#endif
}

/* What the notifiers could only say in general becomes part of the lists. */
static void settle(struct icp_view *view)
{
	struct icp_span big[ICP_BIG_RANGES];
	unsigned int count, i;
	bool lost, look_all;
	unsigned long flags;

	look_all = icp_copies_since(&view->copy_events);
	spin_lock_irqsave(&view->lock, flags);
	lost = view->log.lost;
	look_all = look_all || view->log.look_all;
	view->log.lost = view->log.look_all = false;
	count = view->log.big_count;
	memcpy(big, view->log.big, count * sizeof(big[0]));
	if (!atomic_read(&view->invalidations))
		view->log.big_count = 0;
	spin_unlock_irqrestore(&view->lock, flags);

	for (i = 0; i < count && !lost; i++)
		lost = icp_ranges_remove(&view->armed, big[i].start, big[i].end) != 0;
	for (i = 0; look_all && i < view->armed.count && !lost; i++)
		lost = icp_ranges_add(&view->suspect, view->armed.spans[i].start, view->armed.spans[i].end) != 0;
	if (lost) {
		/* Regions go that are not this call's: no fault may be looking at one. */
		lock_mappings(view->mm, 0, TASK_SIZE_MAX);
		view->resets++;
		icp_log_forget(view, 0, ULONG_MAX);
		icp_ranges_clear(&view->armed);
		icp_ranges_clear(&view->suspect);
	}
}

struct count_others {
	struct icp_view *view;
	bool any;
};

static void see_other(struct icp_view *view, void *arg)
{
	struct count_others *others = arg;

	others->any = others->any || view != others->view;
}

static long collect_locked(struct icp_pass *pass, unsigned long end, unsigned long *stop)
{
	struct count_others others = { pass->view, false };
	struct mm_struct *mm = pass->view->mm;
	int error;

	if (mmap_write_lock_killable(mm))
		return -EINTR;
	lock_mappings(mm, pass->start, end);
	icp_views_for_each(mm, see_other, &others);
	pass->others = others.any;
	settle(pass->view);
	error = collect_all(pass, end, stop);
	if (pass->walk.flushed)
		icp_flush_tlb();
	mmap_write_unlock(mm);
	pass->view->pages_walked += pass->walk.looked;
	if (pass->rearm)
		pass->view->collects++;
	return error == -ENOSPC ? 0 : error;
}

static long check(const struct icp_collect *collect)
{
	if (collect->zero || (collect->flags & ~ICP_COLLECT_ALL) || collect->capacity < ICP_MIN_RECORDS)
		return -EINVAL;
	if ((collect->start | collect->end) & ~PAGE_MASK)
		return -EINVAL;
	if (collect->start >= collect->end || collect->end > ICP_MAX_ADDRESS)
		return -EINVAL;
	return 0;
}

long icp_collect(struct icp_view *view, struct icp_collect *collect, bool rearm)
{
	static const u64 no_cookie[2];
	unsigned long stop = 0, end;
	struct icp_pass *pass;
	long error = check(collect);

	if (error)
		return error;
	pass = kzalloc(sizeof(*pass), GFP_KERNEL_ACCOUNT);
	if (!pass)
		return -ENOMEM;
	pass->capacity = min(collect->capacity, MAX_RECORDS);
	pass->records = kvmalloc_array(pass->capacity, sizeof(*pass->records), GFP_KERNEL_ACCOUNT);
	if (!pass->records) {
		kfree(pass);
		return -ENOMEM;
	}
	pass->view = view;
	pass->rearm = pass->walk.rearm = rearm;
	pass->walk.entry = on_entry;
	pass->all = collect->flags & ICP_COLLECT_ALL;
	pass->start = collect->start;
	end = min_t(u64, collect->end, TASK_SIZE_MAX);
	pass->index = NO_REGION;

	if (READ_ONCE(view->gone) || !mmget_not_zero(view->mm)) {
		error = -ESRCH;
		goto out;
	}
	if (mutex_lock_killable(&view->mutex)) {
		error = -EINTR;
	} else {
		if (rearm)
			icp_view_set_cookie(view, no_cookie);
		error = pass->start < end ? collect_locked(pass, end, &stop) : (stop = end, 0);
		/* Without its answer the caller must not believe the next one. */
		if (!error && copy_to_user(u64_to_user_ptr(collect->records), pass->records,
					   pass->count * sizeof(*pass->records)))
			error = -EFAULT;
		if (error && rearm)
			icp_log_lost(view);
		mutex_unlock(&view->mutex);
	}
	mmput(view->mm);
	collect->count = pass->count;
	collect->next = stop == end ? collect->end : stop;
out:
	kvfree(pass->records);
	kfree(pass);
	return error;
}
