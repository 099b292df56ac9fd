// SPDX-License-Identifier: GPL-2.0
/*
 * Staging files, which are shmem files, and their folios; see helpers.h.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>
#include <uapi/linux/fcntl.h>

#include "helpers.h"

/*
 * The operations of an inode that cannot be opened by a path such as
 * /proc/PID/map_files. They are in the core, so they may stay when the module
 * is unloaded.
 */
static const struct file_operations *no_open_fops(void)
{
	static const struct file_operations nothing = { .owner = THIS_MODULE };
	const struct file_operations *fops;
	struct file *file;

	file = anon_inode_getfile("[vmem]", &nothing, NULL, O_RDONLY);
	if (IS_ERR(file))
		return ERR_CAST(file);
	fops = file_inode(file)->i_fop;
	fput(file);
	return fops;
}

/*
 * The mount of staging files with huge pages. The kernel's own mount leaves
 * that to the administrator's shmem_enabled for all shared memory at once; of
 * that only "deny" and "force" count here. NULL without huge pages.
 */
static struct vfsmount *huge_mount;

static int mount_huge(void)
{
	struct fs_context *fc;
	int err;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) || !has_transparent_hugepage())
		return 0;
	/* tmpfs is no module: there is nothing to put. */
	fc = fs_context_for_mount(get_fs_type("tmpfs"), SB_KERNMOUNT);
	if (IS_ERR(fc))
		return PTR_ERR(fc);
	err = vfs_parse_fs_string(fc, "source", "vmem");
	if (!err)
		err = vfs_parse_fs_string(fc, "huge", "within_size");
	if (!err) {
		huge_mount = fc_mount_longterm(fc);
		err = PTR_ERR_OR_ZERO(huge_mount);
	}
	put_fs_context(fc);
	return err;
}

/* The operations that shmem gives its files, and their mappings. */
static const struct file_operations *shmem_fops;
static const struct vm_operations_struct *shmem_ops;

static int find_shmem_ops(void)
{
	struct file *file = shmem_file_setup("vmem", PAGE_SIZE, EMPTY_VMA_FLAGS);
	struct vm_area_desc desc = {
		.file = file,
		.vm_file = file,
	};
	int err;

	if (IS_ERR(file))
		return PTR_ERR(file);
	err = file->f_op->mmap_prepare(&desc);
	shmem_fops = file->f_op;
	shmem_ops = desc.vm_ops;
	fput(file);
	return err;
}

int vmem_shmem_init(void)
{
	int err = find_shmem_ops();

	return err ?: mount_huge();
}

/* Files of the mount may be in use as plain memory. They keep the mount. */
void vmem_shmem_exit(void)
{
	if (huge_mount)
		kern_unmount(huge_mount);
}

const struct file_operations *vmem_shmem_fops(void)
{
	return shmem_fops;
}

const struct vm_operations_struct *vmem_shmem_vm_ops(void)
{
	return shmem_ops;
}

/*
 * The file cannot be opened again, since a program that did so would read
 * absent pages as zeros.
 */
struct file *vmem_shmem_create(const char *name, unsigned long size, int huge)
{
	const vma_flags_t flags = mk_vma_flags(VMA_NORESERVE_BIT);
	const struct file_operations *no_open = no_open_fops();
	struct file *file;

	if (IS_ERR(no_open))
		return ERR_CAST(no_open);

	if (huge && huge_mount)
		file = shmem_file_setup_with_mnt(huge_mount, name, size, flags);
	else
		file = shmem_file_setup(name, size, flags);
	if (IS_ERR(file))
		return file;
	/* The daemon writes to it anywhere, as to a memfd. */
	file->f_mode |= FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE;
	file->f_flags |= O_LARGEFILE;
	/* No process may truncate the memory under the mappings. */
	SHMEM_I(file_inode(file))->seals = F_SEAL_SEAL | F_SEAL_SHRINK |
					   F_SEAL_GROW;
	file_inode(file)->i_fop = no_open;
	return file;
}

/* Called when all pages are present. */
void vmem_shmem_allow_open(struct file *staging)
{
	file_inode(staging)->i_fop = staging->f_op;
}

