/* SPDX-License-Identifier: BSD-2-Clause */
/* zone(9): in a process link with -lkernmalloc-c, in a kernel compile with -D_KERNEL. */
#ifndef KERNMALLOC_VM_UMA_H
#define KERNMALLOC_VM_UMA_H

#include <stddef.h>
#include <stdint.h>

#include <sys/malloc.h>		/* the flags M_* */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct uma_zone *uma_zone_t;

/* At each allocation and free; a constructor's error (not 0) fails the allocation. */
typedef int (*uma_ctor)(void *mem, int size, void *arg, int flags);
typedef void (*uma_dtor)(void *mem, int size, void *arg);
/* When an item's slab is made and unmade; in a secondary zone when it leaves the keg and returns. */
typedef int (*uma_init)(void *mem, int size, int flags);
typedef void (*uma_fini)(void *mem, int size);
/* Where the items of a cache zone come from and go. */
typedef int (*uma_import)(void *arg, void **store, int count, int domain, int flags);
typedef void (*uma_release)(void *arg, void **store, int count);
typedef void (*uma_maxaction_t)(uma_zone_t, int);

/* Alignments, as masks. */
#define UMA_ALIGNOF(type)	(__alignof__(type) - 1)
#define UMA_ALIGN_PTR		((int)(sizeof(void *) - 1))
#define UMA_ALIGN_LONG		((int)(sizeof(long) - 1))
#define UMA_ALIGN_INT		((int)(sizeof(int) - 1))
#define UMA_ALIGN_SHORT		((int)(sizeof(short) - 1))
#define UMA_ALIGN_CHAR		0
#define UMA_ALIGN_CACHE		63

#define UMA_ZONE_ZINIT		0x0002	/* zeroed once, by init */
#define UMA_ZONE_CONTIG		0x0004	/* no process has it: the zone is refused */
#define UMA_ZONE_NOTOUCH	0x0008	/* items are never written to */
#define UMA_ZONE_MALLOC		0x0010
#define UMA_ZONE_NOFREE		0x0020	/* slabs are never given back */
#define UMA_ZONE_MTXCLASS	0x0040
#define UMA_ZONE_VM		0x0080
#define UMA_ZONE_NOTPAGE	0x0100
#define UMA_ZONE_NOBUCKET	0x0400	/* no caches */
#define UMA_ZONE_MAXBUCKET	0x0800	/* large caches at once */
#define UMA_ZONE_NOTRIM		0x1000	/* drained only */
#define UMA_ZONE_CACHESPREAD	0x2000	/* items start on different cache lines */
#define UMA_ZONE_NODUMP		0x4000
#define UMA_ZONE_PCPU		0x8000	/* an item is a copy per CPU */
#define UMA_ZONE_FIRSTTOUCH	0x10000	/* by the domain of the CPU that asks */
#define UMA_ZONE_ROUNDROBIN	0x20000	/* by all domains in turn */

#define UMA_RECLAIM_DRAIN	1
#define UMA_RECLAIM_DRAIN_CPU	2
#define UMA_RECLAIM_TRIM	3

#define uma_zcreate		kernmalloc_uma_zcreate
#define uma_zsecond_create	kernmalloc_uma_zsecond_create
#define uma_zcache_create	kernmalloc_uma_zcache_create
#define uma_zdestroy		kernmalloc_uma_zdestroy
#define uma_zalloc_arg		kernmalloc_uma_zalloc_arg
#define uma_zalloc_domain	kernmalloc_uma_zalloc_domain
#define uma_zalloc		kernmalloc_uma_zalloc
#define uma_zfree_arg		kernmalloc_uma_zfree_arg
#define uma_zfree		kernmalloc_uma_zfree
#define uma_zwait		kernmalloc_uma_zwait
#define uma_prealloc		kernmalloc_uma_prealloc
#define uma_zone_reserve	kernmalloc_uma_zone_reserve
#define uma_zone_set_max	kernmalloc_uma_zone_set_max
#define uma_zone_get_max	kernmalloc_uma_zone_get_max
#define uma_zone_get_cur	kernmalloc_uma_zone_get_cur
#define uma_zone_set_maxcache	kernmalloc_uma_zone_set_maxcache
#define uma_zone_exhausted	kernmalloc_uma_zone_exhausted
#define uma_zone_set_warning	kernmalloc_uma_zone_set_warning
#define uma_zone_set_maxaction	kernmalloc_uma_zone_set_maxaction
#define uma_zone_reclaim	kernmalloc_uma_zone_reclaim
#define uma_reclaim		kernmalloc_uma_reclaim

uma_zone_t uma_zcreate(const char *, size_t, uma_ctor, uma_dtor, uma_init, uma_fini, int, uint32_t);
uma_zone_t uma_zsecond_create(const char *, uma_ctor, uma_dtor, uma_init, uma_fini, uma_zone_t);
uma_zone_t uma_zcache_create(const char *, int, uma_ctor, uma_dtor, uma_init, uma_fini, uma_import, uma_release,
    void *, int);
void uma_zdestroy(uma_zone_t);
void *uma_zalloc_arg(uma_zone_t, void *, int);
void *uma_zalloc_domain(uma_zone_t, void *, int, int);
void uma_zfree_arg(uma_zone_t, void *, void *);
void uma_zwait(uma_zone_t);
void uma_prealloc(uma_zone_t, int);
void uma_zone_reserve(uma_zone_t, int);
int uma_zone_set_max(uma_zone_t, int);
int uma_zone_get_max(uma_zone_t);
int uma_zone_get_cur(uma_zone_t);
void uma_zone_set_maxcache(uma_zone_t, int);
int uma_zone_exhausted(uma_zone_t);
void uma_zone_set_warning(uma_zone_t, const char *);
void uma_zone_set_maxaction(uma_zone_t, uma_maxaction_t);
void uma_zone_reclaim(uma_zone_t, int);
void uma_reclaim(int);

__attribute__((__unused__))
static inline void *
uma_zalloc(uma_zone_t zone, int flags)
{
	return uma_zalloc_arg(zone, NULL, flags);
}

__attribute__((__unused__))
static inline void
uma_zfree(uma_zone_t zone, void *item)
{
	uma_zfree_arg(zone, item, NULL);
}

#define uma_zalloc_pcpu_arg	uma_zalloc_arg
#define uma_zalloc_pcpu		uma_zalloc
#define uma_zfree_pcpu_arg	uma_zfree_arg
#define uma_zfree_pcpu		uma_zfree
/* The copies of a per-CPU item are a page apart. */
#define UMA_PCPU_ALLOC_SIZE	4096
#define zpcpu_get_cpu(base, cpu) \
	((__typeof__(base))((char *)(base) + (size_t)(cpu) * UMA_PCPU_ALLOC_SIZE))

#ifdef __cplusplus
}
#endif

#endif
