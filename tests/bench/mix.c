/* A number of live blocks of usual sizes; a random one is replaced, again and again. usage: mix LIVE THREADS COUNT */
#include "bench.h"

static size_t live;
static uint64_t each;

static void *
churn(void *arg)
{
	void **blocks = calloc(live, sizeof *blocks);
	uint64_t rng = seed_of((uintptr_t)arg + 1);
	for (uint64_t i = 0; i < each; i++) {
		uint64_t r = next_random(&rng);
		void **slot = &blocks[(r >> 40) % live];
		free(*slot);
		*slot = allocate(usual_size(r));
	}
	for (size_t i = 0; i < live; i++)
		free(blocks[i]);
	free(blocks);
	return NULL;
}

int
main(int argc, char **argv)
{
	live = argument(argc, argv, 1);
	unsigned threads = (unsigned)argument(argc, argv, 2);
	each = argument(argc, argv, 3) / threads;
	if (threads == 1)
		churn(NULL);
	else
		on_threads(threads, churn);
	finish(2 * each * threads);
}