/*
 * Another open file on the inode of a staging file, with its own operations. As
 * vm_file it looks like shmem to the memory management, which asks the file's
 * inode, and holds the owner of @fops.
 */
struct file *vmem_shmem_clone(struct file *staging, const char *name,
			      const struct file_operations *fops, void *data)
{
	struct inode *inode = file_inode(staging);
	struct file *file;

	if (!fops_get(fops))
		return ERR_PTR(-ENODEV);
	ihold(inode);
	file = alloc_file_pseudo(inode, staging->f_path.mnt, name, O_RDWR, fops);
	if (IS_ERR(file)) {
		iput(inode);
		fops_put(fops);
		return file;
	}
	file->private_data = data;
	return file;
}

static struct folio *get_folio(struct file *staging, unsigned long pgoff,
			       enum sgp_type sgp, struct mem_cgroup *charge)
{
	struct mem_cgroup *old = set_active_memcg(charge);
	struct folio *folio = NULL;
	int err;

	err = shmem_get_folio(file_inode(staging), pgoff, 0, &folio, sgp);
	set_active_memcg(old);
	return err ? ERR_PTR(err) : folio;
}

/* For a fault in @mm, whose cgroup is charged even if another task faults. */
struct folio *vmem_shmem_lock_folio(struct file *staging, unsigned long pgoff,
				    struct mm_struct *mm)
{
	struct mem_cgroup *charge = NULL;
	struct folio *folio;

	if (mm != current->mm)
		charge = get_mem_cgroup_from_mm(mm);
	folio = get_folio(staging, pgoff, SGP_CACHE, charge);
	mem_cgroup_put(charge);
	return folio;
}

/* Whether the page has a folio, or a place in swap: it is no hole. */
int vmem_shmem_has_memory(struct file *staging, unsigned long pgoff)
{
	return !!xa_load(&staging->f_mapping->i_pages, pgoff);
}

/* Only if the folio is in the page cache, up to date, and not locked. */
struct folio *vmem_shmem_trylock_cached(struct file *staging,
					unsigned long pgoff)
{
	struct folio *folio;

	folio = __filemap_get_folio(staging->f_mapping, pgoff,
				    FGP_LOCK | FGP_NOWAIT, 0);
	if (IS_ERR(folio))
		return folio;
	if (!folio_test_uptodate(folio)) {
		vmem_folio_unlock_put(folio);
		return ERR_PTR(-ENOENT);
	}
	return folio;
}

/* The same, but an error if the memory is broken. */
static struct folio *get_whole_folio(struct file *staging, unsigned long pgoff,
				     enum sgp_type sgp, struct mem_cgroup *charge)
{
	struct folio *folio = get_folio(staging, pgoff, sgp, charge);

	if (!IS_ERR_OR_NULL(folio) && folio_contain_hwpoisoned_page(folio)) {
		vmem_folio_unlock_put(folio);
		return ERR_PTR(-EIO);
	}
	return folio;
}

/*
 * For a caller that fills the folio: a new folio is not up to date, and has no
 * contents yet. It is charged to @charge (to the caller, if NULL).
 */
struct folio *vmem_shmem_lock_to_fill(struct file *staging, unsigned long pgoff,
				      struct mem_cgroup *charge)
{
	return get_whole_folio(staging, pgoff, SGP_WRITE, charge);
}

/*
 * For a caller that reads the folio, which is swapped in if necessary. NULL if
 * there is none: the page is zeros.
 */
struct folio *vmem_shmem_lock_to_read(struct file *file, unsigned long pgoff)
{
	return get_whole_folio(file, pgoff, SGP_READ, NULL);
}

/*
 * For a caller that writes to a part of the folio. A new folio is zeros. It is
 * charged to @charge (to the caller, if NULL).
 */
struct folio *vmem_shmem_lock_to_write(struct file *file, unsigned long pgoff,
				       struct mem_cgroup *charge)
{
	return get_whole_folio(file, pgoff, SGP_CACHE, charge);
}

