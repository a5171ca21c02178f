/* SPDX-License-Identifier: BSD-2-Clause */
/* kmem(9). In a process: link with -lkernmalloc-c. In a kernel: compile with -D_KERNEL. */
#ifndef KERNMALLOC_SYS_KMEM_H
#define KERNMALLOC_SYS_KMEM_H

#include <stdarg.h>
#include <stddef.h>
#ifndef _KERNEL
#include <stdio.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#ifdef _KERNEL
/* The kernel's own, wanted by kmem_asprintf. */
int vsnprintf(char *, size_t, const char *, va_list);
#endif

/* Exactly one of them. */
#define KM_SLEEP	0x00000001	/* may sleep, never fails */
#define KM_NOSLEEP	0x00000002	/* does not sleep, may fail */

typedef unsigned int km_flag_t;

#define kmem_alloc		kernmalloc_kmem_alloc
#define kmem_zalloc		kernmalloc_kmem_zalloc
#define kmem_free		kernmalloc_kmem_free
#define kmem_intr_alloc		kernmalloc_kmem_intr_alloc
#define kmem_intr_zalloc	kernmalloc_kmem_intr_zalloc
#define kmem_intr_free		kernmalloc_kmem_intr_free
#define kmem_asprintf		kernmalloc_kmem_asprintf
#define kmem_strdupsize		kernmalloc_kmem_strdupsize
#define kmem_strdup(s, flags)	kernmalloc_kmem_strdupsize((s), NULL, (flags))
#define kmem_strndup		kernmalloc_kmem_strndup
#define kmem_strfree		kernmalloc_kmem_strfree

void *kmem_alloc(size_t, km_flag_t) __attribute__((__malloc__));
void *kmem_zalloc(size_t, km_flag_t) __attribute__((__malloc__));
void kmem_free(void *, size_t);
void *kmem_intr_alloc(size_t, km_flag_t) __attribute__((__malloc__));
void *kmem_intr_zalloc(size_t, km_flag_t) __attribute__((__malloc__));
void kmem_intr_free(void *, size_t);
char *kmem_strdupsize(const char *, size_t *, km_flag_t);
char *kmem_strndup(const char *, size_t, km_flag_t);
void kmem_strfree(char *);

/* Text, formatted, in memory of its own, for kmem_strfree. Never fails; may sleep. Null where vsnprintf(3) fails. */
__attribute__((__format__(__printf__, 1, 2), __unused__))
static inline char *
kmem_asprintf(const char *format, ...)
{
	va_list args;
	char *text;
	int length;

	va_start(args, format);
	length = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (length < 0)
		return NULL;
	text = (char *)kmem_alloc((size_t)length + 1, KM_SLEEP);
	va_start(args, format);
	(void)vsnprintf(text, (size_t)length + 1, format, args);
	va_end(args);
	return text;
}

#ifdef __cplusplus
}
#endif

#endif
