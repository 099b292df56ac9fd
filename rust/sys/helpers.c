// SPDX-License-Identifier: GPL-2.0
/*
 * What the Rust side calls in C, besides what has a file of its own; see helpers.h.
 *
 * Built for Linux 7.3. A difference between kernel versions goes into the C files
 * and nowhere else.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/filelock.h>
#include <linux/fs.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/timekeeping.h>
#include <linux/uio.h>
#include <linux/unistd.h>
#include <uapi/linux/mman.h>
#include <asm/syscall.h>
#if defined(CONFIG_ARM64) && defined(CONFIG_COMPAT)
#include <asm/unistd_compat_32.h>
#endif

#include "helpers.h"

/* module! has no version. Kbuild says it: modinfo and /sys/module/vmem/version show it. */
MODULE_VERSION(VMEM_VERSION);

struct file *vmem_anon_file(const char *name, const struct file_operations *fops,
			    void *data, int flags)
{
	struct file *file = anon_inode_getfile(name, fops, data, flags);

	/* A file that can be read can be read at any position. */
	if (!IS_ERR(file) && fops->read_iter)
		file->f_mode |= FMODE_PREAD;
	return file;
}

/* A file of the file system, which is being opened. */
void vmem_file_allow_nowait(struct file *file)
{
	file->f_mode |= FMODE_NOWAIT | FMODE_CAN_ODIRECT;
}

/* Whether a call may wait (0), not for other processes (1), or not at all (2). */
int vmem_iocb_wait(struct kiocb *iocb)
{
	if (iocb->ki_flags & IOCB_NOWAIT)
		return 2;
	return !!(iocb->ki_filp->f_flags & O_NONBLOCK);
}

int vmem_setlease(struct file *file, int arg, struct file_lease **lease,
		  void **priv)
{
	return generic_setlease(file, arg, lease, priv);
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
 * Which of the @nr pages from @addr on, at most BITS_PER_LONG, have no entry in the
 * page table of the fault: a bit for each. Nobody holds its lock, so this is a hint.
 * It is mapped as long as the VMA is locked, but for khugepaged and madvise(), which
 * free it after a grace period.
 */
unsigned long vmem_fault_unmapped(struct vm_fault *vmf, unsigned long addr,
				  unsigned int nr)
{
	unsigned long bits = 0;
	unsigned int i;
	pte_t *pte;
	pmd_t pmd;

	rcu_read_lock();
	pmd = pmdp_get_lockless(vmf->pmd);
	if (pmd_none(pmd)) {
		bits = ~0UL;
	} else if (pmd_present(pmd) && !pmd_leaf(pmd)) {
		pte = pte_offset_kernel(&pmd, addr);
		for (i = 0; i < nr; i++)
			if (pte_none(ptep_get_lockless(pte + i)))
				bits |= BIT(i);
	}
	rcu_read_unlock();
	return bits;
}

/*
 * Whether the page table has an entry at the address of the fault that maps no
 * page: a marker of userfaultfd. With an empty page table, or without one,
 * there is none.
 */
int vmem_fault_has_marker(struct vm_fault *vmf)
{
	return (vmf->flags & FAULT_FLAG_ORIG_PTE_VALID) && !pte_none(vmf->orig_pte);
}

/*
 * Whether there is memory for a page table now. vmf_insert_page_mkwrite() also
 * returns VM_FAULT_OOM if madvise() frees the page table under it
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

/*
 * The same for a fault of another task. A page table that it allocates is
 * charged to @charge.
 */
unsigned int vmem_fault_insert_charged(struct vm_area_struct *vma,
				       unsigned long addr, struct page *page,
				       struct mem_cgroup *charge)
{
	struct mem_cgroup *old = set_active_memcg(charge);
	unsigned int ret = vmem_fault_insert(vma, addr, page);

	set_active_memcg(old);
	return ret;
}

/*
 * A fault in another process's address space, whose lock is held. It must not
 * wait. Memory that it allocates is charged to @charge.
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
 * Whether a process owns the address space. Kernel threads that work in it keep
 * it, and are no owner. Without memory cgroups the kernel does not record an
 * owner.
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
 * Whether the cgroup has not been removed; its limit holds even then. The
 * answer changes at the very moment of the removal: the cgroup is offline only
 * some time later.
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

/* How many bytes are available without swapping. */
unsigned long vmem_available_memory(void)
{
	long pages = si_mem_available();

	return pages < 0 ? 0 : (unsigned long)pages << PAGE_SHIFT;
}

int vmem_access_ok(unsigned long addr, unsigned long len)
{
	return access_ok((const void __user *)addr, len);
}

/* Faults in a page of user memory, for reading. */
int vmem_fault_in_readable(unsigned long addr)
{
	return fault_in_readable((const char __user *)addr, PAGE_SIZE) ? -EFAULT : 0;
}

/* Faults in what is to be written, as far as it is user memory. */
int vmem_fault_in_source(struct iov_iter *from, unsigned long len)
{
	return fault_in_iov_iter_readable(from, len) == len ? -EFAULT : 0;
}

/*
 * Whether the task is in mlock2(MLOCK_ONFAULT) or mlockall(MCL_ONFAULT). These
 * calls set no flag in a mapping with VM_DONTEXPAND, but touch all of its
 * pages: nothing else distinguishes such a touch from others.
 */
int vmem_in_mlock_onfault(void)
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
#if defined(CONFIG_ARM64) && defined(CONFIG_COMPAT)
	if (is_compat_task())
		return (nr == __NR_compat32_mlock2 && (args[2] & MLOCK_ONFAULT)) ||
		       (nr == __NR_compat32_mlockall && (args[0] & MCL_ONFAULT));
#endif
	return (nr == __NR_mlock2 && (args[2] & MLOCK_ONFAULT)) ||
	       (nr == __NR_mlockall && (args[0] & MCL_ONFAULT));
}

/* No signal reaches such a process any more. */
int vmem_process_is_dying(void)
{
	return (current->flags & PF_DUMPCORE) ||
	       ((current->flags & PF_EXITING) &&
		(READ_ONCE(current->signal->flags) & SIGNAL_GROUP_EXIT));
}

/*
 * The state of a killable wait that may be long: the task can be frozen in it.
 * The task may be in the middle of a system call, with locks that others need,
 * as a task that waits for a network file system is.
 */
unsigned int vmem_task_killable_freezable(void)
{
	return TASK_KILLABLE | TASK_FREEZABLE_UNSAFE;
}

/*
 * Waits until no task is preempted in the code of the module. A task that has
 * put the last reference to the module may be preempted there, with nothing
 * left to do but return.
 */
void vmem_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

/* Waits until all RCU read-side sections that have begun have ended. */
void vmem_synchronize_rcu(void)
{
	synchronize_rcu();
}

int vmem_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

void vmem_cond_resched(void)
{
	cond_resched();
}

/* The time of day, as precise as the times of files are. */
long long vmem_now_ns(void)
{
	return ktime_get_coarse_real_ns();
}
