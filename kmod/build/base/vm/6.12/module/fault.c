// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hooks on the kernel's page-fault code.
 *
 * handle_mm_fault() is where every fault goes through, those of get_user_pages() included; it runs with the mmap_lock
 * or the mapping's lock held. Hooked by ftrace with the PERMANENT flag: it cannot be switched off behind our back
 * (kernel.ftrace_enabled), as kprobes can.
 *
 * userfaultfd's copies install pages without a fault. They are rare: entering or leaving such a function just makes all
 * trackings look at all their entries.
 */
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/module.h>

#include "icp_features.h"
#include "icp_track.h"

bool icp_no_hook, icp_no_flush;
module_param_named(break_no_hook, icp_no_hook, bool, 0444);
MODULE_PARM_DESC(break_no_hook, "For tests of the tests: leave out the fault hook");
module_param_named(break_no_flush, icp_no_flush, bool, 0444);
MODULE_PARM_DESC(break_no_flush, "For tests of the tests: leave out the TLB flush");

static atomic_t copy_events;
static atomic_t copies_running;

struct fault {
	struct vm_area_struct *vma;
	unsigned long address;
	unsigned int flags;
};

static void log_fault(struct icp_view *view, void *arg)
{
	const struct fault *fault = arg;

	atomic64_inc(&view->faults);
	if (fault->flags & FAULT_FLAG_WRITE) {
		icp_log_page(view, fault->address, ICP_LOOK);
		return;
	}
	/* A read may map pages around it, or writable ones (shared memory, NUMA hinting, swapped pages of our own). */
	if (fault->vma->vm_flags & VM_WRITE) {
		unsigned long region = fault->address & ~(ICP_REGION_SIZE - 1);

		icp_log_range(view, max(region, fault->vma->vm_start), min(region + ICP_REGION_SIZE, fault->vma->vm_end),
			      ICP_LOOK);
	}
}

static void on_fault(struct vm_area_struct *vma, unsigned long address, unsigned int flags)
{
	struct fault fault = { vma, address, flags };

	icp_views_for_each(vma->vm_mm, log_fault, &fault);
}

#ifdef ICP_HAVE_FTRACE_REGS
static void notrace fault_hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
#if defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS) && defined(ftrace_regs_get_argument)
	on_fault((struct vm_area_struct *)ftrace_regs_get_argument(fregs, 0), ftrace_regs_get_argument(fregs, 1),
		 ftrace_regs_get_argument(fregs, 2));
#else
	struct pt_regs *regs = ftrace_get_regs(fregs);

	on_fault((struct vm_area_struct *)regs->di, regs->si, regs->dx);
#endif
}
#else
static void notrace fault_hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct pt_regs *regs)
{
	on_fault((struct vm_area_struct *)regs->di, regs->si, regs->dx);
}
#endif

static struct ftrace_ops fault_ops = {
	.func = fault_hook,
	.flags = FTRACE_OPS_FL_PERMANENT |
#if !(defined(ICP_HAVE_FTRACE_REGS) && defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS) && defined(ftrace_regs_get_argument))
		 FTRACE_OPS_FL_SAVE_REGS |
#endif
#ifdef ICP_HAVE_FTRACE_RECURSION
		 FTRACE_OPS_FL_RECURSION |
#endif
		 0,
};

/* Functions of mm/userfaultfd.c over the kernels; those that are not there are left out. */
static const char *const copy_functions[] = {
	"mcopy_atomic", "mfill_zeropage", "mcopy_continue", /* up to 6.2 */
	"mfill_atomic_copy", "mfill_atomic_zeropage", "mfill_atomic_continue", "mfill_atomic_poison", "move_pages",
};
static struct kretprobe copy_probes[ARRAY_SIZE(copy_functions)];
static unsigned int copy_probe_count;

static int copy_begins(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	atomic_inc(&copies_running);
	return 0;
}

static int copy_ends(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	atomic_inc(&copy_events);
	atomic_dec(&copies_running);
	return 0;
}

/* True when copies may have run since *seen was set. */
bool icp_copies_since(unsigned int *seen)
{
	unsigned int now = atomic_read(&copy_events), i;
	bool copied = now != *seen || atomic_read(&copies_running) > 0;

	for (i = 0; i < copy_probe_count; i++)
		copied = copied || copy_probes[i].nmissed != 0;
	*seen = now;
	return copied;
}

static int register_copy_probes(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(copy_functions); i++) {
		struct kretprobe *probe = &copy_probes[copy_probe_count];
		int error;

		memset(probe, 0, sizeof(*probe));
		probe->kp.symbol_name = copy_functions[i];
		probe->entry_handler = copy_begins;
		probe->handler = copy_ends;
		probe->maxactive = 64;
		error = register_kretprobe(probe);
		if (!error)
			copy_probe_count++;
		else if (error != -ENOENT)
			return error;
	}
	return 0;
}

static void unregister_copy_probes(void)
{
	while (copy_probe_count)
		unregister_kretprobe(&copy_probes[--copy_probe_count]);
}

int icp_fault_init(void)
{
	int error;

	if (icp_no_hook)
		return 0;
	error = register_copy_probes();
	if (error) {
		pr_err("icp_track: cannot hook userfaultfd's copies (%d)\n", error);
		goto fail;
	}
	error = ftrace_set_filter(&fault_ops, (unsigned char *)"handle_mm_fault", strlen("handle_mm_fault"), 1);
	if (error) {
		pr_err("icp_track: cannot hook handle_mm_fault (%d)\n", error);
		goto fail;
	}
	error = register_ftrace_function(&fault_ops);
	if (error) {
		pr_err("icp_track: cannot hook handle_mm_fault (%d); kernel.ftrace_enabled must be 1\n", error);
		goto fail;
	}
	return 0;
fail:
	unregister_copy_probes();
	return error;
}

void icp_fault_exit(void)
{
	if (icp_no_hook)
		return;
	unregister_ftrace_function(&fault_ops);
	unregister_copy_probes();
}
