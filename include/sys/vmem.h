/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vmem(9): in a process link with -lkernmalloc-c, in a kernel compile with -D_KERNEL. Both systems' pages apply.
 * vmem_create has 6 arguments (FreeBSD) or 10 (NetBSD, whose import and release functions take the source arena first);
 * the flags of either mean the same.
 */
#ifndef KERNMALLOC_SYS_VMEM_H
#define KERNMALLOC_SYS_VMEM_H

#include <stddef.h>
#include <stdint.h>

#include <sys/malloc.h>		/* the flags M_* */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vmem vmem_t;
typedef uintptr_t vmem_addr_t;
typedef size_t vmem_size_t;
typedef int vm_flag_t;

typedef int vmem_import_t(void *, vmem_size_t, int, vmem_addr_t *);
typedef void vmem_release_t(void *, vmem_addr_t, vmem_size_t);
typedef void vmem_reclaim_t(vmem_t *, int);

#define VM_NOSLEEP	M_NOWAIT
#define VM_SLEEP	M_WAITOK
#define VM_INSTANTFIT	M_FIRSTFIT
#define VM_BESTFIT	M_BESTFIT
#define VM_NEXTFIT	M_NEXTFIT

#define VMEM_ADDR_MIN	((vmem_addr_t)0)
#define VMEM_ADDR_MAX	(~(vmem_addr_t)0)
#define VMEM_ADDR_QCACHE_MIN	((vmem_addr_t)1)

#define VMEM_ALLOC	0x01
#define VMEM_FREE	0x02
#define VMEM_MAXFREE	0x10

/* NetBSD's vmem_create has an interrupt level. */
#ifndef IPL_NONE
#define IPL_NONE	0
#define IPL_SOFTCLOCK	1
#define IPL_SOFTBIO	2
#define IPL_SOFTNET	3
#define IPL_SOFTSERIAL	4
#define IPL_VM		5
#define IPL_SCHED	6
#define IPL_HIGH	7
#endif

#define vmem_add		kernmalloc_vmem_add
#define vmem_alloc		kernmalloc_vmem_alloc
#define vmem_destroy		kernmalloc_vmem_destroy
#define vmem_free		kernmalloc_vmem_free
#define vmem_roundup_size	kernmalloc_vmem_roundup_size
#define vmem_set_import		kernmalloc_vmem_set_import
#define vmem_set_limit		kernmalloc_vmem_set_limit
#define vmem_set_reclaim	kernmalloc_vmem_set_reclaim
#define vmem_size		kernmalloc_vmem_size
#define vmem_xalloc		kernmalloc_vmem_xalloc
#define vmem_xfree		kernmalloc_vmem_xfree

/*
 * Sizes up to qcache_max (rounded down to the quantum, 16 quanta at most) are cached by CPU: what vmem_alloc gave of them is for vmem_free,
 * which does not know then whether it is allocated.
 */
vmem_t *kernmalloc_vmem_create(const char *, vmem_addr_t, vmem_size_t, vmem_size_t, vmem_size_t, int);
int vmem_add(vmem_t *, vmem_addr_t, vmem_size_t, int);
int vmem_alloc(vmem_t *, vmem_size_t, int, vmem_addr_t *);
void vmem_destroy(vmem_t *);
void vmem_free(vmem_t *, vmem_addr_t, vmem_size_t);
vmem_size_t vmem_roundup_size(vmem_t *, vmem_size_t);
void vmem_set_import(vmem_t *, vmem_import_t *, vmem_release_t *, void *, vmem_size_t);
void vmem_set_limit(vmem_t *, vmem_size_t);
void vmem_set_reclaim(vmem_t *, vmem_reclaim_t *);
vmem_size_t vmem_size(vmem_t *, int);
int vmem_xalloc(vmem_t *, vmem_size_t, vmem_size_t, vmem_size_t, vmem_size_t, vmem_addr_t, vmem_addr_t, int,
    vmem_addr_t *);
void vmem_xfree(vmem_t *, vmem_addr_t, vmem_size_t);

__attribute__((__unused__))
static inline vmem_t *
kernmalloc_vmem_create10(const char *name, vmem_addr_t base, vmem_size_t size, vmem_size_t quantum,
    int (*importfn)(vmem_t *, vmem_size_t, vm_flag_t, vmem_addr_t *),
    void (*releasefn)(vmem_t *, vmem_addr_t, vmem_size_t), vmem_t *source, vmem_size_t qcache_max, vm_flag_t flags,
    int ipl)
{
	vmem_t *vm = kernmalloc_vmem_create(name, base, size, quantum, qcache_max, flags);

	(void)ipl;
	/* The functions are called with the source for their first argument, a pointer like any other on this system. */
	if (vm != NULL && importfn != NULL)
		vmem_set_import(vm, (vmem_import_t *)(uintptr_t)importfn, (vmem_release_t *)(uintptr_t)releasefn, source,
		    quantum);
	return vm;
}

#define KERNMALLOC_VMEM_CREATE(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, name, ...)	name
#define vmem_create(...)							\
	KERNMALLOC_VMEM_CREATE(__VA_ARGS__, kernmalloc_vmem_create10, 9, 8, 7,	\
	    kernmalloc_vmem_create, 5, 4, 3, 2, 1)(__VA_ARGS__)

#ifdef __cplusplus
}
#endif

#endif
