/*
 * What the benchmark programs share. A program does a fixed amount of work, counted in operations (an allocation with
 * its free is one pair, two operations), and says how many it did per second of CPU time (user and system, all
 * threads) and its peak of resident memory. Nothing here allocates.
 */
#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The compiler neither drops a pair of calls nor knows where a block lies. */
#define OPAQUE(p) __asm__ volatile("" : "+r"(p) : : "memory")

static inline uint64_t
next_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static inline uint64_t
seed_of(uint64_t n)
{
	return n * 0x9E3779B97F4A7C15ULL + 0x632BE59BD9B4E019ULL;
}

/* A block is used: its first and last bytes are written. */
static inline void *
allocate(size_t n)
{
	char *p = malloc(n);
	if (!p) {
		fputs("out of memory\n", stderr);
		exit(1);
	}
	p[0] = (char)n;
	p[n - 1] = (char)n;
	OPAQUE(p);
	return p;
}

/* Most requests of programs are small; the tail is long. Mean near 200 bytes. */
static inline size_t
usual_size(uint64_t r)
{
	unsigned low = r & 1023;
	r >>= 10;
	if (low < 600)
		return 16 + r % 64;
	if (low < 900)
		return 64 + r % 256;
	if (low < 1010)
		return 256 + r % 1024;
	return 1024 + r % 8192;
}

static inline void
finish(uint64_t operations)
{
	struct rusage use;
	getrusage(RUSAGE_SELF, &use);
	double seconds = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
	    (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
	printf("%.0f ops/s per CPU-second, %.2f ns per op, %ld KiB peak\n", (double)operations / seconds,
	    seconds * 1e9 / (double)operations, use.ru_maxrss);
}

static inline uint64_t
argument(int argc, char **argv, int n)
{
	if (n >= argc) {
		fprintf(stderr, "%s: argument %d is missing\n", argv[0], n);
		exit(2);
	}
	return strtoull(argv[n], NULL, 0);
}

/* Runs `body(index)` on n threads. */
static inline void
on_threads(unsigned n, void *(*body)(void *))
{
	pthread_t threads[256];
	for (uintptr_t i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, body, (void *)i)) {
			fputs("no thread\n", stderr);
			exit(1);
		}
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
}

#endif
