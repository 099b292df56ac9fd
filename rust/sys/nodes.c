// SPDX-License-Identifier: GPL-2.0
/*
 * The nodes of named regions, /dev/vmem/NAME; see helpers.h.
 *
 * misc_register() would do but for the owner: only a device_type can tell
 * devtmpfs the uid and gid of a node.
 */
#include <linux/atomic.h>
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sprintf.h>
#include <linux/string.h>
#include <linux/uidgid.h>
#include <linux/vmem.h>
#include <linux/wait_bit.h>

#include "helpers.h"

struct vmem_node {
	struct device dev;
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
};

static dev_t nodes_base;
static unsigned int nodes_count;
static struct cdev *nodes_cdev;
static struct class *nodes_class;
/* Includes removed nodes until their last reference is put. */
static atomic_t nodes_alive;

static char *node_devnode(const struct device *dev, umode_t *mode, kuid_t *uid,
			  kgid_t *gid)
{
	const struct vmem_node *node = container_of(dev, struct vmem_node, dev);

	/* Removal asks for the name alone. */
	if (mode)
		*mode = node->mode;
	if (uid)
		*uid = node->uid;
	if (gid)
		*gid = node->gid;
	/*
	 * Without a name the core continues silently, and there is a device
	 * without a node, or a node without a device.
	 */
	return kasprintf(GFP_KERNEL | __GFP_NOFAIL, "vmem/%s",
			 strchr(dev_name(dev), '!') + 1);
}

static const struct device_type node_type = {
	.name = "vmem_region",
	.devnode = node_devnode,
};

static void node_release(struct device *dev)
{
	kfree(container_of(dev, struct vmem_node, dev));
	atomic_dec_and_wake_up(&nodes_alive);
}

unsigned int vmem_kernel_uid(unsigned int uid)
{
	if (uid == VMEM_ID_KEEP)
		return __kuid_val(GLOBAL_ROOT_UID);
	return __kuid_val(make_kuid(current_user_ns(), uid));
}

unsigned int vmem_kernel_gid(unsigned int gid)
{
	if (gid == VMEM_ID_KEEP)
		return __kgid_val(GLOBAL_ROOT_GID);
	return __kgid_val(make_kgid(current_user_ns(), gid));
}

int vmem_nodes_register(const struct file_operations *fops, unsigned int count)
{
	int err;

	/* Class and cdev may outlive the module: neither is a part of it. */
	nodes_class = class_create("vmem");
	if (IS_ERR(nodes_class))
		return PTR_ERR(nodes_class);
	err = alloc_chrdev_region(&nodes_base, 0, count, "vmem");
	if (err)
		goto out_class;
	err = -ENOMEM;
	nodes_cdev = cdev_alloc();
	if (!nodes_cdev)
		goto out_region;
	nodes_cdev->ops = fops;
	nodes_cdev->owner = THIS_MODULE;
	err = cdev_add(nodes_cdev, nodes_base, count);
	if (err)
		goto out_cdev;
	nodes_count = count;
	return 0;

out_cdev:
	kobject_put(&nodes_cdev->kobj);
out_region:
	unregister_chrdev_region(nodes_base, count);
out_class:
	class_destroy(nodes_class);
	return err;
}

void vmem_nodes_unregister(void)
{
	cdev_del(nodes_cdev);
	unregister_chrdev_region(nodes_base, nodes_count);
	class_destroy(nodes_class);
	/* The last reference to a node calls node_release(), which is here. */
	wait_var_event(&nodes_alive, !atomic_read(&nodes_alive));
}

void *vmem_node_create(const char *name, unsigned int minor, unsigned int mode,
		       unsigned int uid, unsigned int gid)
{
	struct vmem_node *node;
	int err;

	node = kzalloc_obj(*node);
	if (!node)
		return ERR_PTR(-ENOMEM);
	node->mode = mode;
	node->uid = KUIDT_INIT(uid);
	node->gid = KGIDT_INIT(gid);

	atomic_inc(&nodes_alive);
	device_initialize(&node->dev);
	node->dev.class = nodes_class;
	node->dev.type = &node_type;
	node->dev.devt = nodes_base + minor;
	node->dev.release = node_release;
	/* As in sysfs, where '!' stands for '/'. */
	err = dev_set_name(&node->dev, "vmem!%s", name);
	if (!err)
		err = device_add(&node->dev);
	if (err) {
		put_device(&node->dev);
		return ERR_PTR(err);
	}
	return node;
}

void vmem_node_remove(void *data)
{
	struct vmem_node *node = data;

	device_unregister(&node->dev);
}

unsigned int vmem_node_minor(struct inode *inode)
{
	return MINOR(inode->i_rdev) - MINOR(nodes_base);
}
