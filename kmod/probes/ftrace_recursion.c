// SPDX-License-Identifier: GPL-2.0-or-later
/* ftrace guards against recursion when asked to (5.11). */
#include <linux/ftrace.h>

unsigned long flag = FTRACE_OPS_FL_RECURSION;
