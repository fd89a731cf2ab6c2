// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * System V shared memory: who made, attached, detached and removed which segment. For jobs that share the host's IPC
 * namespace, where a segment must be attributed to a job although its maker is gone before anybody looks.
 *
 * Probes on functions of ipc/shm.c, in place only while a descriptor watches. A kernel that lacks one of them reports
 * fewer kinds (see features in HELLO).
 */
#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/ipc_namespace.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "icp_track.h"

#define BUFFER_EVENTS 4096u

struct icp_shm_reader {
	u64 next, lost;
};

static DEFINE_MUTEX(watch_mutex); /* watchers */
static unsigned int watchers;
static u64 features;

static DEFINE_SPINLOCK(buffer_lock);
static struct icp_shm_event *buffer;
static u64 written_events; /* ever */

/* A job's processes are those of its cgroups; a pid says nothing once its process has ended. */
static void note_cgroups(struct icp_shm_event *event)
{
#ifdef CONFIG_CGROUPS
	rcu_read_lock();
	event->cgroup = cgroup_id(task_dfl_cgroup(current));
#ifdef CONFIG_CGROUP_FREEZER
	event->cgroup_freezer = cgroup_id(task_cgroup(current, freezer_cgrp_id));
#endif
	rcu_read_unlock();
#endif
}

/* buffer_lock may be wanted by a probe on this very processor: only with interrupts off. */
static void add_event(u32 kind, int id, int key, u64 bytes, struct ipc_namespace *ns)
{
	struct icp_shm_event event = {
		.time_ns = ktime_get_boottime_ns(),
		.ipc_inum = ns ? ns->ns.inum : 0,
		.bytes = bytes,
		.id = id,
		.key = key,
		.pid = task_tgid_nr(current),
		.uid = from_kuid(&init_user_ns, current_euid()),
		.kind = kind,
	};
	unsigned long flags;

	note_cgroups(&event);
	spin_lock_irqsave(&buffer_lock, flags);
	if (buffer)
		buffer[written_events++ % BUFFER_EVENTS] = event;
	spin_unlock_irqrestore(&buffer_lock, flags);
}

static struct ipc_namespace *own_namespace(void)
{
	return current->nsproxy ? current->nsproxy->ipc_ns : NULL;
}

/* newseg(ns, params): the id, or an error */
struct creation {
	struct ipc_namespace *ns;
	int key;
	u64 bytes;
};

/* ipc/util.h: struct ipc_params { key_t key; int flg; union { size_t size; int nsems; } u; } */
struct params {
	key_t key;
	int flags;
	size_t size;
};

static int create_begins(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct creation *creation = (struct creation *)instance->data;
	const struct params *params = (const struct params *)regs->si;

	creation->ns = (struct ipc_namespace *)regs->di;
	creation->key = params->key;
	creation->bytes = params->size;
	return 0;
}

static int create_ends(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct creation *creation = (struct creation *)instance->data;
	int id = (int)regs_return_value(regs);

	if (id >= 0)
		add_event(ICP_SHM_CREATED, id, creation->key, creation->bytes, creation->ns);
	return 0;
}

/* do_shmat(shmid, address, flags, *out, shmlba): 0 or an error */
static int attach_begins(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	*(int *)instance->data = (int)regs->di;
	return 0;
}

static int attach_ends(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	if (regs_return_value(regs) == 0)
		add_event(ICP_SHM_ATTACHED, *(int *)instance->data, 0, 0, own_namespace());
	return 0;
}

/* shm_open(vma), shm_close(vma): a segment's file has its id as inode number */
static int id_of(const struct vm_area_struct *vma)
{
	return vma->vm_file ? (int)file_inode(vma->vm_file)->i_ino : -1;
}

static int on_open(struct kprobe *probe, struct pt_regs *regs)
{
	add_event(ICP_SHM_INHERITED, id_of((struct vm_area_struct *)regs->di), 0, 0, own_namespace());
	return 0;
}

static int on_close(struct kprobe *probe, struct pt_regs *regs)
{
	add_event(ICP_SHM_DETACHED, id_of((struct vm_area_struct *)regs->di), 0, 0, own_namespace());
	return 0;
}

/* shm_destroy(ns, segment): struct shmid_kernel begins with struct kern_ipc_perm */
static int on_destroy(struct kprobe *probe, struct pt_regs *regs)
{
	const struct kern_ipc_perm *perm = (const struct kern_ipc_perm *)regs->si;

	add_event(ICP_SHM_REMOVED, perm->id, perm->key, 0, (struct ipc_namespace *)regs->di);
	return 0;
}

static struct kretprobe create_probe = {
	.kp.symbol_name = "newseg",
	.entry_handler = create_begins,
	.handler = create_ends,
	.data_size = sizeof(struct creation),
	.maxactive = 256,
};

