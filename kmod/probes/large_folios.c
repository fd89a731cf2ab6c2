// SPDX-License-Identifier: GPL-2.0-or-later
/* Anonymous memory comes in large pages of several sizes (6.8). */
#include <linux/mm.h>
#include <linux/huge_mm.h>

unsigned long orders = THP_ORDERS_ALL_ANON;
