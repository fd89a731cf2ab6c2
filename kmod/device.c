// SPDX-License-Identifier: GPL-2.0-or-later
/* /dev/icp_track: checks what comes from user space and hands it on. */
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "icp_track.h"

struct icp_file {
	struct mutex mutex; /* one ioctl at a time */
	bool greeted;
	struct icp_view *view;
	struct icp_shm_reader *shm;
};

static int icp_open(struct inode *inode, struct file *file)
{
	struct icp_file *own;

	file->private_data = NULL; /* misc_open() leaves a pointer of its own there */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	own = kzalloc(sizeof(*own), GFP_KERNEL_ACCOUNT);
	if (!own)
		return -ENOMEM;
	mutex_init(&own->mutex);
	file->private_data = own;
	return nonseekable_open(inode, file);
}

static int icp_close(struct inode *inode, struct file *file)
{
	struct icp_file *own = file->private_data;

	if (own->view)
		icp_view_release(own->view);
	if (own->shm)
		icp_shm_unwatch(own->shm);
	kfree(own);
	return 0;
}

static long do_hello(struct icp_file *own, struct icp_hello *hello)
{
	u32 wanted = hello->abi;

	if (hello->zero)
		return -EINVAL;
	hello->abi = ICP_TRACK_ABI;
	hello->features = icp_shm_features() | (icp_no_hook || icp_no_flush ? ICP_FEATURE_BROKEN : 0);
	if (wanted != ICP_TRACK_ABI)
		return -EPROTO;
	own->greeted = true;
	return 0;
}

static long do_track(struct icp_file *own, struct icp_track *track)
{
	struct icp_view *view;

	if ((track->flags & ~ICP_TRACK_KEEP) || (track->key && !(track->flags & ICP_TRACK_KEEP)))
		return -EINVAL;
	/* Whoever opened the device may have passed it on to one without rights, who uses what was begun. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (own->view)
		return -EBUSY;
	track->cookie[0] = track->cookie[1] = 0;
	view = icp_view_track(track);
	if (IS_ERR(view))
		return PTR_ERR(view);
	own->view = view;
	return 0;
}

static long do_untrack(struct icp_file *own)
{
	if (!own->view)
		return -ENODEV;
	icp_view_untrack(own->view);
	own->view = NULL;
	return 0;
}

static long do_watch(struct icp_file *own)
{
	struct icp_shm_reader *reader;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (own->shm)
		return -EBUSY;
	reader = icp_shm_watch();
	if (IS_ERR(reader))
		return PTR_ERR(reader);
	own->shm = reader;
	return 0;
}

/* Arguments come and go through this. */
union argument {
	struct icp_hello hello;
	struct icp_track track;
	struct icp_collect collect;
	struct icp_stats stats;
	struct icp_cookie cookie;
	struct icp_shm_read shm_read;
};

static long dispatch(struct icp_file *own, unsigned int command, union argument *arg)
{
	if (command == ICP_IOC_HELLO)
		return do_hello(own, &arg->hello);
	if (!own->greeted)
		return -EPROTO;
	switch (command) {
	case ICP_IOC_TRACK:
		return do_track(own, &arg->track);
	case ICP_IOC_UNTRACK:
		return do_untrack(own);
	case ICP_IOC_SHM_WATCH:
		return do_watch(own);
	case ICP_IOC_SHM_READ:
		return own->shm ? icp_shm_read(own->shm, &arg->shm_read) : -ENODEV;
	}
	if (!own->view)
		return -ENODEV;
	switch (command) {
	case ICP_IOC_COLLECT:
		return icp_collect(own->view, &arg->collect, true);
	case ICP_IOC_PEEK:
		return icp_collect(own->view, &arg->collect, false);
	case ICP_IOC_STATS:
		icp_view_stats(own->view, &arg->stats);
		return 0;
	case ICP_IOC_COOKIE:
		icp_view_set_cookie(own->view, arg->cookie.cookie);
		return 0;
	}
	return -ENOTTY;
}

static bool known(unsigned int command)
{
	switch (command) {
	case ICP_IOC_HELLO:
	case ICP_IOC_TRACK:
	case ICP_IOC_COLLECT:
	case ICP_IOC_PEEK:
	case ICP_IOC_UNTRACK:
	case ICP_IOC_STATS:
	case ICP_IOC_COOKIE:
	case ICP_IOC_SHM_WATCH:
	case ICP_IOC_SHM_READ:
		return true;
	}
	return false;
}

static long icp_ioctl(struct file *file, unsigned int command, unsigned long address)
{
	struct icp_file *own = file->private_data;
	void __user *user = (void __user *)address;
	union argument arg;
	long result;

	if (!known(command))
		return -ENOTTY;
	memset(&arg, 0, sizeof(arg));
	if ((_IOC_DIR(command) & _IOC_WRITE) && copy_from_user(&arg, user, _IOC_SIZE(command)))
		return -EFAULT;
	if (mutex_lock_killable(&own->mutex))
		return -EINTR;
	result = dispatch(own, command, &arg);
	mutex_unlock(&own->mutex);
	if ((result == 0 || (result == -EPROTO && command == ICP_IOC_HELLO)) && (_IOC_DIR(command) & _IOC_READ) &&
	    copy_to_user(user, &arg, _IOC_SIZE(command)))
		return -EFAULT;
	return result;
}

static const struct file_operations icp_file_operations = {
	.owner = THIS_MODULE,
	.open = icp_open,
	.release = icp_close,
	.unlocked_ioctl = icp_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice icp_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "icp_track",
	.fops = &icp_file_operations,
	.mode = 0600,
};

int icp_device_init(void)
{
	return misc_register(&icp_device);
}

void icp_device_exit(void)
{
	misc_deregister(&icp_device);
}
