/*
 * What every test program here shares: a check that names its line, a seeded generator, and fill patterns
 * that tell one block's bytes from another's.
 *
 * Nothing here allocates.
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ends the program with status 1; said with dprintf, because the heap may be what is broken. */
#define CHECK(condition, ...)                                                      \
	do {                                                                       \
		if (!(condition)) {                                                \
			dprintf(2, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition); \
			dprintf(2, " " __VA_ARGS__);                               \
			dprintf(2, "\n");                                          \
			_exit(1);                                                  \
		}                                                                  \
	} while (0)

/* The compiler may not know what malloc returns, nor drop a pair of calls. */
#define OPAQUE(p) __asm__ volatile("" : "+r"(p) : : "memory")

static inline uint64_t
next_random(uint64_t *state)
{
	/* xorshift64* */
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545F4914F6CDD1DULL;
}

static inline uint64_t
seed_of(uint64_t n)
{
	uint64_t s = n * 0x9E3779B97F4A7C15ULL + 0x632BE59BD9B4E019ULL;
	return s ? s : 1;
}

/* Bytes 8w to 8w+7 of a block filled with this key. */
static inline uint64_t
pattern(uint64_t key, size_t w)
{
	return key ^ (w * 0x9E3779B97F4A7C15ULL);
}

static inline void
fill(void *p, size_t n, uint64_t key)
{
	unsigned char *b = (unsigned char *)p;
	size_t i = 0;
	uint64_t word;
	for (; i + 8 <= n; i += 8) {
		word = pattern(key, i / 8);
		memcpy(b + i, &word, 8);
	}
	word = pattern(key, i / 8);
	memcpy(b + i, &word, n - i);
}

/* First index that does not hold the pattern (to the word), or n. */
static inline size_t
mismatch(const void *p, size_t n, uint64_t key)
{
	const unsigned char *b = (const unsigned char *)p;
	size_t i = 0;
	uint64_t word;
	for (; i + 8 <= n; i += 8) {
		memcpy(&word, b + i, 8);
		if (word != pattern(key, i / 8))
			return i;
	}
	word = pattern(key, i / 8);
	return memcmp(b + i, &word, n - i) == 0 ? n : i;
}

static inline size_t
first_nonzero(const void *p, size_t n)
{
	const unsigned char *b = (const unsigned char *)p;
	for (size_t i = 0; i < n; i++)
		if (b[i])
			return i;
	return n;
}

#endif
