// SPDX-License-Identifier: GPL-2.0-or-later
/* Anonymous memory comes in large pages of several sizes (6.8). */
#include <linux/mm.h>
#include <linux/huge_mm.h>

unsigned long ask(struct vm_area_struct *vma);
unsigned long ask(struct vm_area_struct *vma)
{
	return thp_vma_allowable_orders(vma, vma->vm_flags, 0, THP_ORDERS_ALL_ANON);
}
