// SPDX-License-Identifier: GPL-2.0-or-later
/* Mappings have locks of their own (6.4). */
#include <linux/mm.h>

void lock(struct vm_area_struct *vma);
void lock(struct vm_area_struct *vma)
{
	vma_start_write(vma);
}
