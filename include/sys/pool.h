/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * pool(9) and pool_cache(9) in a process: link with -lkernmalloc-c.
 *
 * Both are zones (zone(9)), with per-CPU caches. What differs from NetBSD: a water mark is a hint (a low one makes room at once, a high
 * one does nothing: zones trim themselves to their working set); a warning is said at most once in 300 seconds, whatever the
 * rate cap; pages come from the process, so that the pool allocators are names only.
 */
#ifndef KERNMALLOC_SYS_POOL_H
#define KERNMALLOC_SYS_POOL_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PR_WAITOK	0x01	/* may sleep */
#define PR_NOWAIT	0x02	/* may fail */
#define PR_LIMITFAIL	0x08	/* fails at the hard limit, even with PR_WAITOK */
#define PR_RECURSIVE	0x10
#define PR_NOTOUCH	0x20	/* items are never written to */
#define PR_NOALIGN	0x40
#define PR_LARGECACHE	0x80
#define PR_ZERO		0x1000	/* zeros; for pools without constructor */
#define PR_USEBMAP	0x2000

/* Taken, and all the same: there are no interrupts in a process. */
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

struct pool_allocator {
	int pa_unused;
};
extern struct pool_allocator kernmalloc_pool_allocator;
#define pool_allocator_kmem	kernmalloc_pool_allocator
#define pool_allocator_nointr	kernmalloc_pool_allocator

typedef struct pool_cache *pool_cache_t;

/* A pool. The memory is the program's; it knows no member. */
struct pool {
	pool_cache_t pr_cache;
};

#define pool_cache_init			kernmalloc_pool_cache_init
#define pool_cache_destroy		kernmalloc_pool_cache_destroy
#define pool_cache_get			kernmalloc_pool_cache_get
#define pool_cache_put			kernmalloc_pool_cache_put
#define pool_cache_destruct_object	kernmalloc_pool_cache_destruct_object
#define pool_cache_invalidate		kernmalloc_pool_cache_invalidate
#define pool_cache_reclaim		kernmalloc_pool_cache_reclaim
#define pool_cache_prime		kernmalloc_pool_cache_prime
#define pool_cache_setlowat		kernmalloc_pool_cache_setlowat
#define pool_cache_sethiwat		kernmalloc_pool_cache_sethiwat
#define pool_cache_sethardlimit		kernmalloc_pool_cache_sethardlimit
#define pool_cache_set_drain_hook	kernmalloc_pool_cache_set_drain_hook
#define pool_init			kernmalloc_pool_init

pool_cache_t pool_cache_init(size_t size, unsigned int align, unsigned int align_offset, int flags, const char *name,
    struct pool_allocator *palloc, int ipl, int (*ctor)(void *, void *, int), void (*dtor)(void *, void *), void *arg);
void pool_cache_destroy(pool_cache_t);
void *pool_cache_get(pool_cache_t, int);
void pool_cache_put(pool_cache_t, void *);
void pool_cache_destruct_object(pool_cache_t, void *);
void pool_cache_invalidate(pool_cache_t);
bool pool_cache_reclaim(pool_cache_t);
int pool_cache_prime(pool_cache_t, int);
void pool_cache_setlowat(pool_cache_t, int);
void pool_cache_sethiwat(pool_cache_t, int);
void pool_cache_sethardlimit(pool_cache_t, int, const char *, int);
void pool_cache_set_drain_hook(pool_cache_t, void (*)(void *, int), void *);
void pool_init(struct pool *, size_t, unsigned int, unsigned int, int, const char *, struct pool_allocator *, int);

#define pool_destroy(pp)			pool_cache_destroy((pp)->pr_cache)
#define pool_get(pp, flags)			pool_cache_get((pp)->pr_cache, (flags))
#define pool_put(pp, item)			pool_cache_put((pp)->pr_cache, (item))
#define pool_prime(pp, n)			pool_cache_prime((pp)->pr_cache, (n))
#define pool_setlowat(pp, n)			pool_cache_setlowat((pp)->pr_cache, (n))
#define pool_sethiwat(pp, n)			pool_cache_sethiwat((pp)->pr_cache, (n))
#define pool_sethardlimit(pp, n, message, cap)	pool_cache_sethardlimit((pp)->pr_cache, (n), (message), (cap))
#define pool_set_drain_hook(pp, hook, arg)	pool_cache_set_drain_hook((pp)->pr_cache, (hook), (arg))
#define pool_reclaim(pp)			pool_cache_reclaim((pp)->pr_cache)

#ifdef __cplusplus
}
#endif

#endif
