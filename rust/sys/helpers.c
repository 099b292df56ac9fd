// SPDX-License-Identifier: GPL-2.0
/*
 * What the Rust side calls in C, besides shmem.c and nodes.c; see helpers.h.
 *
 * Built for Linux 7.3. A difference between kernel versions goes into the C files
 * and nowhere else.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/unistd.h>
#include <uapi/linux/mman.h>
#include <asm/syscall.h>

#include "helpers.h"

struct file *vmem_anon_file(const char *name, const struct file_operations *fops,
			    void *data, int flags)
{
	struct file *file = anon_inode_getfile(name, fops, data, flags);

	/* One that can be read can be so at any position. */
	if (!IS_ERR(file) && fops->read_iter)
		file->f_mode |= FMODE_PREAD;
	return file;
}

void vmem_fault_unlock(struct vm_fault *vmf)
{
	release_fault_lock(vmf);
}

int vmem_fault_pmd_is_leaf(struct vm_fault *vmf)
{
	return pmd_leaf(pmdp_get_lockless(vmf->pmd));
}

/*
 * Whether the page table has something at its address which maps no page: a
 * marker of userfaultfd. With an empty page table, or none, it has not.
 */
int vmem_fault_has_marker(struct vm_fault *vmf)
{
	return (vmf->flags & FAULT_FLAG_ORIG_PTE_VALID) && !pte_none(vmf->orig_pte);
}

/*
 * Whether there would be memory for a page table now. vmf_insert_page_mkwrite()
 * says VM_FAULT_OOM also if madvise() frees the page table under it
 * (CONFIG_PT_RECLAIM).
 */
int vmem_has_page_table_memory(void)
{
	struct page *page = alloc_page(GFP_KERNEL_ACCOUNT);

	if (!page)
		return 0;
	__free_page(page);
	return 1;
}

/*
 * Maps one page at @addr, whatever the size of its folio, and leaves alone what
 * is in the page table. This is the function that drivers call from their fault
 * handler, for another address of the VMA.
 *
 * Not for writing, even if the touch is a write: with that, it warns of an entry
 * that it does not expect. A shared mapping of shmem is writable from the start.
 */
unsigned int vmem_fault_insert(struct vm_area_struct *vma, unsigned long addr,
			       struct page *page)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr,
	};

	if (PageHWPoison(page))
		return (__force unsigned int)VM_FAULT_HWPOISON;
	return (__force unsigned int)vmf_insert_page_mkwrite(&vmf, page, false);
}

/* The same from another task; a page table that it takes is charged to @charge. */
unsigned int vmem_place_insert(struct vm_area_struct *vma, unsigned long addr,
			       struct page *page, struct mem_cgroup *charge)
{
	struct mem_cgroup *old = set_active_memcg(charge);
	unsigned int ret = vmem_fault_insert(vma, addr, page);

	set_active_memcg(old);
	return ret;
}

/*
 * A fault in another's address space, whose lock is held. It may not wait, and
 * what it takes is charged to @charge.
 */
unsigned int vmem_fault_remote(struct vm_area_struct *vma, unsigned long addr,
			       struct mem_cgroup *charge)
{
	struct mem_cgroup *old = set_active_memcg(charge);
	vm_fault_t ret = handle_mm_fault(vma, addr, FAULT_FLAG_REMOTE, NULL);

	set_active_memcg(old);
	return (__force unsigned int)ret;
}

void vmem_vma_set_flags(struct vm_area_struct *vma, unsigned long set,
			unsigned long clear)
{
	vm_flags_mod(vma, set, clear);
}

void vmem_vma_unlock(struct vm_area_struct *vma)
{
	vm_flags_clear(vma, VM_LOCKED);
}

/*
 * Gives a mapping that exists the file and the operations that mmap() of the
 * staging file would have given it. The mmap lock is held for writing.
 */
int vmem_vma_make_plain(struct vm_area_struct *vma, struct file *staging)
{
	struct address_space *mapping = staging->f_mapping;
	struct vm_area_desc desc = {
		.mm = vma->vm_mm,
		.file = staging,
		.start = vma->vm_start,
		.end = vma->vm_end,
		.pgoff = vma->vm_pgoff,
		.vm_file = staging,
	};
	int err;

	err = staging->f_op->mmap_prepare(&desc);
	if (err)
		return err;

	vma_start_write(vma);
	/* Who finds the VMA by the tree of its file looks at the file. */
	i_mmap_lock_write(mapping);
	vma_set_file(vma, staging);
	WRITE_ONCE(vma->vm_ops, desc.vm_ops);
	vma->vm_private_data = NULL;
	i_mmap_unlock_write(mapping);
	return 0;
}

/*
 * For a mapping that is being made. The operations of the staging file may put
 * another file there, with a reference of its own: it may be tracked.
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

/* The VMAs of a file hang in the tree of its address space. */
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
 * Counts the VMAs with @ops up to @max. As long as they are looked at, nobody
 * forks or unmaps one, so whoever is to be killed stops looking.
 */
