/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * malloc(9). In a process: link with -lkernmalloc-c. In a kernel: compile with -D_KERNEL, and no header of a C library
 * is needed.
 *
 * The names of the manual page are macros here, so that malloc(9) does not collide with malloc(3). In a process the C
 * library's header is included first, with its names intact; a file that wants malloc(3) as well says so before this
 * header, in a function of its own, or undefines the name.
 */
#ifndef KERNMALLOC_SYS_MALLOC_H
#define KERNMALLOC_SYS_MALLOC_H

#include <stddef.h>
#ifndef _KERNEL
#ifdef __cplusplus
#include <cstdlib>
#endif
#include <stdlib.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Flags: exactly one of the first two, and any of the others. */
#define M_NOWAIT	0x0001		/* do not sleep: may fail */
#define M_WAITOK	0x0002		/* may sleep, never fails */
#define M_CANFAIL	0x0004		/* with M_WAITOK: fail where it could never be met */
#define M_NORECLAIM	0x0080		/* do not make others give memory up */
#define M_ZERO		0x0100		/* zeros */
#define M_NOVM		0x0200		/* a hint */
#define M_USE_RESERVE	0x0400		/* may dip into the reserve */
#define M_NODUMP	0x0800		/* no part of a core */
#define M_FIRSTFIT	0x1000		/* for vmem(9) */
#define M_BESTFIT	0x2000		/* for vmem(9) */
#define M_EXEC		0x4000		/* code can run in it */
#define M_NEXTFIT	0x8000		/* for vmem(9) */
#define M_NEVERFREED	0x10000		/* a hint */

#define M_VERSION	2020110501

/* A malloc type. Programs define and declare them by the macros below, and know no member. */
struct malloc_type {
	size_t ks_state;
	unsigned long ks_version;
	const char *ks_shortdesc;
	const char *ks_longdesc;
	unsigned long ks_limit;
	size_t ks_private[12];
};

typedef void malloc_type_list_func_t(struct malloc_type *, void *);

#define MALLOC_JUSTDEFINE_LIMIT(type, shortdesc, longdesc, limit)	\
	struct malloc_type type[1] = {					\
		{ 0, M_VERSION, shortdesc, longdesc, limit,		\
		    { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 } }		\
	}
#define MALLOC_JUSTDEFINE(type, shortdesc, longdesc)			\
	MALLOC_JUSTDEFINE_LIMIT(type, shortdesc, longdesc, 0)

/*
 * Attached before main, or when its module is loaded; detached when the module goes, with a warning if it leaked. A
 * kernel's loader calls what .init_array and .fini_array of the module list.
 */
#define MALLOC_DEFINE_LIMIT(type, shortdesc, longdesc, limit)		\
	MALLOC_JUSTDEFINE_LIMIT(type, shortdesc, longdesc, limit);	\
	__attribute__((__constructor__, __used__))			\
	static void type##_load(void) { kernmalloc_type_load(type); }	\
	__attribute__((__destructor__, __used__))			\
	static void type##_unload(void) { kernmalloc_type_unload(type); } \
	struct kernmalloc_semicolon
#define MALLOC_DEFINE(type, shortdesc, longdesc)			\
	MALLOC_DEFINE_LIMIT(type, shortdesc, longdesc, 0)
#define MALLOC_DECLARE(type)	extern struct malloc_type type[1]

void kernmalloc_type_load(struct malloc_type *);
void kernmalloc_type_unload(struct malloc_type *);

#define M_CACHE		kernmalloc_M_CACHE
#define M_DEVBUF	kernmalloc_M_DEVBUF
#define M_TEMP		kernmalloc_M_TEMP
MALLOC_DECLARE(M_CACHE);
MALLOC_DECLARE(M_DEVBUF);
MALLOC_DECLARE(M_TEMP);

#undef malloc
#undef free
#undef realloc
#define malloc			kernmalloc_malloc
#define free			kernmalloc_free
#define realloc			kernmalloc_realloc
#define malloc_aligned		kernmalloc_malloc_aligned
#define malloc_exec		kernmalloc_malloc_exec
#define mallocarray		kernmalloc_mallocarray
#define reallocf		kernmalloc_reallocf
#define zfree			kernmalloc_zfree
#define malloc_size		kernmalloc_malloc_size
#define malloc_roundup		kernmalloc_malloc_size
#define malloc_usable_size	kernmalloc_malloc_usable_size
#define malloc_last_fail	kernmalloc_malloc_last_fail
#define malloc_init		kernmalloc_malloc_type_attach
#define malloc_uninit		kernmalloc_malloc_type_detach
#define malloc_type_attach	kernmalloc_malloc_type_attach
#define malloc_type_detach	kernmalloc_malloc_type_detach
#define malloc_type_setlimit	kernmalloc_malloc_type_setlimit
#define malloc_type_list	kernmalloc_malloc_type_list
#define malloc_desc2type	kernmalloc_malloc_desc2type

void *malloc(size_t, struct malloc_type *, int) __attribute__((__malloc__));
void *malloc_aligned(size_t, size_t, struct malloc_type *, int) __attribute__((__malloc__));
void *malloc_exec(size_t, struct malloc_type *, int) __attribute__((__malloc__));
void *mallocarray(size_t, size_t, struct malloc_type *, int) __attribute__((__malloc__));
void *realloc(void *, size_t, struct malloc_type *, int);
void *reallocf(void *, size_t, struct malloc_type *, int);
void free(void *, struct malloc_type *);
void zfree(void *, struct malloc_type *);
size_t malloc_size(size_t);
size_t malloc_usable_size(const void *);
long malloc_last_fail(void);
void malloc_type_attach(struct malloc_type *);
void malloc_type_detach(struct malloc_type *);
void malloc_type_setlimit(struct malloc_type *, unsigned long);
void malloc_type_list(malloc_type_list_func_t *, void *);
struct malloc_type *malloc_desc2type(const char *);

#ifdef __cplusplus
}
#endif

#endif
