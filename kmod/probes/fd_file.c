// SPDX-License-Identifier: GPL-2.0-or-later
/* fd_file() (6.12). */
#include <linux/file.h>

struct file *file_of(struct fd f);
struct file *file_of(struct fd f)
{
	return fd_file(f);
}