unsigned long vmem_count_vmas(struct file *staging,
			      const struct vm_operations_struct *ops,
			      unsigned long max)
{
	struct address_space *mapping = staging->f_mapping;
	struct vm_area_struct *vma;
	unsigned long nr = 0;

	i_mmap_lock_read(mapping);
	for (vma = vmem_first_vma(mapping); vma && nr < max;
	     vma = vmem_next_vma(vma)) {
		nr += READ_ONCE(vma->vm_ops) == ops;
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
 * Whether it is a mapping of @mapping with @ops; with @others, a shared one that
 * is not one with @ops and @others as its data.
 */
int vmem_vma_matches(struct vm_area_struct *vma, struct address_space *mapping,
		     const struct vm_operations_struct *ops, const void *others)
{
	bool has_ops = READ_ONCE(vma->vm_ops) == ops;

	if (!vma->vm_file || vma->vm_file->f_mapping != mapping)
		return 0;
	if (!others)
		return has_ops;
	return (vma->vm_flags & VM_SHARED) &&
	       !(has_ops && vma->vm_private_data == others);
}

/*
 * Puts the address spaces that have VMAs which match, each once and with a
 * reference (mmgrab), into the empty @table of 1 << @bits slots; not those that
 * have lost their last user. Stops when half of the slots are taken, and returns
 * whether there may be more then. The time for a VMA depends neither on how many
 * there are nor on how many address spaces.
 */
int vmem_collect_mms(struct file *staging,
		     const struct vm_operations_struct *ops, const void *others,
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
		if (!vmem_vma_matches(vma, mapping, ops, others))
			continue;
		/* One that is being torn down. */
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

/*
 * Whether a process has it. Kernel threads that work in it keep it, and are no
 * owner. Without memory cgroups there is none to be known.
 */
int vmem_mm_is_owned(struct mm_struct *mm)
{
#ifdef CONFIG_MEMCG
	return !!rcu_access_pointer(mm->owner);
#else
	return 0;
#endif
}

int vmem_mmget(struct mm_struct *mm)
{
	return mmget_not_zero(mm);
}

void vmem_mmdrop(struct mm_struct *mm)
{
	mmdrop(mm);
}

int vmem_mmap_write_lock(struct mm_struct *mm)
{
	return mmap_write_lock_killable(mm);
}

void vmem_mmap_write_unlock(struct mm_struct *mm)
{
	mmap_write_unlock(mm);
}

void vmem_vma_end_read(struct vm_area_struct *vma)
{
	vma_end_read(vma);
}

int vmem_mmap_read_trylock(struct mm_struct *mm)
{
	return mmap_read_trylock(mm);
}

void vmem_mmap_read_unlock(struct mm_struct *mm)
{
	mmap_read_unlock(mm);
}

struct mem_cgroup *vmem_memcg_of_mm(struct mm_struct *mm)
{
	return get_mem_cgroup_from_mm(mm);
}

struct mem_cgroup *vmem_memcg_of_current(void)
{
	return get_mem_cgroup_from_mm(current->mm);
}

/*
 * Whether it has not been removed; its limit holds even then. From the very
 * moment: it is offline only some time later.
 */
int vmem_memcg_is_online(struct mem_cgroup *memcg)
{
	if (!css_tryget_online(&memcg->css))
		return 0;
	mem_cgroup_put(memcg);
	return 1;
}

void vmem_memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

/* Bytes that can be had without swapping. */
unsigned long vmem_available_memory(void)
{
	long pages = si_mem_available();

	return pages < 0 ? 0 : (unsigned long)pages << PAGE_SHIFT;
}

int vmem_access_ok(unsigned long addr, unsigned long len)
{
	return access_ok((const void __user *)addr, len);
}

/* Brings a page of user memory in, for reading. */
int vmem_fault_in(unsigned long addr)
{
	return fault_in_readable((const char __user *)addr, PAGE_SIZE) ? -EFAULT : 0;
}

/*
 * Whether the task is in mlock2(MLOCK_ONFAULT) or mlockall(MCL_ONFAULT). These
 * calls set no flag in a mapping with VM_DONTEXPAND, but touch all of its pages:
 * nothing else tells such a touch from others.
 */
int vmem_locks_on_fault(void)
{
	struct pt_regs *regs = task_pt_regs(current);
	unsigned long args[6];
	int nr;

	if (current->flags & (PF_KTHREAD | PF_USER_WORKER))
		return 0;
	nr = syscall_get_nr(current, regs);
	syscall_get_arguments(current, regs, args);
#ifdef CONFIG_IA32_EMULATION
	if (in_ia32_syscall())
		return (nr == __NR_ia32_mlock2 && (args[2] & MLOCK_ONFAULT)) ||
		       (nr == __NR_ia32_mlockall && (args[0] & MCL_ONFAULT));
#endif
	return (nr == __NR_mlock2 && (args[2] & MLOCK_ONFAULT)) ||
	       (nr == __NR_mlockall && (args[0] & MCL_ONFAULT));
}

/* Its signals are over: no other thread can tell it anything. */
int vmem_process_is_dying(void)
{
	return (current->flags & PF_DUMPCORE) ||
	       ((current->flags & PF_EXITING) &&
		(READ_ONCE(current->signal->flags) & SIGNAL_GROUP_EXIT));
}

/*
 * The state of a killable wait that may last: whoever is in it can be frozen.
 * It may be in the middle of a system call, with locks of others, as one that
 * waits for a network file system is.
 */
unsigned int vmem_task_killable_freezable(void)
{
	return TASK_KILLABLE | TASK_FREEZABLE_UNSAFE;
}

/*
 * Waits until no task is preempted in the code of the module. Whoever has put
 * the last reference to it may be, with nothing left to do but return.
 */
void vmem_wait_preempted(void)
{
	synchronize_rcu_tasks();
}

int vmem_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

void vmem_cond_resched(void)
{
	cond_resched();
}
