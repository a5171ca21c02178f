/*
 * A second preloaded library: counts calls of malloc and passes them on to the next one, which it looks up with
 * dlsym. dlsym itself allocates on some systems, before the lookup is done; those few come from a static array.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char boot[65536] __attribute__((aligned(16)));
static volatile size_t boot_used;
/* Volatile: dlsym is declared to call nothing of ours back, which is not so here. */
static volatile int looking;
static _Atomic unsigned long calls, frees;
static void *(*volatile next_malloc)(size_t), *(*volatile next_calloc)(size_t, size_t);
static void *(*volatile next_realloc)(void *, size_t);
static void (*volatile next_free)(void *);

static int
is_boot(void *p)
{
	return (char *)p >= boot && (char *)p < boot + sizeof boot;
}

static void *
from_boot(size_t n)
{
	void *p = boot + boot_used;
	boot_used += (n + 31) & ~(size_t)15;
	return boot_used <= sizeof boot ? p : NULL;
}

static void
look(void)
{
	if (next_malloc || looking)
		return;
	looking = 1;
	/* Through the heap while it looks: as some wrappers do. */
	next_calloc = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
	next_realloc = (void *(*)(void *, size_t))dlsym(RTLD_NEXT, "realloc");
	next_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
	dlsym(RTLD_NEXT, "no_such_symbol_to_make_dlerror_allocate");
	dlerror();
	next_malloc = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
	looking = 0;
}

void *
malloc(size_t n)
{
	look();
	calls++;
	return next_malloc ? next_malloc(n) : from_boot(n);
}

void *
calloc(size_t n, size_t m)
{
	look();
	calls++;
	return next_malloc ? next_calloc(n, m) : from_boot(n * m);
}

void *
realloc(void *p, size_t n)
{
	look();
	calls++;
	if (is_boot(p)) {
		void *q = malloc(n);
		if (q)
			memcpy(q, p, n);
		return q;
	}
	return next_realloc(p, n);
}

void
free(void *p)
{
	look();
	frees++;
	if (p && !is_boot(p) && next_free)
		next_free(p);
}

__attribute__((destructor)) static void
report(void)
{
	if (getenv("WRAPPER_REPORTS"))
		dprintf(1, "wrapped %s\n", calls > 0 && frees > 0 ? "calls" : "nothing");
}
