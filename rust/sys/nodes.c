// SPDX-License-Identifier: GPL-2.0
/*
 * The nodes of named regions, /dev/vmem/NAME; see helpers.h.
 *
 * misc_register() would do but for the owner: only a device_type can tell
 * devtmpfs the uid and gid of a node.
 */
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sprintf.h>
#include <linux/string.h>
#include <linux/uidgid.h>

#include "helpers.h"

struct vmem_node {
	struct device dev;
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
};

static dev_t nodes_base;
static unsigned int nodes_count;
static struct cdev nodes_cdev;

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
	 * If it has no name the core goes on without a word, and there is a
	 * device without a node, or a node without a device.
	 */
	return kasprintf(GFP_KERNEL | __GFP_NOFAIL, "vmem/%s",
			 strchr(dev_name(dev), '!') + 1);
}

static const struct device_type node_type = {
	.name = "vmem_region",
	.devnode = node_devnode,
};

static const struct class node_class = {
	.name = "vmem",
};

static void node_release(struct device *dev)
{
	kfree(container_of(dev, struct vmem_node, dev));
}

int vmem_nodes_register(const struct file_operations *fops, unsigned int count)
{
	int err;

	err = class_register(&node_class);
	if (err)
		return err;
	err = alloc_chrdev_region(&nodes_base, 0, count, "vmem");
	if (err)
		goto out_class;
	cdev_init(&nodes_cdev, fops);
	nodes_cdev.owner = THIS_MODULE;
	err = cdev_add(&nodes_cdev, nodes_base, count);
	if (err)
		goto out_region;
	nodes_count = count;
	return 0;

out_region:
	unregister_chrdev_region(nodes_base, count);
out_class:
	class_unregister(&node_class);
	return err;
}

void vmem_nodes_unregister(void)
{
	cdev_del(&nodes_cdev);
	unregister_chrdev_region(nodes_base, nodes_count);
	class_unregister(&node_class);
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
	node->uid = uid == (unsigned int)-1 ? GLOBAL_ROOT_UID :
					     make_kuid(current_user_ns(), uid);
	node->gid = gid == (unsigned int)-1 ? GLOBAL_ROOT_GID :
					     make_kgid(current_user_ns(), gid);
	if (!uid_valid(node->uid) || !gid_valid(node->gid)) {
		kfree(node);
		return ERR_PTR(-EINVAL);
	}

	device_initialize(&node->dev);
	node->dev.class = &node_class;
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
