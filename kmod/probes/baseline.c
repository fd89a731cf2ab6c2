// SPDX-License-Identifier: GPL-2.0-or-later
/* Compiles everywhere. */
#include <linux/module.h>
MODULE_LICENSE("GPL");
