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
 * The next page from @first on that the file has; ULONG_MAX if there is none.
 */
unsigned long vmem_file_next_page(struct file *file, unsigned long first)
{
	unsigned long at = first;

	return xa_find(&file->f_mapping->i_pages, &at, ULONG_MAX, XA_PRESENT) ?
	       max(at, first) : ULONG_MAX;
}
