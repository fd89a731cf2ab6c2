// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The log of a tracking: where page-table entries may say something new.
 *
 * Filled by the fault hook (with the mmap_lock or the mapping's lock held for reading, hence never in the mappings of a
 * collect) and by mmu notifiers (at any time), emptied by collects. The hook's common case, a page of a region that is
 * logged already, takes no lock: it sets an atomic bit. Everything else is under view->lock.
 *
 * When a log is lost, all of its regions go, those of mappings that the collect has not locked, too: a fault there may
 * still set its bit. The bit does not matter, since nothing is armed any more; the memory does, so it is freed by RCU,
 * under which the hook runs (icp_views_for_each).
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "icp_track.h"

#define LOG_GFP (GFP_NOWAIT | __GFP_NOWARN | __GFP_ACCOUNT)
#define VALUE_BYTES 64 /* of an xarray node, for a region without bitmaps; more when they lie far apart */
#define MAX_LOOK_REGIONS (1ul << 16) /* 128 GiB: beyond it, look at all */
#define MIN_BIG_REGIONS 64

static unsigned int max_log_kib = 16384;
module_param(max_log_kib, uint, 0644);
MODULE_PARM_DESC(max_log_kib, "Memory for the log of one tracking, KiB; without room the next collect is full");

static struct kmem_cache *region_cache;

int icp_log_init(void)
{
	region_cache = KMEM_CACHE(icp_region, SLAB_ACCOUNT);
	return region_cache ? 0 : -ENOMEM;
}

void icp_log_exit(void)
{
	rcu_barrier(); /* free_by_rcu() is ours */
	kmem_cache_destroy(region_cache);
}

static void free_by_rcu(struct rcu_head *rcu)
{
	kmem_cache_free(region_cache, container_of(rcu, struct icp_region, rcu));
}

/* What erase() has given. */
static void free_entry(void *entry)
{
	if (entry && !xa_is_value(entry))
		call_rcu(&((struct icp_region *)entry)->rcu, free_by_rcu);
}

void icp_log_setup(struct icp_log *log)
{
	memset(log, 0, sizeof(*log));
	xa_init(&log->regions);
}

static u64 bytes_of(const struct icp_log *log)
{
	return (u64)log->region_count * (sizeof(struct icp_region) + VALUE_BYTES) + (u64)log->value_count * VALUE_BYTES;
}

u64 icp_log_bytes(struct icp_view *view)
{
	unsigned long flags;
	u64 bytes;

	spin_lock_irqsave(&view->lock, flags);
	bytes = bytes_of(&view->log);
	spin_unlock_irqrestore(&view->lock, flags);
	return bytes;
}

/* Atomic against set_bit() in the hook. */
static void set_bits(unsigned long *bitmap, unsigned int first, unsigned int end)
{
	while (first < end) {
		unsigned int bit = first % BITS_PER_LONG, count = min_t(unsigned int, BITS_PER_LONG - bit, end - first);

		if (count == BITS_PER_LONG)
			WRITE_ONCE(bitmap[first / BITS_PER_LONG], ~0ul);
		else
			atomic_long_or(((1ul << count) - 1) << bit, (atomic_long_t *)&bitmap[first / BITS_PER_LONG]);
		first += count;
	}
}

static void mark(struct icp_region *region, unsigned int first, unsigned int end, unsigned int what)
{
	if (what & ICP_LOOK)
		set_bits(region->look, first, end);
	if (what & ICP_GONE)
		set_bits(region->gone, first, end);
	if (what & ICP_DIRTY)
		set_bits(region->dirty, first, end);
}

static bool may_grow(struct icp_log *log)
{
	return bytes_of(log) < (u64)READ_ONCE(max_log_kib) * 1024;
}

/* Under view->lock. NULL: no memory. */
static struct icp_region *region_at(struct icp_log *log, unsigned long index)
{
	void *entry = xa_load(&log->regions, index);
	struct icp_region *region;

	if (entry && !xa_is_value(entry))
		return entry;
	if (!may_grow(log))
		return NULL;
	region = kmem_cache_zalloc(region_cache, LOG_GFP);
	if (!region)
		return NULL;
	if (entry)
		mark(region, 0, ICP_REGION_PAGES, xa_to_value(entry));
	if (xa_is_err(xa_store(&log->regions, index, region, LOG_GFP))) {
		kmem_cache_free(region_cache, region);
		return NULL;
	}
	if (entry)
		log->value_count--;
	log->region_count++;
	return region;
}

/* Under view->lock. Pages [first, end) of one region. */
static void log_part(struct icp_log *log, unsigned long index, unsigned int first, unsigned int end, unsigned int what)
{
	void *entry = xa_load(&log->regions, index);
	struct icp_region *region;

	if (first >= end || log->closed)
		return;
	if (xa_is_value(entry) && (xa_to_value(entry) & what) == what)
		return;
	if (end - first == ICP_REGION_PAGES && (!entry || xa_is_value(entry))) {
		if (entry)
			what |= xa_to_value(entry);
		else if (!may_grow(log))
			goto lost;
		if (xa_is_err(xa_store(&log->regions, index, xa_mk_value(what), LOG_GFP)))
			goto lost;
		log->value_count += !entry;
		return;
	}
	region = region_at(log, index);
	if (region) {
		mark(region, first, end, what);
		return;
	}
lost:
	WRITE_ONCE(log->lost, true);
}

/* Under view->lock. */
static void log_big(struct icp_log *log, unsigned long start, unsigned long end)
{
	unsigned int i;

	for (i = 0; i < log->big_count; i++) {
		if (start <= log->big[i].end && log->big[i].start <= end) {
			log->big[i].start = min(start, log->big[i].start);
			log->big[i].end = max(end, log->big[i].end);
			return;
		}
	}
	if (log->big_count < ICP_BIG_RANGES)
		log->big[log->big_count++] = (struct icp_span){ start, end };
	else
		WRITE_ONCE(log->lost, true);
}

