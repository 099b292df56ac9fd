// SPDX-License-Identifier: GPL-2.0
/*
 * Shared memory that programs have already, and the logging of writes to it; see
 * helpers.h.
 */
#include <linux/dcache.h>
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>
#include <linux/userfaultfd_k.h>

#include "helpers.h"

/*
 * The memory behind a descriptor. @tracked is the operations of files that were
 * opened while the memory was tracked.
 */
struct file *vmem_shared_get(int fd, const struct file_operations *tracked)
{
	const struct file_operations *fops;
	struct file *file = fget(fd);
	int err = 0;

	if (!file)
		return ERR_PTR(-EBADF);
	/*
	 * The inode of an incomplete region cannot be opened, and has other
	 * operations.
	 */
	fops = READ_ONCE(file_inode(file)->i_fop);
	if (is_file_hugepages(file))
		err = -EOPNOTSUPP;
	else if (!S_ISREG(file_inode(file)->i_mode) ||
		 !shmem_mapping(file->f_mapping) ||
		 file->f_mapping->host != file_inode(file) ||
		 !i_size_read(file_inode(file)))
		err = -EINVAL;
	else if (!(file->f_mode & FMODE_WRITE) || !(file->f_mode & FMODE_READ))
		err = -EACCES;
	/* Memory of System V, or a driver's, is private to the kernel. */
	else if (IS_PRIVATE(file_inode(file)))
		err = -EOPNOTSUPP;
	else if (file->f_op != vmem_shmem_fops() && file->f_op != tracked)
		err = -EOPNOTSUPP;
	else if (fops != vmem_shmem_fops() && fops != tracked)
		err = -EOPNOTSUPP;
	if (!err)
		return file;
	fput(file);
	return ERR_PTR(err);
}

/* Another open file of the memory, with its name; see vmem_shmem_clone(). */
struct file *vmem_shared_clone(struct file *memory,
			       const struct file_operations *fops, void *data)
{
	struct name_snapshot name;
	struct file *file;

	take_dentry_name_snapshot(&name, memory->f_path.dentry);
	file = vmem_shmem_clone(memory, name.name.name, fops, data);
	release_dentry_name_snapshot(&name);
	return file;
}

unsigned long vmem_shared_size(struct file *memory)
{
	return i_size_read(file_inode(memory));
}

/*
 * Whether no other file is open for writing: its operations would not be
 * replaced. The inode does not count the first file of a memfd, nor any file
 * that this module makes. So a file that is counted, in a mount with such
 * files, is not the first one.
 */
int vmem_shared_is_sole_writer(struct file *memory)
{
	struct inode *inode = file_inode(memory);
	int counted = !!(memory->f_mode & FMODE_WRITER);

	if (counted && (inode->i_sb->s_flags & SB_NOUSER))
		return 0;
	/*
	 * After i_fop has been set: a task that opens the file is counted
	 * before it reads i_fop.
	 */
	smp_mb();
	return atomic_read(&inode->i_writecount) == counted;
}

/* Seals the size. Returns the seals that the memory had before. */
int vmem_shared_seal(struct file *memory, unsigned int *before)
{
	struct inode *inode = file_inode(memory);
	int err = inode_lock_killable(inode);

	if (err)
		return err;
	*before = SHMEM_I(inode)->seals;
	SHMEM_I(inode)->seals |= F_SEAL_SHRINK | F_SEAL_GROW;
	inode_unlock(inode);
	return 0;
}

int vmem_shared_unseal(struct file *memory, unsigned int before)
{
	struct inode *inode = file_inode(memory);
	int err = inode_lock_killable(inode);

	if (err)
		return err;
	/*
	 * Others may have added seals meanwhile, but not these two, which were
	 * set.
	 */
	SHMEM_I(inode)->seals &= ~(F_SEAL_SHRINK | F_SEAL_GROW) | before;
	inode_unlock(inode);
	return 0;
}

/*
 * Sets the operations of the file, and of files that are opened from now on. A
 * file that cannot be opened has others.
 */
void vmem_shared_set_fops(struct file *memory,
			  const struct file_operations *file_fops,
			  const struct file_operations *from,
			  const struct file_operations *to)
{
	struct inode *inode = file_inode(memory);

	if (inode->i_fop == from)
		WRITE_ONCE(inode->i_fop, to);
	WRITE_ONCE(memory->f_op, file_fops);
}

