// SPDX-License-Identifier: GPL-2.0
/*
 * The mappings of a file, in all processes, and what one of them is changed to; see
 * helpers.h.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/userfaultfd_k.h>

#include "helpers.h"

/*
 * Without the permission to write in vm_page_prot, page tables have none, and
 * the first write to a page is a fault. Of the mappings that are not tracked,
 * this holds only for those whose soft-dirty bits are watched, or that
 * userfaultfd protects.
 */
static void set_page_prot(struct vm_area_struct *vma)
{
	vm_flags_t flags = vma->vm_flags;
	bool soft_dirty = IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) &&
			  !(flags & VM_SOFTDIRTY);

	if (vma->vm_ops->page_mkwrite || soft_dirty || userfaultfd_wp(vma))
		flags &= ~VM_SHARED;
	WRITE_ONCE(vma->vm_page_prot, vm_get_page_prot(flags));
}

/*
 * Gives an existing mapping another file of the same memory, and other
 * operations. The mmap lock is held for writing. The permissions in its page
 * tables do not change.
 */
void vmem_vma_switch(struct vm_area_struct *vma, struct file *file,
		     const struct vm_operations_struct *ops, void *data)
{
	struct address_space *mapping = file->f_mapping;

	vma_start_write(vma);
	/*
	 * Code that finds the VMA by the tree of its file looks at file and
	 * operations.
	 */
	i_mmap_lock_write(mapping);
	vma_set_file(vma, file);
	WRITE_ONCE(vma->vm_ops, ops);
	vma->vm_private_data = data;
	i_mmap_unlock_write(mapping);
	set_page_prot(vma);
}

/*
 * Makes the mapping what mmap() of the memory gives. The memory may be tracked.
 */
int vmem_vma_make_plain(struct vm_area_struct *vma, struct file *memory)
{
	struct vm_area_desc desc;
	int err;

	compat_set_desc_from_vma(&desc, memory, vma);
	desc.vm_file = memory;
	desc.private_data = NULL;
	err = memory->f_op->mmap_prepare(&desc);
	if (err)
		return err;
	vmem_vma_switch(vma, desc.vm_file, desc.vm_ops, desc.private_data);
	if (desc.vm_file != memory)
		fput(desc.vm_file);
	return 0;
}

/*
 * For a mapping that is being made. The operations of the staging file may
 * replace the file by another one, with its own reference, if the memory is
 * tracked.
 */
int vmem_vma_mmap_plain(struct vm_area_struct *vma, struct file *staging)
{
	struct vm_area_desc desc;
	int err;

	vma_set_file(vma, staging);
	compat_set_desc_from_vma(&desc, staging, vma);
	err = vfs_mmap_prepare(staging, &desc);
	if (err)
		return err;
	err = __compat_vma_mmap(&desc, vma);
	if (desc.vm_file != staging)
		fput(desc.vm_file);
	return err;
}

/* A file's VMAs are in the tree of its address space. */
struct vm_area_struct *vmem_first_vma(struct address_space *mapping)
{
	struct rb_node *node = rb_first_cached(&mapping->i_mmap);

	return node ? rb_entry(node, struct vm_area_struct, shared.rb) : NULL;
}

struct vm_area_struct *vmem_next_vma(struct vm_area_struct *vma)
{
	struct rb_node *node = rb_next(&vma->shared.rb);

	return node ? rb_entry(node, struct vm_area_struct, shared.rb) : NULL;
}

/*
 * Whether @filter selects the mapping, among the mappings of @mapping (struct
 * vmem_vma_filter). The file of a mapping holds its operations.
 */
int vmem_vma_matches(struct vm_area_struct *vma, struct address_space *mapping,
		     const struct vmem_vma_filter *filter)
{
	const struct vm_operations_struct *ops = READ_ONCE(vma->vm_ops);
	bool has_kind, has_ops;

	if (!vma->vm_file || vma->vm_file->f_mapping != mapping || !ops)
		return 0;
	has_kind = filter->kind && ops->fault == filter->kind->fault;
	has_ops = ops == filter->ops;
	if (!filter->kind || !filter->ops)
		return has_kind || has_ops;
	return (vma->vm_flags & VM_SHARED) && (has_kind || has_ops) &&
	       !(has_ops && vma->vm_private_data == filter->data);
}

/*
 * Counts the selected mappings, up to @max. During the count no task can fork
 * or unmap one of them, so a task that is being killed stops counting.
 */
unsigned long vmem_count_vmas(struct file *staging,
			      const struct vmem_vma_filter *filter,
			      unsigned long max)
{
	struct address_space *mapping = staging->f_mapping;
	struct vm_area_struct *vma;
	unsigned long nr = 0;

	i_mmap_lock_read(mapping);
	for (vma = vmem_first_vma(mapping); vma && nr < max;
	     vma = vmem_next_vma(vma)) {
		nr += vmem_vma_matches(vma, mapping, filter);
		cond_resched();
		if (fatal_signal_pending(current))
			break;
	}
	i_mmap_unlock_read(mapping);
	return nr;
}

/* The slot of @mm in a table that has a free one: its own, or a free one. */
static struct mm_struct **mm_slot(struct mm_struct **table, unsigned int bits,
				  struct mm_struct *mm)
{
	unsigned long mask = (1UL << bits) - 1;
	unsigned long at = hash_ptr(mm, bits);

	while (table[at] && table[at] != mm)
		at = (at + 1) & mask;
	return &table[at];
}

/*
 * Collects the address spaces that have selected VMAs, each once and with a
 * reference (mmgrab), in the empty @table of 1 << @bits slots. Address spaces
 * that have lost their last user are left out. Stops when half of the slots are
 * taken, and returns whether there may be more then. The time for a VMA depends
 * neither on the number of VMAs nor on the number of address spaces.
 */
int vmem_collect_mms(struct file *staging, const struct vmem_vma_filter *filter,
		     struct mm_struct **table, unsigned int bits)
{
	struct address_space *mapping = staging->f_mapping;
	unsigned long room = 1UL << bits >> 1;
	struct vm_area_struct *vma;
	struct mm_struct **slot;

	i_mmap_lock_read(mapping);
	for (vma = vmem_first_vma(mapping); vma && room;
	     vma = vmem_next_vma(vma)) {
		cond_resched();
		if (fatal_signal_pending(current))
			break;
		if (!vmem_vma_matches(vma, mapping, filter))
			continue;
		/* The address space is being torn down. */
		if (!atomic_read(&vma->vm_mm->mm_users))
			continue;
		slot = mm_slot(table, bits, vma->vm_mm);
		if (*slot)
			continue;
		mmgrab(vma->vm_mm);
		*slot = vma->vm_mm;
		room--;
	}
	i_mmap_unlock_read(mapping);
	return !!vma;
}
