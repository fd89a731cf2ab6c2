// SPDX-License-Identifier: GPL-2.0-or-later
/* icp_track: which pages of a process were written. See icp_track.h. */
#include <linux/module.h>

#include "icp_track.h"

static int __init icp_track_init(void)
{
	int error;

	if (!icp_can_flush()) {
		pr_err("icp_track: this kernel gives modules no way to empty the TLB under Xen PV\n");
		return -EOPNOTSUPP;
	}
	error = icp_log_init();
	if (error)
		return error;
	error = icp_views_init();
	if (error)
		goto no_views;
	error = icp_fault_init();
	if (error)
		goto no_hook;
	error = icp_shm_init();
	if (error)
		goto no_shm;
	error = icp_device_init();
	if (error)
		goto no_device;
	if (icp_no_hook || icp_no_flush)
		pr_warn("icp_track: loaded with a part left out, for tests: it loses writes\n");
	return 0;

no_device:
	icp_shm_exit();
no_shm:
	icp_fault_exit();
no_hook:
	icp_views_exit();
no_views:
	icp_log_exit();
	return error;
}

static void __exit icp_track_exit(void)
{
	icp_device_exit();
	icp_views_exit();
	icp_fault_exit();
	icp_shm_exit();
	icp_log_exit();
}

module_init(icp_track_init);
module_exit(icp_track_exit);
MODULE_DESCRIPTION("Which pages of a process were written, for incremental checkpoints");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
