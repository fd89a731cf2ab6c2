// SPDX-License-Identifier: GPL-2.0-or-later
/* vm_flags are changed by functions (6.3). */
#include <linux/mm.h>

void clear(struct vm_area_struct *vma);
void clear(struct vm_area_struct *vma)
{
	vm_flags_clear(vma, VM_SOFTDIRTY);
}
