/*
 * Blocks made by one thread and freed by another, handed over in rings: pairs of a producer and a consumer, as
 * xmalloc-test has it. usage: remote PAIRS COUNT [SIZE]   (without SIZE: usual sizes)
 */
#include "bench.h"
#include <sched.h>

enum { RING = 4096 };

static struct ring {
	_Alignas(64) _Atomic uint64_t head;
	_Alignas(64) _Atomic uint64_t tail;
	_Alignas(64) void *slot[RING];
} rings[64];
static uint64_t each;
static size_t fixed;

static void *
work(void *arg)
{
	uintptr_t me = (uintptr_t)arg;
	struct ring *ring = &rings[me / 2];
	uint64_t rng = seed_of(me + 1);
	if (me % 2 == 0)
		for (uint64_t i = 0; i < each; i++) {
			while (i - atomic_load_explicit(&ring->tail, memory_order_acquire) == RING)
				sched_yield();
			ring->slot[i % RING] = allocate(fixed ? fixed : usual_size(next_random(&rng)));
			atomic_store_explicit(&ring->head, i + 1, memory_order_release);
		}
	else
		for (uint64_t i = 0; i < each; i++) {
			while (atomic_load_explicit(&ring->head, memory_order_acquire) == i)
				sched_yield();
			free(ring->slot[i % RING]);
			atomic_store_explicit(&ring->tail, i + 1, memory_order_release);
		}
	return NULL;
}

int
main(int argc, char **argv)
{
	unsigned pairs = (unsigned)argument(argc, argv, 1);
	each = argument(argc, argv, 2) / pairs;
	fixed = argc > 3 ? argument(argc, argv, 3) : 0;
	on_threads(2 * pairs, work);
	finish(2 * each * pairs);
}