const struct file_operations *vmem_shared_fops(struct file *memory)
{
	return memory->f_op;
}

/*
 * Whether no task waits for the lock that writes to the file take. A write that
 * began before either waits there or has ended when this function has the lock,
 * unless its task is just entering it; vmem_synchronize_rcu_tasks() waits for
 * such tasks.
 */
int vmem_shared_no_writer_waits(struct file *memory)
{
	struct inode *inode = file_inode(memory);
	int err = inode_lock_killable(inode);
	int contended;

	if (err)
		return err;
	contended = rwsem_is_contended(&inode->i_rwsem);
	inode_unlock(inode);
	return !contended;
}

/*
 * Whether no shared mapping is just being made. mmap() counts itself before it
 * asks the file for its operations, and the mapping counts once it is in the tree.
 * Memory can have any number of mappings, so a task that is being killed stops.
 */
int vmem_shared_no_mmap_runs(struct file *memory)
{
	struct address_space *mapping = memory->f_mapping;
	struct vm_area_struct *vma;
	int writable = 0;
	int rest;

	i_mmap_lock_read(mapping);
	for (vma = vmem_first_vma(mapping); vma; vma = vmem_next_vma(vma)) {
		if (fatal_signal_pending(current)) {
			rest = -EINTR;
			goto out;
		}
		writable += (vma->vm_flags & (VM_SHARED | VM_MAYWRITE)) ==
			    (VM_SHARED | VM_MAYWRITE);
		cond_resched();
	}
	rest = atomic_read(&mapping->i_mmap_writable) == writable;
out:
	i_mmap_unlock_read(mapping);
	return rest;
}

static bool can_be_tracked(struct vm_area_struct *vma,
			   const struct vm_operations_struct *tracked,
			   const struct vm_operations_struct *region_ops)
{
	const struct vm_operations_struct *ops = READ_ONCE(vma->vm_ops);

	if (!(vma->vm_flags & VM_SHARED))
		return true;
	if (userfaultfd_armed(vma))
		return false;
	return ops == tracked || ops->fault == vmem_shmem_vm_ops()->fault ||
	       (region_ops && ops->fault == region_ops->fault);
}

/*
 * Whether all shared mappings are shmem's own or, if the memory is a region's,
 * have the fault handler of @region_ops.
 */
int vmem_shared_can_be_tracked(struct file *memory,
			       const struct vm_operations_struct *tracked,
			       const struct vm_operations_struct *region_ops)
{
	struct address_space *mapping = memory->f_mapping;
	struct vm_area_struct *vma;
	bool can = true;

	i_mmap_lock_read(mapping);
	for (vma = vmem_first_vma(mapping); vma; vma = vmem_next_vma(vma)) {
		can = can_be_tracked(vma, tracked, region_ops);
		cond_resched();
		if (!can || fatal_signal_pending(current))
			break;
	}
	i_mmap_unlock_read(mapping);
	return can;
}

/* Whether writes through this mapping go to its file. */
int vmem_shared_desc_is_shared(struct vm_area_desc *desc)
{
	return vma_desc_test(desc, VMA_SHARED_BIT);
}

/* Whether a stacked file system has opened the file, and maps it for itself. */
int vmem_shared_desc_is_backing(struct vm_area_desc *desc)
{
	return !!(desc->file->f_mode & FMODE_BACKING);
}

struct file *vmem_shared_desc_file(struct vm_area_desc *desc)
{
	return desc->file;
}

/*
 * Makes the new mapping one of @clone, and passes the reference to the clone to
 * it. No other mapping has that file, so this one is not merged, for which the
 * memory management would keep the reference.
 */
void vmem_shared_desc_track(struct vm_area_desc *desc, struct file *clone,
			    const struct vm_operations_struct *ops, void *data)
{
	desc->vm_file = clone;
	desc->vm_ops = ops;
	desc->private_data = data;
}

/* shmem's own function. */
int vmem_shared_mmap_prepare(struct vm_area_desc *desc)
{
	return vmem_shmem_fops()->mmap_prepare(desc);
}