int vmem_shmem_drop(struct file *staging, unsigned long pos, unsigned long len)
{
	/*
	 * Not vfs_fallocate(): in a discard of a program, that is running
	 * already, for another file of the same inode. Nor a function that
	 * logs: the caller does.
	 */
	return shmem_fops->fallocate(staging,
				     FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				     pos, len);
}

int vmem_folio_is_large(struct folio *folio)
{
	return folio_test_large(folio);
}

struct page *vmem_folio_page(struct folio *folio, unsigned long pgoff)
{
	return folio_file_page(folio, pgoff);
}

/* The page offset after the last page. */
unsigned long vmem_folio_end(struct folio *folio)
{
	return folio_next_index(folio);
}

/*
 * Copies pages from user memory, as far as that takes no fault. Returns how many
 * it has copied.
 */
unsigned long vmem_folio_copy(struct folio *folio, unsigned long pgoff,
			      unsigned long nr, unsigned long from)
{
	size_t at = offset_in_folio(folio, pgoff << PAGE_SHIFT);
	struct iov_iter iter;

	if (import_ubuf(ITER_SOURCE, (void __user *)from, nr << PAGE_SHIFT, &iter))
		return 0;
	return copy_folio_from_iter_atomic(folio, at, nr << PAGE_SHIFT, &iter) >>
	       PAGE_SHIFT;
}

/* Copies from memory of the kernel to a page, and zeroes what is left of the page. */
void vmem_folio_copy_kernel(struct folio *folio, unsigned long pgoff,
			    const void *from, unsigned long len)
{
	size_t at = offset_in_folio(folio, pgoff << PAGE_SHIFT);

	memcpy_to_folio(folio, at, from, len);
	folio_zero_range(folio, at + len, PAGE_SIZE - len);
}

/*
 * These pages of the folio have their contents. Contents that the folio had
 * before stay. If it had none, the rest of it is zeroed, unless it is zero
 * already.
 */
void vmem_folio_filled(struct folio *folio, unsigned long pgoff,
		       unsigned long nr)
{
	flush_dcache_folio(folio);
	if (!folio_test_uptodate(folio)) {
		size_t from = offset_in_folio(folio, pgoff << PAGE_SHIFT);

		if (!want_init_on_alloc(GFP_HIGHUSER))
			folio_zero_segments(folio, 0, from,
					    from + (nr << PAGE_SHIFT),
					    folio_size(folio));
		folio_mark_uptodate(folio);
	}
	folio_mark_dirty(folio);
}

/*
 * Copies to a part of a page, as far as that takes no fault. Returns how many
 * bytes it has copied. The folio is locked and up to date.
 */
unsigned long vmem_folio_write(struct folio *folio, unsigned long pgoff,
			       unsigned long offset, unsigned long len,
			       struct iov_iter *from)
{
	size_t at = offset_in_folio(folio, pgoff << PAGE_SHIFT) + offset;
	unsigned long copied = copy_folio_from_iter_atomic(folio, at, len, from);

	flush_dcache_folio(folio);
	folio_mark_dirty(folio);
	return copied;
}

/* Zeroes a part of a page. The folio is locked and up to date. */
void vmem_folio_zero(struct folio *folio, unsigned long pgoff,
		     unsigned long offset, unsigned long len)
{
	folio_zero_range(folio,
			 offset_in_folio(folio, pgoff << PAGE_SHIFT) + offset,
			 len);
	flush_dcache_folio(folio);
	folio_mark_dirty(folio);
}

void vmem_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

#ifdef CONFIG_NUMA
/*
 * mbind() on a mapping, and its query. shmem keeps the policy in the inode, so
 * it decides where fills allocate, and stays after conversion.
 */
int vmem_vma_set_policy(struct vm_area_struct *vma, struct mempolicy *policy)
{
	return shmem_ops->set_policy(vma, policy);
}

struct mempolicy *vmem_vma_get_policy(struct vm_area_struct *vma,
				      unsigned long addr, unsigned long *ilx)
{
	return shmem_ops->get_policy(vma, addr, ilx);
}
#endif
