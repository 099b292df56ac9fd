// SPDX-License-Identifier: GPL-2.0
/*
 * The file system of named regions, type "vmem"; see helpers.h.
 *
 * It has no list of its own: each look-up asks the registry of regions. A
 * dentry is not cached beyond its last use, and one that is still in use when
 * its region goes does not pass revalidation. So the file system pins no
 * region, and the module only while it is mounted.
 */
#include <linux/dcache.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/kdev_t.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/stat.h>
#include <linux/statfs.h>
#include <linux/string.h>
#include <linux/time64.h>
#include <linux/uidgid.h>
#include <linux/vmem.h>

#include "helpers.h"

#define ROOT_INO	1
/* Numbers of regions begin with 1. */
#define INO_OF(id)	((id) + ROOT_INO)
/* Positions 0 and 1 of a directory are "." and "..". */
#define POS_OF(id)	((id) + 2)

static const struct vmem_directory_ops *directory;
static const struct file_operations *file_fops;

unsigned long long vmem_file_id(struct inode *inode)
{
	return inode->i_ino - ROOT_INO;
}

static void set_times(struct inode *inode, const struct vmem_file_attrs *attrs)
{
	inode_set_atime_to_ts(inode, ns_to_timespec64(attrs->atime_ns));
	inode_set_mtime_to_ts(inode, ns_to_timespec64(attrs->mtime_ns));
	inode_set_ctime_to_ts(inode, ns_to_timespec64(attrs->ctime_ns));
}

/* Files. Their data does not pass the page cache of the inode: it stays empty. */

static int file_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct vmem_file_change change = {
		.size = i_size_read(inode),
		.mode = inode->i_mode & S_IALLUGO,
		.uid = __kuid_val(inode->i_uid),
		.gid = __kgid_val(inode->i_gid),
	};
	int err = setattr_prepare(idmap, dentry, attr);

	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE)
		change.size = attr->ia_size;
	if (attr->ia_valid & ATTR_MODE)
		change.mode = attr->ia_mode & S_IALLUGO;
	if (attr->ia_valid & ATTR_UID)
		change.uid = __kuid_val(vfsuid_into_kuid(attr->ia_vfsuid));
	if (attr->ia_valid & ATTR_GID)
		change.gid = __kgid_val(vfsgid_into_kgid(attr->ia_vfsgid));
	change.sets_atime = !!(attr->ia_valid & ATTR_ATIME);
	if (change.sets_atime)
		change.atime_ns = timespec64_to_ns(&attr->ia_atime);
	change.sets_mtime = !!(attr->ia_valid & ATTR_MTIME);
	if (change.sets_mtime)
		change.mtime_ns = timespec64_to_ns(&attr->ia_mtime);
	err = directory->change(vmem_file_id(inode), &change);
	if (!err)
		setattr_copy(idmap, inode, attr);
	return err;
}

/* A file whose region is gone, and that is still held by a path, has no link. */
static int file_getattr(struct mnt_idmap *idmap, const struct path *path,
			struct kstat *stat, u32 request_mask,
			unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct vmem_file_attrs attrs;
	int err = directory->attrs(vmem_file_id(inode), &attrs);

	if (!err)
		set_times(inode, &attrs);
	generic_fillattr(idmap, request_mask, inode, stat);
	if (err)
		stat->nlink = 0;
	else
		/* Absent pages are no hole, which tar takes a file without blocks for. */
		stat->blocks = max(attrs.pages, 1) << (PAGE_SHIFT - SECTOR_SHIFT);
	return 0;
}

static const struct inode_operations file_iops = {
	.setattr = file_setattr,
	.getattr = file_getattr,
};

static struct inode *new_file(struct super_block *sb,
			      const struct vmem_file_attrs *attrs)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->i_ino = INO_OF(attrs->id);
	inode->i_mode = S_IFREG | attrs->mode;
	inode->i_uid = KUIDT_INIT(attrs->uid);
	inode->i_gid = KGIDT_INIT(attrs->gid);
	i_size_write(inode, attrs->size);
	set_times(inode, attrs);
	inode->i_op = &file_iops;
	inode->i_fop = file_fops;
	return inode;
}

/* The directory. Only the module creates and removes files. */

static struct dentry *dir_lookup(struct inode *dir, struct dentry *dentry,
				 unsigned int flags)
{
	struct vmem_file_attrs attrs;
	struct inode *inode = NULL;
	int err;

	if (dentry->d_name.len >= VMEM_NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	err = directory->find(dentry->d_name.name, dentry->d_name.len, &attrs);
	if (!err)
		inode = new_file(dir->i_sb, &attrs);
	else if (err != -ENOENT)
		return ERR_PTR(err);
	return d_splice_alias(inode, dentry);
}

static int dir_create(struct mnt_idmap *idmap, struct inode *dir,
		      struct dentry *dentry, umode_t mode)
{
	return -EPERM;
}

static int dir_link(struct dentry *old, struct inode *dir, struct dentry *dentry)
{
	return -EPERM;
}

static int dir_unlink(struct inode *dir, struct dentry *dentry)
{
	return -EPERM;
}

static int dir_symlink(struct mnt_idmap *idmap, struct inode *dir,
		       struct dentry *dentry, const char *target)
{
	return -EPERM;
}

static struct dentry *dir_mkdir(struct mnt_idmap *idmap, struct inode *dir,
				struct dentry *dentry, umode_t mode)
{
	return ERR_PTR(-EPERM);
}

static int dir_mknod(struct mnt_idmap *idmap, struct inode *dir,
		     struct dentry *dentry, umode_t mode, dev_t dev)
{
	return -EPERM;
}

static int dir_rename(struct mnt_idmap *idmap, struct inode *old_dir,
		      struct dentry *old, struct inode *new_dir,
		      struct dentry *new, unsigned int flags)
{
	return -EPERM;
}

static int dir_tmpfile(struct mnt_idmap *idmap, struct inode *dir,
		       struct file *file, umode_t mode)
{
	return -EPERM;
}

/* Its owner and mode are fixed. */
static int dir_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
		       struct iattr *attr)
{
	return -EPERM;
}

