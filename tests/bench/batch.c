/*
 * N blocks of one size, then all freed: the newest first, or in random order. usage: batch SIZE N ROUNDS lifo|random
 */
#include "bench.h"

static void *blocks[1 << 20];
static uint32_t order[1 << 20];

int
main(int argc, char **argv)
{
	size_t size = argument(argc, argv, 1);
	uint32_t n = (uint32_t)argument(argc, argv, 2);
	uint64_t rounds = argument(argc, argv, 3);
	int random = argc > 4 && strcmp(argv[4], "random") == 0;
	uint64_t rng = seed_of(1);
	for (uint32_t i = 0; i < n; i++)
		order[i] = n - 1 - i;
	for (uint32_t i = n - 1; random && i > 0; i--) {
		uint32_t j = (uint32_t)(next_random(&rng) % (i + 1)), t = order[i];
		order[i] = order[j];
		order[j] = t;
	}
	for (uint64_t r = 0; r < rounds; r++) {
		for (uint32_t i = 0; i < n; i++)
			blocks[i] = allocate(size);
		for (uint32_t i = 0; i < n; i++)
			free(blocks[order[i]]);
	}
	finish(2 * rounds * n);
}
