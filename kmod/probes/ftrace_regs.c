// SPDX-License-Identifier: GPL-2.0-or-later
/* Callbacks of ftrace get struct ftrace_regs (5.11). */
#include <linux/ftrace.h>

void callback(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *regs);
ftrace_func_t function = callback;