static const struct inode_operations dir_iops = {
	.lookup = dir_lookup,
	.create = dir_create,
	.link = dir_link,
	.unlink = dir_unlink,
	.symlink = dir_symlink,
	.mkdir = dir_mkdir,
	.rmdir = dir_unlink,
	.mknod = dir_mknod,
	.rename = dir_rename,
	.tmpfile = dir_tmpfile,
	.setattr = dir_setattr,
};

static int dir_iterate(struct file *file, struct dir_context *ctx)
{
	struct vmem_dir_entry entry;

	if (!dir_emit_dots(file, ctx))
		return 0;
	while (directory->next(ctx->pos - POS_OF(0), &entry)) {
		if (!dir_emit(ctx, entry.name, strnlen(entry.name, VMEM_NAME_MAX),
			      INO_OF(entry.id), DT_REG))
			break;
		/* The next entry has a larger number. */
		ctx->pos = POS_OF(entry.id);
	}
	return 0;
}

static const struct file_operations dir_fops = {
	.owner = THIS_MODULE,
	.llseek = generic_file_llseek,
	.read = generic_read_dir,
	.iterate_shared = dir_iterate,
	.fsync = noop_fsync,
};

/* A name without a region is not cached: the region may come at any time. */
static int dentry_revalidate(struct inode *dir, const struct qstr *name,
			     struct dentry *dentry, unsigned int flags)
{
	if (flags & LOOKUP_RCU)
		return -ECHILD;
	if (IS_ROOT(dentry))
		return 1;
	return d_really_is_positive(dentry) &&
	       directory->exists(vmem_file_id(d_inode(dentry)));
}

static const struct dentry_operations dentry_ops = {
	.d_revalidate = dentry_revalidate,
	.d_delete = always_delete_dentry,
};

static int sb_statfs(struct dentry *dentry, struct kstatfs *stat)
{
	struct super_block *sb = dentry->d_sb;
	struct vmem_totals totals;

	directory->totals(&totals);
	stat->f_type = sb->s_magic;
	stat->f_bsize = PAGE_SIZE;
	stat->f_frsize = PAGE_SIZE;
	stat->f_namelen = VMEM_NAME_MAX - 1;
	stat->f_fsid = u64_to_fsid(huge_encode_dev(sb->s_dev));
	stat->f_blocks = totals.pages;
	stat->f_bfree = totals.pages - totals.present;
	stat->f_bavail = stat->f_bfree;
	stat->f_files = totals.files + totals.free_files;
	stat->f_ffree = totals.free_files;
	return 0;
}

static const struct super_operations super_ops = {
	.statfs = sb_statfs,
	.drop_inode = inode_just_drop,
};

static int fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct inode *inode;

	/* Neither programs nor devices: as with descriptors that have no path. */
	sb->s_iflags |= SB_I_NOEXEC | SB_I_NODEV;
	/* A read of a file is not recorded. */
	sb->s_flags |= SB_NOATIME | SB_NODIRATIME;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_magic = VMEM_SUPER_MAGIC;
	sb->s_time_gran = 1;
	sb->s_op = &super_ops;
	set_default_d_op(sb, &dentry_ops);

	inode = new_inode(sb);
	if (!inode)
		return -ENOMEM;
	inode->i_ino = ROOT_INO;
	inode->i_mode = S_IFDIR | 0755;
	simple_inode_init_ts(inode);
	inode->i_op = &dir_iops;
	inode->i_fop = &dir_fops;
	set_nlink(inode, 2);
	sb->s_root = d_make_root(inode);
	return sb->s_root ? 0 : -ENOMEM;
}

/* All mounts have one super block. Whether a mount is read-only is its own. */
static int context_get_tree(struct fs_context *fc)
{
	fc->sb_flags &= ~SB_RDONLY;
	return get_tree_single(fc, fill_super);
}

static int context_reconfigure(struct fs_context *fc)
{
	fc->sb_flags &= ~SB_RDONLY;
	return 0;
}

static const struct fs_context_operations context_ops = {
	.get_tree = context_get_tree,
	.reconfigure = context_reconfigure,
};

static int init_context(struct fs_context *fc)
{
	fc->ops = &context_ops;
	return 0;
}

/* Without FS_USERNS_MOUNT: for the administrator of the machine alone. */
static struct file_system_type fs_type = {
	.owner = THIS_MODULE,
	.name = "vmem",
	.init_fs_context = init_context,
	.kill_sb = kill_anon_super,
};

int vmem_fs_register(const struct vmem_directory_ops *ops,
		     const struct file_operations *fops)
{
	directory = ops;
	file_fops = fops;
	return register_filesystem(&fs_type);
}

void vmem_fs_unregister(void)
{
	unregister_filesystem(&fs_type);
}