void icp_log_page(struct icp_view *view, unsigned long address, unsigned int what)
{
	unsigned long index = address >> ICP_REGION_SHIFT, flags;
	unsigned int page = (address & (ICP_REGION_SIZE - 1)) >> PAGE_SHIFT;
	void *entry;

	if (READ_ONCE(view->log.lost))
		return;
	entry = xa_load(&view->log.regions, index);
	if (xa_is_value(entry) && what == ICP_LOOK)
		return; /* any mark means a look */
	if (entry && !xa_is_value(entry) && what == ICP_LOOK) {
		struct icp_region *region = entry;

		if (!test_bit(page, region->look))
			set_bit(page, region->look);
		return;
	}
	spin_lock_irqsave(&view->lock, flags);
	log_part(&view->log, index, page, page + 1, what);
	spin_unlock_irqrestore(&view->lock, flags);
}

void icp_log_range(struct icp_view *view, unsigned long start, unsigned long end, unsigned int what)
{
	unsigned long flags, first, last, index;

	if (start >= end || READ_ONCE(view->log.lost))
		return;
	start &= PAGE_MASK;
	end = end > TASK_SIZE_MAX ? TASK_SIZE_MAX : PAGE_ALIGN(end);
	if (start >= end)
		return;
	first = start >> ICP_REGION_SHIFT;
	last = (end - 1) >> ICP_REGION_SHIFT;
	spin_lock_irqsave(&view->lock, flags);
	if (last - first >= MIN_BIG_REGIONS && (what & (ICP_GONE | ICP_DIRTY))) {
		log_big(&view->log, start, end);
	} else if (last - first > MAX_LOOK_REGIONS) {
		WRITE_ONCE(view->log.look_all, true);
	} else {
		for (index = first; index <= last && !view->log.lost; index++) {
			unsigned long base = index << ICP_REGION_SHIFT;
			unsigned long from = max(start, base), to = min(end, base + ICP_REGION_SIZE);

			log_part(&view->log, index, (from - base) >> PAGE_SHIFT, (to - base) >> PAGE_SHIFT, what);
		}
	}
	spin_unlock_irqrestore(&view->lock, flags);
}

void icp_log_lost(struct icp_view *view)
{
	WRITE_ONCE(view->log.lost, true);
}

void icp_log_look_all(struct icp_view *view)
{
	WRITE_ONCE(view->log.look_all, true);
}

static bool read_entry(void *entry, struct icp_region *region)
{
	memset(region, 0, sizeof(*region));
	if (!entry)
		return false;
	if (xa_is_value(entry))
		mark(region, 0, ICP_REGION_PAGES, xa_to_value(entry));
	else
		memcpy(region, entry, sizeof(*region));
	return true;
}

bool icp_log_read(struct icp_view *view, unsigned long index, struct icp_region *region)
{
	unsigned long flags;
	bool found;

	spin_lock_irqsave(&view->lock, flags);
	found = read_entry(xa_load(&view->log.regions, index), region);
	spin_unlock_irqrestore(&view->lock, flags);
	return found;
}

/* Under view->lock. What was there, for free_entry(). */
static void *erase(struct icp_log *log, unsigned long index)
{
	void *entry = xa_erase(&log->regions, index);

	if (xa_is_value(entry))
		log->value_count--;
	else if (entry)
		log->region_count--;
	return entry;
}

bool icp_log_take(struct icp_view *view, unsigned long index, struct icp_region *region)
{
	unsigned long flags;
	void *entry;
	bool found;

	spin_lock_irqsave(&view->lock, flags);
	entry = erase(&view->log, index);
	found = read_entry(entry, region);
	spin_unlock_irqrestore(&view->lock, flags);
	free_entry(entry);
	return found;
}

void icp_log_put_back(struct icp_view *view, unsigned long index, const struct icp_region *region, unsigned int first,
		      unsigned int end)
{
	unsigned long flags;
	unsigned int page;

	spin_lock_irqsave(&view->lock, flags);
	for (page = first; page < end && !view->log.lost; page++) {
		unsigned int what = (test_bit(page, region->look) ? ICP_LOOK : 0) |
				    (test_bit(page, region->gone) ? ICP_GONE : 0) |
				    (test_bit(page, region->dirty) ? ICP_DIRTY : 0);

		if (what)
			log_part(&view->log, index, page, page + 1, what);
	}
	spin_unlock_irqrestore(&view->lock, flags);
}

unsigned long icp_log_next(struct icp_view *view, unsigned long index, unsigned long last)
{
	return xa_find(&view->log.regions, &index, last, XA_PRESENT) ? index : ULONG_MAX;
}

/* A region at a time: the lock is not held for long, and events that come meanwhile stay. */
void icp_log_forget(struct icp_view *view, unsigned long first, unsigned long last)
{
	unsigned long index = first, flags;

	while (index <= last && xa_find(&view->log.regions, &index, last, XA_PRESENT)) {
		void *entry;

		spin_lock_irqsave(&view->lock, flags);
		entry = erase(&view->log, index);
		spin_unlock_irqrestore(&view->lock, flags);
		free_entry(entry);
		if (index++ == ULONG_MAX)
			break;
	}
}

void icp_log_purge(struct icp_view *view)
{
	unsigned long flags;

	spin_lock_irqsave(&view->lock, flags);
	view->log.closed = true; /* what came in between would be lost with the xarray's nodes */
	spin_unlock_irqrestore(&view->lock, flags);
	icp_log_forget(view, 0, ULONG_MAX);
	xa_destroy(&view->log.regions);
}
