// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Trackings: made by TRACK, found by address space, ended by close, UNTRACK or the end of the address space.
 *
 * References: one of the descriptor, one more while a tracking is kept. The last one queues the work that unregisters
 * the notifier (which sleeps, and must not run inside the notifier's own callback) and frees everything.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hashtable.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/rculist.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "icp_track.h"

#ifndef PID_FS_MAGIC
#define PID_FS_MAGIC 0x50494446
#endif

static unsigned int max_views = 4096;
module_param(max_views, uint, 0644);
MODULE_PARM_DESC(max_views, "Address spaces tracked at a time");

static DEFINE_HASHTABLE(icp_views, 10);
static DEFINE_SPINLOCK(icp_views_lock); /* the hash for writers; keep, held, key and cookie of all */
static DEFINE_MUTEX(icp_track_mutex);   /* one TRACK at a time */
unsigned int icp_view_count;            /* under icp_views_lock; read without by the hook */
static struct workqueue_struct *icp_workqueue;

void icp_views_for_each(struct mm_struct *mm, void (*call)(struct icp_view *, void *), void *arg)
{
	struct icp_view *view;

	if (likely(!READ_ONCE(icp_view_count)))
		return;
	rcu_read_lock();
	hash_for_each_possible_rcu(icp_views, view, hash, (unsigned long)mm) {
		if (view->mm == mm)
			call(view, arg);
	}
	rcu_read_unlock();
}

static void free_view(struct work_struct *work)
{
	struct icp_view *view = container_of(work, struct icp_view, free_work);

	spin_lock(&icp_views_lock);
	hash_del_rcu(&view->hash);
	WRITE_ONCE(icp_view_count, icp_view_count - 1);
	spin_unlock(&icp_views_lock);
	mmu_notifier_unregister(&view->notifier, view->mm);
	synchronize_rcu();
	icp_log_purge(view);
	icp_ranges_clear(&view->armed);
	icp_ranges_clear(&view->suspect);
	kfree(view);
}

static void last_reference(struct kref *ref)
{
	struct icp_view *view = container_of(ref, struct icp_view, ref);

	queue_work(icp_workqueue, &view->free_work);
}

static void drop_keep(struct icp_view *view)
{
	bool kept;

	spin_lock(&icp_views_lock);
	kept = view->keep;
	view->keep = false;
	spin_unlock(&icp_views_lock);
	if (kept)
		kref_put(&view->ref, last_reference);
}

void icp_view_ended(struct icp_view *view, bool unused)
{
	WRITE_ONCE(view->gone, true);
	/* Else faults may be on their way through the hook, which looks at the log without a lock: free_view() waits. */
	if (unused)
		icp_log_purge(view);
	drop_keep(view);
}

void icp_view_release(struct icp_view *view)
{
	spin_lock(&icp_views_lock);
	view->held = false;
	spin_unlock(&icp_views_lock);
	kref_put(&view->ref, last_reference);
}

void icp_view_untrack(struct icp_view *view)
{
	drop_keep(view);
	icp_view_release(view);
}

void icp_view_set_cookie(struct icp_view *view, const u64 cookie[2])
{
	spin_lock(&icp_views_lock);
	view->cookie[0] = cookie[0];
	view->cookie[1] = cookie[1];
	spin_unlock(&icp_views_lock);
}

/* The kernel does not export a way from a pidfd to its process. Files on these two file systems are made by the kernel
 * alone, and their names with them. */
static struct task_struct *task_of_pidfd(int pidfd)
{
	struct task_struct *task = NULL;
	struct file *file = fget(pidfd);
	struct pid *pid = NULL;
	unsigned long magic;

	if (!file)
		return ERR_PTR(-EBADF);
	magic = file_inode(file)->i_sb->s_magic;
	if (magic == PID_FS_MAGIC)
		pid = file_inode(file)->i_private;
	else if (magic == ANON_INODE_FS_MAGIC && !strcmp(file->f_path.dentry->d_name.name, "[pidfd]"))
		pid = file->private_data;
	if (!pid) {
		fput(file);
		return ERR_PTR(-EBADF);
	}
	task = get_pid_task(pid, PIDTYPE_TGID);
	fput(file);
	return task ? task : ERR_PTR(-ESRCH);
}

static struct icp_view *find_kept(struct mm_struct *mm, u64 key)
{
	struct icp_view *view;

	hash_for_each_possible(icp_views, view, hash, (unsigned long)mm) {
		if (view->mm == mm && view->keep && view->key == key)
			return view;
	}
	return NULL;
}

static struct icp_view *new_view(struct mm_struct *mm, const struct icp_track *track)
{
	struct icp_view *view;
	int error;

	if (READ_ONCE(icp_view_count) >= READ_ONCE(max_views))
		return ERR_PTR(-ENOSPC);
	view = kzalloc(sizeof(*view), GFP_KERNEL_ACCOUNT);
	if (!view)
		return ERR_PTR(-ENOMEM);
	kref_init(&view->ref);
	view->mm = mm;
	INIT_WORK(&view->free_work, free_view);
	mutex_init(&view->mutex);
	spin_lock_init(&view->lock);
	icp_log_setup(&view->log);
	view->notifier.ops = &icp_notifier_ops;
	view->held = true;
	if (track->flags & ICP_TRACK_KEEP) {
		view->keep = true;
		view->key = track->key;
		kref_get(&view->ref);
	}
	error = mmu_notifier_register(&view->notifier, mm);
	if (error) {
		kfree(view);
		return ERR_PTR(error);
	}
	spin_lock(&icp_views_lock);
	hash_add_rcu(icp_views, &view->hash, (unsigned long)mm);
	WRITE_ONCE(icp_view_count, icp_view_count + 1);
	spin_unlock(&icp_views_lock);
	return view;
}

static struct icp_view *track_mm(struct mm_struct *mm, struct icp_track *track)
{
	struct icp_view *view = NULL;

	if (track->flags & ICP_TRACK_KEEP) {
		spin_lock(&icp_views_lock);
		view = find_kept(mm, track->key);
		if (view && view->held) {
			view = ERR_PTR(-EBUSY);
		} else if (view) {
			view->held = true;
			kref_get(&view->ref);
			track->cookie[0] = view->cookie[0];
			track->cookie[1] = view->cookie[1];
			track->flags |= ICP_TRACK_EXISTED;
		}
		spin_unlock(&icp_views_lock);
	}
	return view ? view : new_view(mm, track);
}

struct icp_view *icp_view_track(struct icp_track *track)
{
	struct task_struct *task = task_of_pidfd(track->pidfd);
	struct icp_view *view;
	struct mm_struct *mm;

	if (IS_ERR(task))
		return ERR_CAST(task);
	mm = get_task_mm(task);
	put_task_struct(task);
	if (!mm)
		return ERR_PTR(-ESRCH);
	/*
	 * ptrace_may_access() is not exported; this asks for no less. Who has the right here has it in all user
	 * namespaces, whether the kernel keeps the target's in its mm or (7.2) elsewhere.
	 */
	if (!capable(CAP_SYS_PTRACE)) {
		view = ERR_PTR(-EPERM);
	} else if (mutex_lock_killable(&icp_track_mutex)) {
		view = ERR_PTR(-EINTR);
	} else {
		view = track_mm(mm, track);
		mutex_unlock(&icp_track_mutex);
	}
	mmput(mm);
	return view;
}

void icp_view_stats(struct icp_view *view, struct icp_stats *stats)
{
	stats->faults = atomic64_read(&view->faults);
	stats->events = atomic64_read(&view->events);
	stats->log_bytes = icp_log_bytes(view);
	stats->views = READ_ONCE(icp_view_count);
	mutex_lock(&view->mutex);
	stats->collects = view->collects;
	stats->resets = view->resets;
	stats->pages_walked = view->pages_walked;
	stats->armed_bytes = icp_ranges_bytes(&view->armed);
	mutex_unlock(&view->mutex);
}

int icp_views_init(void)
{
	icp_workqueue = alloc_workqueue("icp_track", WQ_UNBOUND, 0);
	return icp_workqueue ? 0 : -ENOMEM;
}

/* No descriptor is open any more: what is left was kept. */
void icp_views_exit(void)
{
	struct icp_view *view;
	unsigned int bucket;
	bool found;

	do {
		found = false;
		spin_lock(&icp_views_lock);
		hash_for_each(icp_views, bucket, view, hash) {
			if (!view->keep)
				continue;
			view->keep = false;
			found = true;
			break;
		}
		spin_unlock(&icp_views_lock);
		if (found)
			kref_put(&view->ref, last_reference);
	} while (found);
	destroy_workqueue(icp_workqueue); /* waits for all of its work */
}