long vmem_shared_fallocate(struct file *file, int mode, long long pos,
			   long long len)
{
	return vmem_shmem_fops()->fallocate(file, mode, pos, len);
}

long vmem_shared_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	return vmem_shmem_fops()->write_iter(iocb, from);
}

/* The position and length of a write, and its file. */
struct file *vmem_shared_write_range(struct kiocb *iocb, struct iov_iter *from,
				     long long *pos, unsigned long *len)
{
	*pos = iocb->ki_pos;
	*len = iov_iter_count(from);
	return iocb->ki_filp;
}

/* Makes an existing mapping log writes. The mmap lock is held for writing. */
int vmem_vma_track(struct vm_area_struct *vma, struct file *clone,
		   const struct vm_operations_struct *ops, void *data)
{
	if (userfaultfd_armed(vma))
		return -EBUSY;
	vmem_vma_switch(vma, clone, ops, data);
	return 0;
}

/*
 * A fault in a tracked mapping. With a write fault the core asks page_mkwrite()
 * for one page and then makes all of its folio writable. So a page of a large
 * folio is mapped alone here, without permission to write, and the fault is
 * raised again.
 */
unsigned int vmem_tracked_fault(struct vm_fault *vmf)
{
	vm_fault_t ret = vmem_shmem_vm_ops()->fault(vmf);
	struct folio *folio;

	if (!(ret & VM_FAULT_LOCKED) || !(vmf->flags & FAULT_FLAG_WRITE))
		return (__force unsigned int)ret;
	folio = page_folio(vmf->page);
	/* The core replaces a marker of userfaultfd in the page table. */
	if (!folio_test_large(folio) || vmem_fault_has_marker(vmf))
		return (__force unsigned int)ret;
	ret &= VM_FAULT_MAJOR;
	if (vmem_fault_pmd_is_leaf(vmf))
		ret |= VM_FAULT_NOPAGE;
	else
		ret |= (__force vm_fault_t)vmem_fault_insert(vmf->vma, vmf->address,
							     vmf->page);
	/* No memory, or a page table that was freed under the fault. */
	if ((ret & VM_FAULT_OOM) && vmem_has_page_table_memory())
		ret = VM_FAULT_NOPAGE;
	vmem_folio_unlock_put(folio);
	vmf->page = NULL;
	return (__force unsigned int)ret;
}

/*
 * Locks the folio of the page that is about to become writable, for
 * page_mkwrite(). Returns how many pages may become writable, from @first on; 0
 * if the folio does not belong to the file any more.
 */
unsigned long vmem_tracked_lock(struct vm_fault *vmf, unsigned long *first)
{
	struct folio *folio = page_folio(vmf->page);

	file_update_time(vmf->vma->vm_file);
	folio_lock(folio);
	/*
	 * The lock before the access to the log: a task that has taken the bit
	 * sees the lock.
	 */
	smp_mb__after_atomic();
	if (folio->mapping != vmf->vma->vm_file->f_mapping) {
		folio_unlock(folio);
		return 0;
	}
	/*
	 * The core maps a page of a large folio only in place of a marker, and
	 * no other page beside it. If the page table goes meanwhile, with the
	 * marker, it maps all of the folio.
	 */
	if (userfaultfd_wp(vmf->vma)) {
		*first = folio->index;
		return folio_nr_pages(folio);
	}
	*first = vmf->pgoff;
	return 1;
}

/* The folio that vmem_tracked_lock() has locked. */
struct folio *vmem_tracked_folio(struct vm_fault *vmf)
{
	return page_folio(vmf->page);
}

void vmem_tracked_unlock(struct vm_fault *vmf)
{
	folio_unlock(page_folio(vmf->page));
}

/*
 * Calls @each, with a reference, for those folios of the pages in the page
 * cache that @wants selects. @wants has no reference: the folio may have left
 * the cache, and belong to another file, before it is checked.
 */
