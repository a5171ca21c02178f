/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libmemstat(3), of the allocator in this process (link with -lkernmalloc-c) or kernel (compile with -D_KERNEL).
 *
 * Types of malloc(9) have bytes, zones have items of a size; what a type or zone has not is 0. A bit of a size mask is
 * a class of sizes, the smallest first. What was not done through a CPU's own cache is in the totals and on no CPU, so
 * that these may exceed the sum over CPUs. There is no kvm(3): the functions that read by it fail with
 * MEMSTAT_ERROR_KVM.
 */
#ifndef KERNMALLOC_MEMSTAT_H
#define KERNMALLOC_MEMSTAT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Words of each kind that a caller can keep with a type, and with each CPU of it. */
#define MEMSTAT_MAXCALLER	16

#define ALLOCATOR_UNKNOWN	0
#define ALLOCATOR_MALLOC	1	/* malloc(9) */
#define ALLOCATOR_UMA		2	/* zone(9) */
#define ALLOCATOR_ANY		255

#define MEMTYPE_MAXNAME		32

#define MEMSTAT_ERROR_UNDEFINED		0	/* nothing has failed yet */
#define MEMSTAT_ERROR_NOMEMORY		1
#define MEMSTAT_ERROR_VERSION		2
#define MEMSTAT_ERROR_PERMISSION	3
#define MEMSTAT_ERROR_TOOMANYCPUS	4
#define MEMSTAT_ERROR_DATAERROR		5
#define MEMSTAT_ERROR_KVM		6
#define MEMSTAT_ERROR_KVM_NOSYMBOL	7
#define MEMSTAT_ERROR_KVM_SHORTREAD	8

struct memory_type;
struct memory_type_list;

#define memstat_strerror		kernmalloc_memstat_strerror
#define memstat_mtl_alloc		kernmalloc_memstat_mtl_alloc
#define memstat_mtl_first		kernmalloc_memstat_mtl_first
#define memstat_mtl_next		kernmalloc_memstat_mtl_next
#define memstat_mtl_find		kernmalloc_memstat_mtl_find
#define memstat_mtl_free		kernmalloc_memstat_mtl_free
#define memstat_mtl_geterror		kernmalloc_memstat_mtl_geterror
#define memstat_sysctl_all		kernmalloc_memstat_sysctl_all
#define memstat_sysctl_malloc		kernmalloc_memstat_sysctl_malloc
#define memstat_sysctl_uma		kernmalloc_memstat_sysctl_uma
#define memstat_kvm_all			kernmalloc_memstat_kvm
#define memstat_kvm_malloc		kernmalloc_memstat_kvm
#define memstat_kvm_uma			kernmalloc_memstat_kvm
#define memstat_get_name		kernmalloc_memstat_get_name
#define memstat_get_allocator		kernmalloc_memstat_get_allocator
#define memstat_get_countlimit		kernmalloc_memstat_get_countlimit
#define memstat_get_byteslimit		kernmalloc_memstat_get_byteslimit
#define memstat_get_sizemask		kernmalloc_memstat_get_sizemask
#define memstat_get_size		kernmalloc_memstat_get_size
#define memstat_get_rsize		kernmalloc_memstat_get_rsize
#define memstat_get_memalloced		kernmalloc_memstat_get_memalloced
#define memstat_get_memfreed		kernmalloc_memstat_get_memfreed
#define memstat_get_numallocs		kernmalloc_memstat_get_numallocs
#define memstat_get_numfrees		kernmalloc_memstat_get_numfrees
#define memstat_get_bytes		kernmalloc_memstat_get_bytes
#define memstat_get_count		kernmalloc_memstat_get_count
#define memstat_get_free		kernmalloc_memstat_get_free
#define memstat_get_failures		kernmalloc_memstat_get_failures
#define memstat_get_sleeps		kernmalloc_memstat_get_sleeps
#define memstat_get_xdomain		kernmalloc_memstat_get_xdomain
#define memstat_get_zonefree		kernmalloc_memstat_get_zonefree
#define memstat_get_kegfree		kernmalloc_memstat_get_kegfree
#define memstat_get_caller_pointer	kernmalloc_memstat_get_caller_pointer
#define memstat_set_caller_pointer	kernmalloc_memstat_set_caller_pointer
#define memstat_get_caller_uint64	kernmalloc_memstat_get_caller_uint64
#define memstat_set_caller_uint64	kernmalloc_memstat_set_caller_uint64
#define memstat_get_percpu_memalloced	kernmalloc_memstat_get_percpu_memalloced
#define memstat_get_percpu_memfreed	kernmalloc_memstat_get_percpu_memfreed
#define memstat_get_percpu_numallocs	kernmalloc_memstat_get_percpu_numallocs
#define memstat_get_percpu_numfrees	kernmalloc_memstat_get_percpu_numfrees
#define memstat_get_percpu_sizemask	kernmalloc_memstat_get_percpu_sizemask
#define memstat_get_percpu_free		kernmalloc_memstat_get_percpu_free
#define memstat_get_percpu_caller_pointer	kernmalloc_memstat_get_percpu_caller_pointer
#define memstat_set_percpu_caller_pointer	kernmalloc_memstat_set_percpu_caller_pointer
#define memstat_get_percpu_caller_uint64	kernmalloc_memstat_get_percpu_caller_uint64
#define memstat_set_percpu_caller_uint64	kernmalloc_memstat_set_percpu_caller_uint64

