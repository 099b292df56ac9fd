// SPDX-License-Identifier: GPL-2.0
/*
 * What the Rust side calls in C; see helpers.h.
 *
 * Built for Linux 7.2 and 7.3. A difference between kernel versions goes here
 * and nowhere else.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/uio.h>
#include <linux/unistd.h>
#include <uapi/linux/fcntl.h>
#include <uapi/linux/mman.h>
#include <asm/syscall.h>

#include "helpers.h"

/*
 * The operations of an inode that cannot be opened by its path, such as
 * /proc/PID/map_files. They are the core's own, so they may stay when we go.
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
 * Where staging files are whose memory shall be huge pages. The kernel's own
 * mount leaves that to the administrator's shmem_enabled for all shared memory
 * at once; of that only "deny" and "force" count here. NULL without huge pages.
 */
static struct vfsmount *huge_mount;

int vmem_shmem_mount(void)
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

/* Its files, which may be in use as plain memory, keep it. */
void vmem_shmem_unmount(void)
{
	if (huge_mount)
		kern_unmount(huge_mount);
}

/*
 * The operations that shmem gives the mappings of every file of the kind that
 * vmem_shmem_create() makes.
 */
static const struct vm_operations_struct *shmem_ops;

static int find_shmem_ops(struct file *staging)
{
	struct vm_area_desc desc = {
		.file = staging,
		.vm_file = staging,
	};
	int err = staging->f_op->mmap_prepare(&desc);

	if (!err)
		WRITE_ONCE(shmem_ops, desc.vm_ops);
	return err;
}

/*
 * The file cannot be opened again: whoever did so would read absent pages as
 * zeros.
 */
struct file *vmem_shmem_create(const char *name, unsigned long size, int huge)
{
	const vma_flags_t flags = mk_vma_flags(VMA_NORESERVE_BIT);
	const struct file_operations *no_open = no_open_fops();
	struct file *file;
	int err;

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
	/* Nobody may pull the memory from under the mappings. */
	SHMEM_I(file_inode(file))->seals = F_SEAL_SEAL | F_SEAL_SHRINK |
					   F_SEAL_GROW;
	file_inode(file)->i_fop = no_open;
	err = find_shmem_ops(file);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	return file;
}

/* All pages are present. */
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

/* For a fault in @mm. Whoever touches another's memory does not pay for it. */
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

/* Only what is in the page cache, up to date, and locked by nobody. */
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

/*
 * For who will put contents into it: a folio that is new is not up to date, and
 * nothing has been made of it. It is charged to @charge (to the caller, if NULL).
 */
struct folio *vmem_shmem_lock_to_fill(struct file *staging, unsigned long pgoff,
				      struct mem_cgroup *charge)
{
	struct folio *folio = get_folio(staging, pgoff, SGP_WRITE, charge);

	if (!IS_ERR(folio) && folio_contain_hwpoisoned_page(folio)) {
		vmem_folio_unlock_put(folio);
		return ERR_PTR(-EIO);
	}
	return folio;
}

int vmem_shmem_drop(struct file *staging, unsigned long pos, unsigned long len)
{
	/*
	 * Not vfs_fallocate(): when a program discards pages, that has begun
	 * already, for another file of the same inode.
	 */
	return staging->f_op->fallocate(staging,
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

/*
 * These pages of it have their contents. Those that the folio had before stay,
 * and if it had none, the rest of it is zeros; it may be that from the start.
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

void vmem_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

struct file *vmem_anon_file(const char *name, const struct file_operations *fops,
			    void *data, int flags)
{
	return anon_inode_getfile(name, fops, data, flags);
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

#ifdef CONFIG_NUMA
/*
 * mbind() on a mapping, and what it has said: shmem keeps that in the inode, so
 * it decides where fills go, and stays when the mapping has become plain.
 */
int vmem_vma_set_policy(struct vm_area_struct *vma, struct mempolicy *policy)
{
	return READ_ONCE(shmem_ops)->set_policy(vma, policy);
}

struct mempolicy *vmem_vma_get_policy(struct vm_area_struct *vma,
				      unsigned long addr, unsigned long *ilx)
{
	return READ_ONCE(shmem_ops)->get_policy(vma, addr, ilx);
}
#endif

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

/* For a mapping that is being made. */
int vmem_vma_mmap_plain(struct vm_area_struct *vma, struct file *staging)
{
	vma_set_file(vma, staging);
	return vfs_mmap(staging, vma);
}

/* The VMAs of a file hang in the tree of its address space. */
static struct vm_area_struct *first_vma(struct address_space *mapping)
{
	struct rb_node *node = rb_first_cached(&mapping->i_mmap);

	return node ? rb_entry(node, struct vm_area_struct, shared.rb) : NULL;
}

static struct vm_area_struct *next_vma(struct vm_area_struct *vma)
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
	for (vma = first_vma(mapping); vma && nr < max; vma = next_vma(vma)) {
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
 * Puts the address spaces that have VMAs with @ops, each once and with a
 * reference (mmgrab), into the empty @table of 1 << @bits slots; not those that
 * have lost their last user. Stops when half of the slots are taken, and returns
 * whether there may be more then. The time for a VMA depends neither on how many
 * there are nor on how many address spaces.
 */
int vmem_collect_mms(struct file *staging,
		     const struct vm_operations_struct *ops,
		     struct mm_struct **table, unsigned int bits)
{
	struct address_space *mapping = staging->f_mapping;
	unsigned long room = 1UL << bits >> 1;
	struct vm_area_struct *vma;
	struct mm_struct **slot;

	i_mmap_lock_read(mapping);
	for (vma = first_vma(mapping); vma && room; vma = next_vma(vma)) {
		cond_resched();
		if (fatal_signal_pending(current))
			break;
		if (READ_ONCE(vma->vm_ops) != ops)
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
