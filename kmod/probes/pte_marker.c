// SPDX-License-Identifier: GPL-2.0-or-later
/* Entries that are neither pages nor swapped pages (5.19). */
#include <linux/pagemap.h>
#include <linux/swap.h>
#include <linux/swapops.h>

int ask(swp_entry_t entry);
int ask(swp_entry_t entry)
{
	return is_pte_marker_entry(entry);
}
