// SPDX-License-Identifier: GPL-2.0
/*
 * Files that ranges of a region lie in; see helpers.h.
 */
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/magic.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <linux/vmem.h>

#include "helpers.h"

/*
 * Whether a program may serve the file. It could map the region itself, and then wait for
 * its own page.
 */
static bool is_served(const struct inode *inode)
{
	switch (inode->i_sb->s_magic) {
	case FUSE_SUPER_MAGIC:
	case CODA_SUPER_MAGIC:
	case V9FS_MAGIC:
		return true;
	default:
		return false;
	}
}

/* Files of pseudo file systems have none, nor have those on DAX. */
static bool has_page_cache(const struct file *file)
{
	const struct address_space *mapping = file_inode(file)->i_mapping;

	return mapping->a_ops->read_folio || shmem_mapping(mapping);
}

static int check(struct file *file)
{
	struct inode *inode = file_inode(file);
	/* What lies below an overlay. */
	struct inode *real = d_real_inode(file->f_path.dentry);

	if (!S_ISREG(inode->i_mode) || IS_ANON_FILE(inode))
		return -EINVAL;
	if (!(file->f_mode & FMODE_READ))
		return -EACCES;
	if (is_file_hugepages(file))
		return -EOPNOTSUPP;
	if (inode->i_sb->s_magic == VMEM_SUPER_MAGIC ||
	    real->i_sb->s_magic == VMEM_SUPER_MAGIC)
		return -ELOOP;
	if (is_served(inode) || is_served(real))
		return -EOPNOTSUPP;
	if (!(file->f_mode & FMODE_CAN_READ) || !file->f_op->read_iter)
		return -EINVAL;
	if (inode == real && !has_page_cache(file))
		return -EINVAL;
	return 0;
}

struct file *vmem_backing_get(int fd)
{
	struct file *file = fget(fd);
	int err;

	if (!file)
		return ERR_PTR(-EBADF);
	err = check(file);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	return file;
}

/*
 * The folio of the page cache that has the page at @pos, of which @len bytes count; NULL if
 * getting it would take I/O, or the file ends before. This is what a mapping of the file
 * would show.
 */
struct folio *vmem_backing_cached(struct file *file, long long pos,
				  unsigned long len)
{
	struct address_space *mapping = file->f_mapping;
	struct folio *folio;

	/* A program wants to be asked before the file is read. */
	if (FMODE_FSNOTIFY_HSM(file->f_mode))
		return NULL;
	if (pos + len > i_size_read(mapping->host))
		return NULL;
	folio = __filemap_get_folio(mapping, pos >> PAGE_SHIFT, FGP_ACCESSED, 0);
	if (IS_ERR(folio))
		return NULL;
	if (!folio_test_uptodate(folio) || folio_contain_hwpoisoned_page(folio)) {
		folio_put(folio);
		return NULL;
	}
	return folio;
}

/*
 * Without ERMS, copy_mc_highpage() is memcpy(), which does not survive broken memory either,
 * and takes three times the instructions of copy_page().
 */
static bool copy_survives_broken_memory(void)
{
#ifdef CONFIG_X86
	return cpu_feature_enabled(X86_FEATURE_ERMS);
#else
	return true;
#endif
}

/*
 * Copies the page at @pos from the file's folio to page @pgoff of a folio that is locked.
 * @len bytes of it count. An error if the file may have lost some of them meanwhile.
 */
int vmem_backing_copy(struct folio *to, unsigned long pgoff, struct file *file,
		      struct folio *from, long long pos, unsigned long len)
{
	struct page *dst = folio_file_page(to, pgoff);
	struct page *src = folio_file_page(from, pos >> PAGE_SHIFT);

	if (!copy_survives_broken_memory())
		copy_highpage(dst, src);
	else if (copy_mc_highpage(dst, src))
		return -EIO;
	/* A truncation shortens the file, and then makes zeros of what the folio has behind. */
	smp_rmb();
	return pos + len > i_size_read(file->f_mapping->host) ? -ESTALE : 0;
}

void vmem_backing_put(struct folio *folio)
{
	folio_put(folio);
}

/*
 * Reads to memory of the kernel, as far as the file goes. Returns how many bytes it has
 * read, or an error if that is none. What the page cache takes for it is charged to
 * @charge. The reader has the rights of who has opened the file, and not those of a
 * kernel thread.
 */
long vmem_backing_read(struct file *file, long long pos, void *to,
		       unsigned long len, struct mem_cgroup *charge)
{
	struct mem_cgroup *old = set_active_memcg(charge);
	const struct cred *own = override_creds(file->f_cred);
	unsigned long done = 0;
	long nr = 0;

	while (done < len) {
		struct kvec kvec = {
			.iov_base = to + done,
			.iov_len = len - done,
		};
		struct iov_iter iter;
		struct kiocb kiocb;

		init_sync_kiocb(&kiocb, file);
		kiocb.ki_pos = pos + done;
		/* The buffer is no place for direct I/O. */
		kiocb.ki_flags &= ~IOCB_DIRECT;
		iov_iter_kvec(&iter, ITER_DEST, &kvec, 1, len - done);
		nr = vfs_iocb_iter_read(file, &kiocb, &iter);
		if (nr <= 0)
			break;
		done += nr;
	}
	revert_creds(own);
	set_active_memcg(old);
	if (!done)
		return nr;
	/* As in vmem_backing_copy(): what the file has lost may have been read as zeros. */
	smp_rmb();
	return clamp_t(loff_t, i_size_read(file->f_mapping->host) - pos, 0, done);
}

/*
 * The workers that read files. A file that does not answer takes one each. A read
 * may write to the file system, which knows the time of the access then, so no worker
 * reads while the machine hibernates.
 */
static struct workqueue_struct *readers;

int vmem_backing_init(void)
{
	readers = alloc_workqueue("vmem_backing", WQ_UNBOUND | WQ_FREEZABLE, 0);
	return readers ? 0 : -ENOMEM;
}

void vmem_backing_exit(void)
{
	destroy_workqueue(readers);
}

const struct workqueue_struct *vmem_backing_readers(void)
{
	return readers;
}
