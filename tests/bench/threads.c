/* Threads that live for a few hundred blocks each. One operation is a malloc or free. usage: threads COUNT BLOCKS */
#include "bench.h"

static uint64_t blocks;

static void *
live(void *arg)
{
	void *p[64] = { 0 };
	uint64_t rng = seed_of((uintptr_t)arg + 1);
	for (uint64_t i = 0; i < blocks; i++) {
		free(p[i % 64]);
		p[i % 64] = allocate(usual_size(next_random(&rng)));
	}
	for (int i = 0; i < 64; i++)
		free(p[i]);
	return NULL;
}

int
main(int argc, char **argv)
{
	uint64_t count = argument(argc, argv, 1);
	blocks = argument(argc, argv, 2);
	for (uint64_t i = 0; i < count; i += 4)
		on_threads(4, live);
	finish(2 * count * blocks);
}
