/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust side calls in C: inline functions, macros, structures passed by
 * value, and exported functions that the kernel's own bindings leave out.
 *
 * Only basic types and pointers to opaque structures stand here, so that the
 * bindings made from this file are the same for every kernel configuration.
 * Each helper is the plain call that its name says; what decides anything is
 * Rust. What differs between kernel versions is the business of the C files
 * alone.
 */
#ifndef VMEM_HELPERS_H
#define VMEM_HELPERS_H

#include <linux/types.h>

struct address_space;
struct file;
struct file_lease;
struct file_operations;
struct folio;
struct inode;
struct iov_iter;
struct kiocb;
struct mem_cgroup;
struct mempolicy;
struct mm_struct;
struct module;
struct page;
struct vm_area_desc;
struct vm_area_struct;
struct vm_fault;
struct vm_operations_struct;
struct workqueue_struct;

/* This module: what THIS_MODULE points to. */
extern struct module __this_module;

/* Staging files. A pointer that is not valid is an error, as in C. */
int vmem_shmem_init(void);
void vmem_shmem_exit(void);
const struct file_operations *vmem_shmem_fops(void);
const struct vm_operations_struct *vmem_shmem_vm_ops(void);
struct file *vmem_shmem_create(const char *name, unsigned long size, int huge);
void vmem_shmem_allow_open(struct file *staging);
struct file *vmem_shmem_clone(struct file *staging, const char *name,
			      const struct file_operations *fops, void *data);
struct folio *vmem_shmem_lock_folio(struct file *staging, unsigned long pgoff,
				    struct mm_struct *mm);
int vmem_shmem_has_memory(struct file *staging, unsigned long pgoff);
struct folio *vmem_shmem_trylock_cached(struct file *staging,
					unsigned long pgoff);
struct folio *vmem_shmem_lock_to_fill(struct file *staging, unsigned long pgoff,
				      struct mem_cgroup *charge);
struct folio *vmem_shmem_lock_to_read(struct file *file, unsigned long pgoff);
struct folio *vmem_shmem_lock_to_write(struct file *file, unsigned long pgoff,
				       struct mem_cgroup *charge);
int vmem_shmem_drop(struct file *staging, unsigned long pos, unsigned long len);

/* Shared memory that exists, which may be tracked. */
struct file *vmem_shared_get(int fd, const struct file_operations *tracked);
struct file *vmem_shared_clone(struct file *memory,
			       const struct file_operations *fops, void *data);
unsigned long vmem_shared_size(struct file *memory);
int vmem_shared_is_sole_writer(struct file *memory);
int vmem_shared_seal(struct file *memory, unsigned int *before);
int vmem_shared_unseal(struct file *memory, unsigned int before);
const struct file_operations *vmem_shared_fops(struct file *memory);
void vmem_shared_set_fops(struct file *memory,
			  const struct file_operations *file_fops,
			  const struct file_operations *from,
			  const struct file_operations *to);
int vmem_shared_no_writer_waits(struct file *memory);
int vmem_shared_no_mmap_runs(struct file *memory);
int vmem_shared_can_be_tracked(struct file *memory,
			       const struct vm_operations_struct *tracked,
			       const struct vm_operations_struct *region_ops);
int vmem_shared_desc_is_shared(struct vm_area_desc *desc);
int vmem_shared_desc_is_backing(struct vm_area_desc *desc);
struct file *vmem_shared_desc_file(struct vm_area_desc *desc);
void vmem_shared_desc_track(struct vm_area_desc *desc, struct file *clone,
			    const struct vm_operations_struct *ops, void *data);
int vmem_shared_mmap_prepare(struct vm_area_desc *desc);
long vmem_shared_fallocate(struct file *file, int mode, long long pos,
			   long long len);
long vmem_shared_write_iter(struct kiocb *iocb, struct iov_iter *from);
struct file *vmem_shared_write_range(struct kiocb *iocb, struct iov_iter *from,
				     long long *pos, unsigned long *len);
int vmem_vma_track(struct vm_area_struct *vma, struct file *clone,
		   const struct vm_operations_struct *ops, void *data);
unsigned int vmem_tracked_fault(struct vm_fault *vmf);
unsigned long vmem_tracked_lock(struct vm_fault *vmf, unsigned long *first);
struct folio *vmem_tracked_folio(struct vm_fault *vmf);
void vmem_tracked_unlock(struct vm_fault *vmf);
int vmem_folios_wait_unlocked(struct file *memory, unsigned long first,
			      unsigned long nr);
void vmem_folios_unmap(struct file *memory, unsigned long first,
		       unsigned long nr);
