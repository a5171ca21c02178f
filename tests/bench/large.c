/* A few live blocks of 100 KiB to 4 MiB, of which a random one is replaced; a page in 16 is touched. usage: large LIVE COUNT */
#include "bench.h"

int
main(int argc, char **argv)
{
	size_t live = argument(argc, argv, 1);
	uint64_t count = argument(argc, argv, 2);
	static void *blocks[4096];
	uint64_t rng = seed_of(1);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t r = next_random(&rng);
		size_t n = (100 << 10) + (r >> 8) % (4 << 20);
		void **slot = &blocks[(r >> 40) % live];
		free(*slot);
		char *p = *slot = allocate(n);
		for (size_t at = 0; at < n; at += 16 * 4096)
			p[at] = 1;
	}
	finish(2 * count);
}
