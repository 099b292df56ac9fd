// SPDX-License-Identifier: GPL-2.0
/*
 * The contents that shared memory had at an instant: pages that are in the memory
 * still, and copies of those that are not; see helpers.h.
 */
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>

#include "helpers.h"

/*
 * A copy must not cost the life of a process, since a writer waits for it. So
 * the allocation fails before the OOM killer, also that of the cgroup, would
 * act.
 */
void vmem_copies_avoid_oom(struct file *copies)
{
	struct address_space *mapping = copies->f_mapping;

	mapping_set_gfp_mask(mapping, mapping_gfp_mask(mapping) |
				      __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
}

/* How many pages the copies have, in memory and in swap. */
unsigned long vmem_copies_kept(struct file *copies)
{
	return READ_ONCE(SHMEM_I(file_inode(copies))->alloced);
}

/*
 * Copies page @pgoff of a folio of the memory, which is locked. The copy is charged
 * to @charge (to the caller, if NULL).
 */
int vmem_copies_add(struct file *copies, unsigned long pgoff,
		    struct folio *folio, struct mem_cgroup *charge)
{
	struct folio *copy = vmem_shmem_lock_to_fill(copies, pgoff, charge);
	int err;

	if (IS_ERR(copy))
		return PTR_ERR(copy);
	err = copy_mc_highpage(folio_file_page(copy, pgoff),
			       folio_file_page(folio, pgoff));
	/* An incomplete copy is never read. */
	vmem_folio_filled(copy, pgoff, 1);
	vmem_folio_unlock_put(copy);
	return err ? -EIO : 0;
}

/*
 * Copies a part of a page to a reader. The reader may be any process, and its
 * buffer may be this same page, so no lock is held. Returns how many bytes were
 * copied.
 */
unsigned long vmem_file_read_page(struct file *file, unsigned long pgoff,
				  unsigned long offset, unsigned long len,
				  struct iov_iter *to, int *error)
{
	struct folio *folio = vmem_shmem_lock_to_read(file, pgoff);
	unsigned long done;

	*error = PTR_ERR_OR_ZERO(folio);
	if (*error)
		return 0;
	if (!folio)
		return iov_iter_zero(len, to);
	folio_unlock(folio);
	done = copy_page_to_iter(folio_file_page(folio, pgoff), offset, len, to);
	folio_put(folio);
	return done;
}

/*
 * The same, but -EAGAIN if that would have to wait for I/O.
 */
unsigned long vmem_file_read_cached(struct file *file, unsigned long pgoff,
				    unsigned long offset, unsigned long len,
				    struct iov_iter *to, int *error)
{
	struct address_space *mapping = file->f_mapping;
	struct folio *folio = filemap_get_folio(mapping, pgoff);
	unsigned long done = 0;

	*error = 0;
	if (IS_ERR(folio)) {
		if (!xa_load(&mapping->i_pages, pgoff))
			return iov_iter_zero(len, to);
		*error = -EAGAIN;
		return 0;
	}
	if (!folio_test_uptodate(folio))
		*error = -EAGAIN;
	else if (folio_contain_hwpoisoned_page(folio))
		*error = -EIO;
	else
		done = copy_page_to_iter(folio_file_page(folio, pgoff), offset,
					 len, to);
	folio_put(folio);
	return done;
}

/*
 * The next page from @first on that the file has; ULONG_MAX if there is none.
 */
unsigned long vmem_file_next_page(struct file *file, unsigned long first)
{
	unsigned long at = first;

	return xa_find(&file->f_mapping->i_pages, &at, ULONG_MAX, XA_PRESENT) ?
	       max(at, first) : ULONG_MAX;
}

/*
 * The next page from @first on, and before @end, that the file does not have;
 * @end if there is none.
 */
unsigned long vmem_file_next_hole(struct file *file, unsigned long first,
				  unsigned long end)
{
	XA_STATE(xas, &file->f_mapping->i_pages, first);
	unsigned long at = first;
	unsigned int since = 0;
	void *entry;

	rcu_read_lock();
	xas_for_each(&xas, entry, end - 1) {
		if (xas_retry(&xas, entry))
			continue;
		if (xas.xa_index > at)
			break;
		/* An entry may be for several pages, and is aligned. */
		at = (xas.xa_index | ((1UL << xas_get_order(&xas)) - 1)) + 1;
		if (++since < 1024)
			continue;
		since = 0;
		xas_pause(&xas);
		rcu_read_unlock();
		cond_resched();
		rcu_read_lock();
	}
	rcu_read_unlock();
	return min(at, end);
}