void vmem_folios_held(struct file *memory, unsigned long first,
		      unsigned long nr, unsigned long base, __u64 *bits);

/* The contents that shared memory had at an instant. */
void vmem_copies_avoid_oom(struct file *copies);
unsigned long vmem_copies_kept(struct file *copies);
int vmem_copies_add(struct file *copies, unsigned long pgoff,
		    struct folio *folio, struct mem_cgroup *charge);
unsigned long vmem_file_read_page(struct file *file, unsigned long pgoff,
				  unsigned long offset, unsigned long len,
				  struct iov_iter *to, int *error);
unsigned long vmem_file_read_cached(struct file *file, unsigned long pgoff,
				    unsigned long offset, unsigned long len,
				    struct iov_iter *to, int *error);
unsigned long vmem_file_next_page(struct file *file, unsigned long first);
unsigned long vmem_file_next_hole(struct file *file, unsigned long first,
				  unsigned long end);

/* Folios. */
int vmem_folio_is_large(struct folio *folio);
struct page *vmem_folio_page(struct folio *folio, unsigned long pgoff);
unsigned long vmem_folio_end(struct folio *folio);
unsigned long vmem_folio_copy(struct folio *folio, unsigned long pgoff,
			      unsigned long nr, unsigned long from);
void vmem_folio_copy_kernel(struct folio *folio, unsigned long pgoff,
			    const void *from, unsigned long len);
void vmem_folio_filled(struct folio *folio, unsigned long pgoff,
		       unsigned long nr);
void vmem_folio_unlock_put(struct folio *folio);
unsigned long vmem_folio_write(struct folio *folio, unsigned long pgoff,
			       unsigned long offset, unsigned long len,
			       struct iov_iter *from);
void vmem_folio_zero(struct folio *folio, unsigned long pgoff,
		     unsigned long offset, unsigned long len);

/* Files. */
struct file *vmem_anon_file(const char *name, const struct file_operations *fops,
			    void *data, int flags);
void vmem_file_allow_nowait(struct file *file);
int vmem_iocb_wait(struct kiocb *iocb);
int vmem_setlease(struct file *file, int arg, struct file_lease **lease,
		  void **priv);

/* Files that ranges of a region lie in. */
struct file *vmem_backing_get(int fd);
struct folio *vmem_backing_cached(struct file *file, long long pos,
				  unsigned long len);
int vmem_backing_copy(struct folio *to, unsigned long pgoff, struct file *file,
		      struct folio *from, long long pos, unsigned long len);
void vmem_backing_put(struct folio *folio);
long vmem_backing_read(struct file *file, long long pos, void *to,
		       unsigned long len, struct mem_cgroup *charge);
int vmem_backing_init(void);
void vmem_backing_exit(void);
const struct workqueue_struct *vmem_backing_readers(void);

/* Faults. */
void vmem_fault_unlock(struct vm_fault *vmf);
int vmem_fault_pmd_is_leaf(struct vm_fault *vmf);
unsigned long vmem_fault_unmapped(struct vm_fault *vmf, unsigned long addr,
				  unsigned int nr);
int vmem_fault_has_marker(struct vm_fault *vmf);
int vmem_has_page_table_memory(void);
unsigned int vmem_fault_insert(struct vm_area_struct *vma, unsigned long addr,
			       struct page *page);
unsigned int vmem_fault_insert_charged(struct vm_area_struct *vma,
				       unsigned long addr, struct page *page,
				       struct mem_cgroup *charge);
unsigned int vmem_fault_remote(struct vm_area_struct *vma, unsigned long addr,
			       struct mem_cgroup *charge);

/*
 * Selects mappings of a file: those with the fault handler of @kind, or those
 * with exactly @ops. With both, the shared ones among all of these that do not
 * have @ops and @data.
 */
struct vmem_vma_filter {
	const struct vm_operations_struct *kind;
	const struct vm_operations_struct *ops;
	const void *data;
};

/* Mappings. */
void vmem_vma_set_flags(struct vm_area_struct *vma, unsigned long set,
			unsigned long clear);
void vmem_vma_unlock(struct vm_area_struct *vma);
int vmem_vma_set_policy(struct vm_area_struct *vma, struct mempolicy *policy);
struct mempolicy *vmem_vma_get_policy(struct vm_area_struct *vma,
				      unsigned long addr, unsigned long *ilx);
void vmem_vma_switch(struct vm_area_struct *vma, struct file *file,
		     const struct vm_operations_struct *ops, void *data);
