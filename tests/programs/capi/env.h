/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the programs in this folder want besides the interface that they test: the same in a process (env_process.c,
 * over the C library) and in the test kernel (env_kernel.c, over what that exports to modules). A program is its
 * function `program`.
 */
#ifndef ENV_H
#define ENV_H

#include <stddef.h>
#include <stdint.h>

#ifdef _KERNEL
#define ENXIO	6
#define ENOMEM	12
#define ENOBUFS	105
int printf(const char *, ...) __attribute__((__format__(__printf__, 1, 2)));
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
size_t strlen(const char *);
int strcmp(const char *, const char *);
char *strcpy(char *, const char *);
#else
#include <errno.h>
#include <stdio.h>
#include <string.h>
#endif

#define COUNT(counter)	((void)__atomic_fetch_add(&(counter), 1, __ATOMIC_SEQ_CST))
#define NOW(counter)	__atomic_load_n(&(counter), __ATOMIC_SEQ_CST)

/* Failures are counted and named, and the program goes on. */
extern int failures;
#define CHECK(what) do {							\
	if (!(what)) {								\
		printf("%s:%d: not so: %s\n", __func__, __LINE__, #what);	\
		COUNT(failures);						\
	}									\
} while (0)

/* 0 if all was as it should be. */
int program(void);

/* Per cent of the usual amount of work. */
int env_effort(void);

/* A thread, and what it returns. */
struct env_thread {
	void *(*et_entry)(void *);
	void *et_arg;
	void *et_result;
	void *et_handle;		/* the kernel's */
	unsigned long et_number;	/* the process's */
};
int env_thread_start(struct env_thread *, void *(*)(void *), void *);
void *env_thread_join(struct env_thread *);
void env_yield(void);

/* A lock whose holder may sleep; who wants it lets others run meanwhile. */
struct env_mutex {
	int em_taken;
};
void env_mutex_init(struct env_mutex *);
void env_mutex_destroy(struct env_mutex *);
int env_mutex_trylock(struct env_mutex *);
void env_mutex_lock(struct env_mutex *);
void env_mutex_unlock(struct env_mutex *);

/* Calls body(arg), and meanwhile, again and again, handler(arg) in interrupts of every CPU. In a process threads play those. */
void env_interrupted(void (*handler)(void *), void (*body)(void *), void *arg);

/* A zone's figures, by libmemstat(3). */
struct env_zone {
	uint64_t ez_count, ez_free, ez_sleeps;
};
struct env_zone env_zone(const char *);

#endif
