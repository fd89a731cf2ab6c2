// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel does to page-table entries besides faults (Documentation/mm/mmu_notifier.rst).
 *
 * An event is logged before the change and again after it: a collect may run in between, see the entry as it was, and
 * take the first mark away.
 */
#include "icp_track.h"

static void log_event(struct icp_view *view, const struct mmu_notifier_range *range)
{
	if (READ_ONCE(view->gone))
		return;
	atomic64_inc(&view->events);
	switch (range->event) {
	case MMU_NOTIFY_PROTECTION_PAGE: /* write-protected: fork, writeback; soft-dirty stays */
	case MMU_NOTIFY_RELEASE:
		return;
	case MMU_NOTIFY_SOFT_DIRTY: /* somebody else wrote to clear_refs: the bits we rely on are wiped */
		icp_log_lost(view);
		return;
	case MMU_NOTIFY_UNMAP:
		icp_log_range(view, range->start, range->end, ICP_DIRTY);
		return;
	case MMU_NOTIFY_PROTECTION_VMA: /* may come back writable without a fault */
		icp_log_range(view, range->start, range->end, ICP_LOOK);
		return;
	default: /* CLEAR, MIGRATE and what later kernels add */
		icp_log_range(view, range->start, range->end, ICP_GONE);
		return;
	}
}

static int range_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct icp_view *view = container_of(notifier, struct icp_view, notifier);

	atomic_inc(&view->invalidations);
	log_event(view, range);
	return 0;
}

static void range_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct icp_view *view = container_of(notifier, struct icp_view, notifier);

	/* The end of a range whose start came before this notifier was registered lowers nothing. */
	atomic_add_unless(&view->invalidations, -1, 0);
	log_event(view, range);
}

/* At the end of the address space, and when the notifier is unregistered: processes may run on in it then. */
static void mm_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	icp_view_ended(container_of(notifier, struct icp_view, notifier), !atomic_read(&mm->mm_users));
}

const struct mmu_notifier_ops icp_notifier_ops = {
	.release = mm_release,
	.invalidate_range_start = range_start,
	.invalidate_range_end = range_end,
};
