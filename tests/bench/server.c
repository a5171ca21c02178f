/*
 * A server in the manner of larson: threads replace random blocks among those that earlier threads left them, and hand
 * everything over to a fresh thread now and then. usage: server THREADS LIVE_EACH COUNT
 */
#include "bench.h"

enum { GENERATIONS = 10 };
static size_t live;
static uint64_t each;

struct shop {
	void **blocks;
	uint64_t rng;
	unsigned generation;
};

static void *
serve(void *arg)
{
	struct shop *shop = arg;
	for (uint64_t i = 0; i < each / GENERATIONS; i++) {
		uint64_t r = next_random(&shop->rng);
		void **slot = &shop->blocks[(r >> 40) % live];
		free(*slot);
		*slot = allocate(10 + r % 490);
	}
	if (++shop->generation < GENERATIONS) {
		pthread_t next;
		if (pthread_create(&next, NULL, serve, shop))
			exit(1);
		pthread_join(next, NULL);
	}
	return NULL;
}

static void *
open_shop(void *arg)
{
	struct shop shop = { calloc(live, sizeof(void *)), seed_of((uintptr_t)arg + 1), 0 };
	serve(&shop);
	for (size_t i = 0; i < live; i++)
		free(shop.blocks[i]);
	free(shop.blocks);
	return NULL;
}

int
main(int argc, char **argv)
{
	unsigned threads = (unsigned)argument(argc, argv, 1);
	live = argument(argc, argv, 2);
	each = argument(argc, argv, 3) / threads;
	on_threads(threads, open_shop);
	finish(2 * each * threads);
}