static struct kretprobe attach_probe = {
	.kp.symbol_name = "do_shmat",
	.entry_handler = attach_begins,
	.handler = attach_ends,
	.data_size = sizeof(int),
	.maxactive = 256,
};

static struct kprobe open_probe = { .symbol_name = "shm_open", .pre_handler = on_open };
static struct kprobe close_probe = { .symbol_name = "shm_close", .pre_handler = on_close };
static struct kprobe destroy_probe = { .symbol_name = "shm_destroy", .pre_handler = on_destroy };

static bool probes_there;

static void remove_probes(void)
{
	if (!probes_there)
		return;
	if (features & ICP_FEATURE_SHM_CREATE)
		unregister_kretprobe(&create_probe);
	if (features & ICP_FEATURE_SHM_ATTACH) {
		unregister_kretprobe(&attach_probe);
		unregister_kprobe(&open_probe);
	}
	if (features & ICP_FEATURE_SHM_DETACH)
		unregister_kprobe(&close_probe);
	if (features & ICP_FEATURE_SHM_REMOVE)
		unregister_kprobe(&destroy_probe);
	probes_there = false;
}

/* A probe that was registered once must be cleared before it is registered again. */
static void reset(struct kprobe *probe)
{
	probe->addr = NULL;
	probe->flags = 0;
}

static int add_probes(void)
{
	u64 found = 0;

	reset(&create_probe.kp);
	reset(&attach_probe.kp);
	reset(&open_probe);
	reset(&close_probe);
	reset(&destroy_probe);
	if (!register_kretprobe(&create_probe))
		found |= ICP_FEATURE_SHM_CREATE;
	if (!register_kretprobe(&attach_probe)) {
		if (!register_kprobe(&open_probe))
			found |= ICP_FEATURE_SHM_ATTACH;
		else
			unregister_kretprobe(&attach_probe);
	}
	if (!register_kprobe(&close_probe))
		found |= ICP_FEATURE_SHM_DETACH;
	if (!register_kprobe(&destroy_probe))
		found |= ICP_FEATURE_SHM_REMOVE;
	features = found;
	probes_there = true;
	return found ? 0 : -EOPNOTSUPP;
}

u64 icp_shm_features(void)
{
	return features;
}

struct icp_shm_reader *icp_shm_watch(void)
{
	struct icp_shm_reader *reader = kzalloc(sizeof(*reader), GFP_KERNEL_ACCOUNT);
	int error = 0;

	if (!reader)
		return ERR_PTR(-ENOMEM);
	mutex_lock(&watch_mutex);
	if (!watchers)
		error = add_probes();
	if (error)
		remove_probes();
	else
		watchers++;
	spin_lock_irq(&buffer_lock);
	reader->next = written_events;
	spin_unlock_irq(&buffer_lock);
	mutex_unlock(&watch_mutex);
	if (error) {
		kfree(reader);
		return ERR_PTR(error);
	}
	return reader;
}

void icp_shm_unwatch(struct icp_shm_reader *reader)
{
	mutex_lock(&watch_mutex);
	if (!--watchers)
		remove_probes();
	mutex_unlock(&watch_mutex);
	kfree(reader);
}

/* The descriptor's mutex protects the reader. What does not reach the caller stays. */
long icp_shm_read(struct icp_shm_reader *reader, struct icp_shm_read *read)
{
	struct icp_shm_event __user *to = u64_to_user_ptr(read->events);
	u64 next = reader->next, lost = reader->lost;
	u32 count = 0;

	if (!read->capacity || read->capacity > BUFFER_EVENTS || read->count || read->lost)
		return -EINVAL;
	while (count < read->capacity) {
		struct icp_shm_event event;
		bool more;

		spin_lock_irq(&buffer_lock);
		if (written_events - next > BUFFER_EVENTS) {
			lost += written_events - BUFFER_EVENTS - next;
			next = written_events - BUFFER_EVENTS;
		}
		more = next < written_events;
		if (more)
			event = buffer[next % BUFFER_EVENTS];
		spin_unlock_irq(&buffer_lock);
		if (!more)
			break;
		if (copy_to_user(to + count, &event, sizeof(event)))
			return -EFAULT;
		next++;
		count++;
	}
	reader->next = next;
	reader->lost = lost;
	read->count = count;
	read->lost = lost;
	return 0;
}

/* Which probes this kernel has is found out once. */
int icp_shm_init(void)
{
	buffer = kvcalloc(BUFFER_EVENTS, sizeof(*buffer), GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	if (add_probes())
		pr_info("icp_track: this kernel's System V shared memory cannot be watched\n");
	remove_probes();
	return 0;
}

void icp_shm_exit(void)
{
	kvfree(buffer);
}
