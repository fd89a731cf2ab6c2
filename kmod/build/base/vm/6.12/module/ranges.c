// SPDX-License-Identifier: GPL-2.0-or-later
/* Sorted, disjoint ranges of addresses. The caller's lock protects them; may sleep. */
#include <linux/slab.h>
#include <linux/string.h>

#include "icp_track.h"

/* A process can have some 65530 mappings (vm.max_map_count); this many say that something is wrong. */
#define ICP_MAX_SPANS (1u << 20)

/* Index of the first span that ends after `address`. */
static unsigned int first_after(const struct icp_ranges *ranges, unsigned long address)
{
	unsigned int low = 0, high = ranges->count;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;

		if (ranges->spans[mid].end <= address)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static int make_room(struct icp_ranges *ranges, unsigned int count)
{
	struct icp_span *spans;
	unsigned int room;

	if (count <= ranges->room)
		return 0;
	if (count > ICP_MAX_SPANS)
		return -ENOMEM;
	room = max(count + count / 2, 16u);
	spans = kvmalloc_array(room, sizeof(*spans), GFP_KERNEL_ACCOUNT);
	if (!spans)
		return -ENOMEM;
	if (ranges->count)
		memcpy(spans, ranges->spans, ranges->count * sizeof(*spans));
	kvfree(ranges->spans);
	ranges->spans = spans;
	ranges->room = room;
	return 0;
}

void icp_ranges_clear(struct icp_ranges *ranges)
{
	kvfree(ranges->spans);
	memset(ranges, 0, sizeof(*ranges));
}

/* Replaces spans [first, last) by `count` others. */
static int replace(struct icp_ranges *ranges, unsigned int first, unsigned int last, const struct icp_span *others,
		   unsigned int count)
{
	int error = make_room(ranges, ranges->count - (last - first) + count);

	if (error)
		return error;
	if (ranges->count > last)
		memmove(ranges->spans + first + count, ranges->spans + last,
			(ranges->count - last) * sizeof(*others));
	if (count)
		memcpy(ranges->spans + first, others, count * sizeof(*others));
	ranges->count = ranges->count - (last - first) + count;
	return 0;
}

int icp_ranges_add(struct icp_ranges *ranges, unsigned long start, unsigned long end)
{
	struct icp_span span = { start, end };
	unsigned int first, last;

	if (start >= end)
		return 0;
	first = start ? first_after(ranges, start - 1) : 0; /* one that ends at `start` is merged */
	for (last = first; last < ranges->count && ranges->spans[last].start <= end; last++) {
		span.start = min(span.start, ranges->spans[last].start);
		span.end = max(span.end, ranges->spans[last].end);
	}
	return replace(ranges, first, last, &span, 1);
}

int icp_ranges_remove(struct icp_ranges *ranges, unsigned long start, unsigned long end)
{
	struct icp_span rest[2];
	unsigned int first, last, count = 0;

	if (start >= end || !ranges->count)
		return 0;
	first = first_after(ranges, start);
	for (last = first; last < ranges->count && ranges->spans[last].start < end; last++) {
		if (ranges->spans[last].start < start)
			rest[count++] = (struct icp_span){ ranges->spans[last].start, start };
		if (ranges->spans[last].end > end)
			rest[count++] = (struct icp_span){ end, ranges->spans[last].end };
	}
	return replace(ranges, first, last, rest, count);
}

bool icp_ranges_part(const struct icp_ranges *ranges, unsigned long start, unsigned long end, unsigned long *upto)
{
	unsigned int at = first_after(ranges, start);

	if (at < ranges->count && ranges->spans[at].start <= start) {
		*upto = min(end, ranges->spans[at].end);
		return true;
	}
	*upto = at < ranges->count ? min(end, ranges->spans[at].start) : end;
	return false;
}

u64 icp_ranges_bytes(const struct icp_ranges *ranges)
{
	u64 bytes = 0;
	unsigned int i;

	for (i = 0; i < ranges->count; i++)
		bytes += ranges->spans[i].end - ranges->spans[i].start;
	return bytes;
}
