// SPDX-License-Identifier: GPL-2.0-or-later
/* Entries that are no pages are asked by the names of leafops.h, in place of those of swapops.h (7.x). */
#include <linux/mm.h>
#include <linux/swap.h>
#include <linux/leafops.h>

int ask(pte_t pte);
int ask(pte_t pte)
{
	return softleaf_is_swap(softleaf_from_pte(pte)) + softleaf_is_marker(softleaf_from_pte(pte));
}
