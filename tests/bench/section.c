/*
 * The critical section, entered twice for each block. With `ended` another thread has ended the first one's lease
 * before: it empties the caches of all slots, and for that takes them all.
 * usage: section THREADS COUNT lease|ended [SIZE]   (pairs of that size; without SIZE: 512 live blocks of usual sizes)
 */
#include "bench.h"
#include <malloc.h>

enum { LIVE = 512 };
static uint64_t each;
static size_t size;

static void *
end_lease(void *arg)
{
	malloc_trim(0);
	return arg;
}

static void *
work(void *arg)
{
	void *blocks[LIVE] = { 0 };
	uint64_t rng = seed_of((uintptr_t)arg + 1);
	if (size) {
		for (uint64_t i = 0; i < each; i++)
			free(allocate(size));
		return NULL;
	}
	for (uint64_t i = 0; i < each; i++) {
		uint64_t r = next_random(&rng);
		void **slot = &blocks[(r >> 40) % LIVE];
		free(*slot);
		*slot = allocate(usual_size(r));
	}
	for (int i = 0; i < LIVE; i++)
		free(blocks[i]);
	return NULL;
}

int
main(int argc, char **argv)
{
	unsigned threads = (unsigned)argument(argc, argv, 1);
	each = argument(argc, argv, 2) / threads;
	if (argc > 3 && strcmp(argv[3], "ended") == 0) {
		free(allocate(1));
		on_threads(1, end_lease);
	}
	size = argc > 4 ? argument(argc, argv, 4) : 0;
	if (threads == 1)
		work(NULL);
	else
		on_threads(threads, work);
	finish(2 * each * threads);
}
