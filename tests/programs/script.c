/*
 * Millions of blocks from 100 call sites in a program and two libraries, on several threads, freed by whichever
 * thread comes across them. The program keeps its own books per call site, and shows them at checkpoints, while all
 * threads stand still: the statistics must equal them.
 *
 * usage: script BLOCKS THREADS SEED
 *
 * A checkpoint prints a line "checkpoint N", then per site "site FUNCTION MODULE OFFSET LENGTH ALLOCS FREES IN_USE
 * BYTES_IN_USE BYTES_ALLOCATED BYTES_REQUESTED", then "wait", and goes on after a byte from standard input. OFFSET and LENGTH
 * are the function's place in its file.
 */
#include "script.h"
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>

TEN_SITES(m, 0)
TEN_SITES(m, 1)
DECLARE_TEN(a, 0) DECLARE_TEN(a, 1) DECLARE_TEN(a, 2) DECLARE_TEN(a, 3)
DECLARE_TEN(b, 0) DECLARE_TEN(b, 1) DECLARE_TEN(b, 2) DECLARE_TEN(b, 3)

enum { SITES = 100, SLOTS = 20000, MOST_THREADS = 64, CHECKPOINTS = 4 };

static site_fn *const sites[SITES] = { LIST_TEN(m, 0), LIST_TEN(m, 1), LIST_TEN(a, 0), LIST_TEN(a, 1), LIST_TEN(a, 2),
	LIST_TEN(a, 3), LIST_TEN(b, 0), LIST_TEN(b, 1), LIST_TEN(b, 2), LIST_TEN(b, 3) };

struct book {
	uint64_t allocs, frees, bytes_allocated, bytes_freed, bytes_requested;
};
static struct book books[MOST_THREADS][SITES];
static _Atomic(uint64_t *) slots[SLOTS];
static pthread_barrier_t barrier;
static uint64_t seed, blocks_each;

/* The first word of a block: which site, how large, and a sum to tell it from junk. */
static uint64_t
label(const void *p, unsigned site, size_t n)
{
	uint64_t sum = ((uintptr_t)p >> 4) * 0x9E3779B97F4A7C15ULL;
	return (sum << 40) | (uint64_t)n << 8 | site;
}

static unsigned
site_of(const uint64_t *p)
{
	unsigned site = *p & 0xff;
	CHECK(site < SITES && *p == label(p, site, *p >> 8 & 0xffffffff), "block %p changed", (const void *)p);
	return site;
}

static void
credit(struct book *book, unsigned site, uint64_t *p, size_t n)
{
	CHECK(p != NULL);
	size_t usable = malloc_usable_size(p);
	CHECK(usable >= n && usable >= sizeof *p);
	*p = label(p, site, n);
	book[site].allocs++;
	book[site].bytes_allocated += usable;
	book[site].bytes_requested += n;
}

static void
debit(struct book *book, const uint64_t *p, size_t usable)
{
	unsigned site = site_of(p);
	book[site].frees++;
	book[site].bytes_freed += usable;
}

static size_t
random_size(uint64_t r)
{
	if (r % 2048 == 0)
		return 1 + (r >> 16) % 100000;
	if (r % 32 == 0)
		return 1 + (r >> 16) % 8000;
	return 1 + (r >> 16) % 500;
}

static void
allocate_one(struct book *book, uint64_t *rng)
{
	uint64_t r = next_random(rng);
	unsigned site = (unsigned)(r >> 40) % SITES;
	size_t n = random_size(next_random(rng));
	_Atomic(uint64_t *) *slot = &slots[r % SLOTS];
	if (site % 10 == SITES_RESIZE && (r >> 32) % 2) {
		/* Of another site's block: a free there, an allocation here. */
		uint64_t *old = atomic_exchange(slot, NULL);
		if (old) {
			size_t usable = malloc_usable_size(old);
			debit(book, old, usable);
			uint64_t *p = sites[site](old, n);
			credit(book, site, p, n);
			p = atomic_exchange(slot, p);
			if (p) {
				debit(book, p, malloc_usable_size(p));
				free(p);
			}
			return;
		}
	}
	uint64_t *p = sites[site](NULL, n);
	credit(book, site, p, n);
	p = atomic_exchange(slot, p);
	if (p) {
		debit(book, p, malloc_usable_size(p));
		free(p);
	}
}

static void
checkpoint(int number)
{
	printf("checkpoint %d\n", number);
	for (int s = 0; s < SITES; s++) {
		struct book sum = { 0 };
		for (int t = 0; t < MOST_THREADS; t++) {
			sum.allocs += books[t][s].allocs;
			sum.frees += books[t][s].frees;
			sum.bytes_allocated += books[t][s].bytes_allocated;
			sum.bytes_freed += books[t][s].bytes_freed;
			sum.bytes_requested += books[t][s].bytes_requested;
		}
		Dl_info info;
		const ElfW(Sym) * symbol;
		struct link_map *map;
		CHECK(dladdr1((void *)sites[s], &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol);
		CHECK(dladdr1((void *)sites[s], &info, (void **)&map, RTLD_DL_LINKMAP));
		const char *base = strrchr(info.dli_fname, '/');
		printf("site %s %s %#lx %#lx %lu %lu %lu %lu %lu %lu\n", info.dli_sname, base ? base + 1 : info.dli_fname,
		    (uintptr_t)sites[s] - map->l_addr, (unsigned long)symbol->st_size, sum.allocs, sum.frees,
		    sum.allocs - sum.frees, sum.bytes_allocated - sum.bytes_freed, sum.bytes_allocated, sum.bytes_requested);
	}
	printf("wait\n");
	fflush(stdout);
	char byte;
	CHECK(read(0, &byte, 1) == 1, "nobody answers");
}

static void *
run(void *arg)
{
	uintptr_t me = (uintptr_t)arg;
	struct book *book = books[me];
	uint64_t rng = seed_of(seed + me);
	for (int c = 1; c <= CHECKPOINTS; c++) {
		for (uint64_t i = 0; i < blocks_each / CHECKPOINTS; i++)
			allocate_one(book, &rng);
		pthread_barrier_wait(&barrier);
		if (me == 0)
			checkpoint(c);
		pthread_barrier_wait(&barrier);
	}
	/* Everything goes back, by all together. */
	for (size_t i = me; i < SLOTS; i++) {
		uint64_t *p = atomic_exchange(&slots[i], NULL);
		if (p) {
			debit(book, p, malloc_usable_size(p));
			free(p);
		}
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	CHECK(argc == 4, "usage: script BLOCKS THREADS SEED");
	int nthreads = atoi(argv[2]);
	CHECK(nthreads >= 1 && nthreads <= MOST_THREADS);
	blocks_each = strtoull(argv[1], NULL, 0) / (uint64_t)nthreads;
	seed = strtoull(argv[3], NULL, 0);
	pthread_barrier_init(&barrier, NULL, (unsigned)nthreads);
	pthread_t threads[MOST_THREADS];
	for (uintptr_t i = 1; i < (uintptr_t)nthreads; i++)
		CHECK(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
	run(NULL);
	for (int i = 1; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	/* Some that stay, for the table at the end. */
	uint64_t rng = seed_of(seed + 1000);
	for (int i = 0; i < 1000; i++)
		allocate_one(books[0], &rng);
	checkpoint(CHECKPOINTS + 1);
	return 0;
}