const char *memstat_strerror(int);

struct memory_type_list *memstat_mtl_alloc(void);
struct memory_type *memstat_mtl_first(struct memory_type_list *);
struct memory_type *memstat_mtl_next(struct memory_type *);
struct memory_type *memstat_mtl_find(struct memory_type_list *, int, const char *);
void memstat_mtl_free(struct memory_type_list *);
int memstat_mtl_geterror(struct memory_type_list *);

int memstat_sysctl_all(struct memory_type_list *, int);
int memstat_sysctl_malloc(struct memory_type_list *, int);
int memstat_sysctl_uma(struct memory_type_list *, int);
int kernmalloc_memstat_kvm(struct memory_type_list *, void *);

const char *memstat_get_name(const struct memory_type *);
int memstat_get_allocator(const struct memory_type *);
uint64_t memstat_get_countlimit(const struct memory_type *);
uint64_t memstat_get_byteslimit(const struct memory_type *);
uint64_t memstat_get_sizemask(const struct memory_type *);
uint64_t memstat_get_size(const struct memory_type *);
uint64_t memstat_get_rsize(const struct memory_type *);
uint64_t memstat_get_memalloced(const struct memory_type *);
uint64_t memstat_get_memfreed(const struct memory_type *);
uint64_t memstat_get_numallocs(const struct memory_type *);
uint64_t memstat_get_numfrees(const struct memory_type *);
uint64_t memstat_get_bytes(const struct memory_type *);
uint64_t memstat_get_count(const struct memory_type *);
uint64_t memstat_get_free(const struct memory_type *);
uint64_t memstat_get_failures(const struct memory_type *);
uint64_t memstat_get_sleeps(const struct memory_type *);
uint64_t memstat_get_xdomain(const struct memory_type *);
uint64_t memstat_get_zonefree(const struct memory_type *);
uint64_t memstat_get_kegfree(const struct memory_type *);
void *memstat_get_caller_pointer(const struct memory_type *, int);
void memstat_set_caller_pointer(struct memory_type *, int, void *);
uint64_t memstat_get_caller_uint64(const struct memory_type *, int);
void memstat_set_caller_uint64(struct memory_type *, int, uint64_t);
uint64_t memstat_get_percpu_memalloced(const struct memory_type *, int);
uint64_t memstat_get_percpu_memfreed(const struct memory_type *, int);
uint64_t memstat_get_percpu_numallocs(const struct memory_type *, int);
uint64_t memstat_get_percpu_numfrees(const struct memory_type *, int);
uint64_t memstat_get_percpu_sizemask(const struct memory_type *, int);
uint64_t memstat_get_percpu_free(const struct memory_type *, int);
void *memstat_get_percpu_caller_pointer(const struct memory_type *, int, int);
void memstat_set_percpu_caller_pointer(struct memory_type *, int, int, void *);
uint64_t memstat_get_percpu_caller_uint64(const struct memory_type *, int, int);
void memstat_set_percpu_caller_uint64(struct memory_type *, int, int, uint64_t);

#ifdef __cplusplus
}
#endif

#endif