int vmem_vma_make_plain(struct vm_area_struct *vma, struct file *memory);
int vmem_vma_mmap_plain(struct vm_area_struct *vma, struct file *staging);
struct vm_area_struct *vmem_first_vma(struct address_space *mapping);
struct vm_area_struct *vmem_next_vma(struct vm_area_struct *vma);
unsigned long vmem_count_vmas(struct file *staging,
			      const struct vmem_vma_filter *filter,
			      unsigned long max);
int vmem_vma_matches(struct vm_area_struct *vma, struct address_space *mapping,
		     const struct vmem_vma_filter *filter);
int vmem_collect_mms(struct file *staging, const struct vmem_vma_filter *filter,
		     struct mm_struct **table, unsigned int bits);
int vmem_mm_is_owned(struct mm_struct *mm);
int vmem_mmget(struct mm_struct *mm);
void vmem_mmdrop(struct mm_struct *mm);
int vmem_mmap_write_lock(struct mm_struct *mm);
void vmem_mmap_write_unlock(struct mm_struct *mm);
void vmem_vma_end_read(struct vm_area_struct *vma);
int vmem_mmap_read_trylock(struct mm_struct *mm);
void vmem_mmap_read_unlock(struct mm_struct *mm);

/* Memory cgroups. */
struct mem_cgroup *vmem_memcg_of_mm(struct mm_struct *mm);
struct mem_cgroup *vmem_memcg_of_current(void);
int vmem_memcg_is_online(struct mem_cgroup *memcg);
void vmem_memcg_put(struct mem_cgroup *memcg);

/* The running task, and the machine. */
int vmem_access_ok(unsigned long addr, unsigned long len);
int vmem_fault_in_readable(unsigned long addr);
int vmem_fault_in_source(struct iov_iter *from, unsigned long len);
unsigned long vmem_available_memory(void);
int vmem_in_mlock_onfault(void);
int vmem_process_is_dying(void);
unsigned int vmem_task_killable_freezable(void);
void vmem_synchronize_rcu_tasks(void);
void vmem_synchronize_rcu(void);
int vmem_fatal_signal_pending(void);
void vmem_cond_resched(void);

/*
 * The number, in the first user namespace, of a user (group) of the caller's; -1
 * if there is none. VMEM_ID_KEEP is root.
 */
unsigned int vmem_kernel_uid(unsigned int uid);
unsigned int vmem_kernel_gid(unsigned int gid);

/* The node of a named region, /dev/vmem/NAME. The ids are the kernel's. */
int vmem_nodes_register(const struct file_operations *fops, unsigned int count);
void vmem_nodes_unregister(void);
void *vmem_node_create(const char *name, unsigned int minor, unsigned int mode,
		       unsigned int uid, unsigned int gid);
void vmem_node_remove(void *node);
unsigned int vmem_node_minor(struct inode *inode);

/* What stat(2) says of the file of a region. */
struct vmem_file_attrs {
	__u64 id;
	__u64 size;
	/* Only for a region that is looked up by its number. */
	__u64 pages;
	__s64 atime_ns;
	__s64 mtime_ns;
	__s64 ctime_ns;
	__u32 mode;
	__u32 uid;
	__u32 gid;
};

/* What a file is to have after chmod(2) and its like. */
struct vmem_file_change {
	__u64 size;
	__s64 atime_ns;
	__s64 mtime_ns;
	__u32 mode;
	__u32 uid;
	__u32 gid;
	int sets_atime;
	int sets_mtime;
};

/* An entry of the directory. */
struct vmem_dir_entry {
	__u64 id;
	char name[32];
};

/* All files together. */
struct vmem_totals {
	__u64 pages;
	__u64 present;
	__u64 files;
	__u64 free_files;
};

/*
 * The named regions. @find looks for a name, @attrs for a number; both return
 * -ENOENT if there is no such region. @next finds the one with the next number
 * after a number, and returns whether there is one.
 */
struct vmem_directory_ops {
	int (*find)(const char *name, unsigned long len,
		    struct vmem_file_attrs *attrs);
	int (*attrs)(__u64 id, struct vmem_file_attrs *attrs);
	int (*exists)(__u64 id);
	int (*next)(__u64 after, struct vmem_dir_entry *entry);
	int (*change)(__u64 id, const struct vmem_file_change *change);
	void (*totals)(struct vmem_totals *totals);
};

/* The file system of named regions. */
int vmem_fs_register(const struct vmem_directory_ops *ops,
		     const struct file_operations *fops);
void vmem_fs_unregister(void);
unsigned long long vmem_file_id(struct inode *inode);
long long vmem_now_ns(void);

#endif /* VMEM_HELPERS_H */