static int walk_folios(struct file *memory, pgoff_t first, pgoff_t nr,
		       bool (*wants)(struct folio *folio),
		       int (*each)(struct folio *folio, void *data), void *data)
{
	XA_STATE(xas, &memory->f_mapping->i_pages, first);
	pgoff_t last = first + nr - 1;
	unsigned int since = 0;
	struct folio *folio;
	int err = 0;

	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		if (likely(!wants(folio))) {
			if (++since < 1024)
				continue;
			since = 0;
			xas_pause(&xas);
			rcu_read_unlock();
			cond_resched();
			rcu_read_lock();
			continue;
		}
		if (!folio_try_get(folio)) {
			xas_reset(&xas);
			continue;
		}
		if (unlikely(folio != xas_reload(&xas))) {
			folio_put(folio);
			xas_reset(&xas);
			continue;
		}
		/*
		 * @each may sleep. Continue from here, with the tree as it is
		 * then.
		 */
		xas_pause(&xas);
		rcu_read_unlock();
		err = each(folio, data);
		folio_put(folio);
		cond_resched();
		rcu_read_lock();
		if (err)
			break;
	}
	rcu_read_unlock();
	return err;
}

static bool is_locked(struct folio *folio)
{
	return folio_test_locked(folio);
}

static int wait_unlocked(struct folio *folio, void *data)
{
	return folio_wait_locked_killable(folio);
}

/*
 * Waits until each folio of these pages was unlocked once: a writer that had it
 * locked when this was called has its page in the page table by then.
 */
int vmem_folios_wait_unlocked(struct file *memory, unsigned long first,
			      unsigned long nr)
{
	int err = walk_folios(memory, first, nr, is_locked, wait_unlocked, NULL);

	/* The folio is seen unlocked before the page tables are read. */
	smp_rmb();
	return err;
}

/* Unmaps the pages from all page tables, except private copies. */
void vmem_folios_unmap(struct file *memory, unsigned long first,
		       unsigned long nr)
{
	unmap_mapping_pages(memory->f_mapping, first, nr, false);
}

struct held {
	unsigned long first;
	unsigned long end;
	unsigned long base;
	__u64 *bits;
	bool drained;
};

/*
 * Whether there is a reference to the folio through which it may be written to:
 * any that is neither ours, nor the page cache's, nor a page table's. With the
 * lock held, no page table adds a reference, and one that goes meanwhile is
 * counted too often at worst.
 */
static bool is_held(struct folio *folio)
{
	bool held = true;

	if (folio_trylock(folio)) {
		int refs = folio_ref_count(folio);

		/* The count is read before the number it is compared with. */
		smp_rmb();
		held = folio_maybe_dma_pinned(folio) ||
		       refs > folio_expected_ref_count(folio) + 1;
		folio_unlock(folio);
	}
	return held;
}

/*
 * False if the only reference is the page cache's. Always true for a large
 * folio, for which the cache has several references: its size cannot be read
 * without a reference.
 */
static bool is_referenced(struct folio *folio)
{
	return folio_ref_count(folio) != 1;
}

/*
 * Empties this processor's lists of pages that were just allocated or moved, which
 * have a reference to each.
 */
static void drain_lists(struct folio *folio)
{
	struct folio_batch batch;

	folio_batch_init(&batch);
	folio_get(folio);
	folio_batch_add(&batch, folio);
	folio_batch_release(&batch);
}

static int note_held(struct folio *folio, void *data)
{
	struct held *held = data;
	unsigned long at = max(folio->index, held->first);
	unsigned long end = min(folio_next_index(folio), held->end);

	if (!is_held(folio))
		return 0;
	if (!held->drained) {
		held->drained = true;
		drain_lists(folio);
		if (!is_held(folio))
			return 0;
	}
	for (; at < end; at++)
		held->bits[(at - held->base) / 64] |= 1ULL << (at - held->base) % 64;
	return 0;
}

/*
 * Sets the bit of each held page among these: a page with a reference through
 * which it may be written to without a page table. The bitmap begins with page
 * @base.
 */
void vmem_folios_held(struct file *memory, unsigned long first,
		      unsigned long nr, unsigned long base, __u64 *bits)
{
	struct held held = {
		.first = first,
		.end = first + nr,
		.base = base,
		.bits = bits,
	};

	/*
	 * After the page tables were changed: a task that finds a page there
	 * takes it, and checks again.
	 */
	smp_mb();
	walk_folios(memory, first, nr, is_referenced, note_held, &held);
}
