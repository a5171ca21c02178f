/*
 * In the manner of mstress: every thread builds up and tears down sets of blocks of all sizes, keeps some, and trades
 * some with the others through a shared table; then a new set of threads goes on. usage: stress THREADS COUNT ROUNDS
 */
#include "bench.h"

enum { SHARED = 1000, KEEP = 500 };
static _Atomic(void *) shared[SHARED];
static uint64_t each, total;

static size_t
any_size(uint64_t r)
{
	if (r % 1000 == 0)
		return 100000 + (r >> 20) % 400000;
	if (r % 100 == 0)
		return 5000 + (r >> 20) % 40000;
	return usual_size(r >> 20);
}

static void *
work(void *arg)
{
	uint64_t rng = seed_of((uintptr_t)arg + total);
	void *kept[KEEP] = { 0 };
	void **set = calloc(each, sizeof *set);
	uint64_t n = 0;
	for (uint64_t i = 0; i < each; i++) {
		uint64_t r = next_random(&rng);
		void *p = allocate(any_size(r));
		switch ((r >> 50) % 8) {
		case 0:
			p = atomic_exchange(&shared[(r >> 30) % SHARED], p);
			free(p);
			break;
		case 1: {
			void **slot = &kept[(r >> 30) % KEEP];
			free(*slot);
			*slot = p;
			break;
		}
		case 2:
		case 3:
			free(p);
			if (n) {
				free(set[--n]);
			}
			break;
		default:
			set[n++] = p;
		}
	}
	while (n)
		free(set[--n]);
	for (int i = 0; i < KEEP; i++)
		free(kept[i]);
	free(set);
	return NULL;
}

int
main(int argc, char **argv)
{
	unsigned threads = (unsigned)argument(argc, argv, 1);
	uint64_t rounds = argument(argc, argv, 3);
	each = argument(argc, argv, 2) / threads / rounds;
	for (uint64_t r = 0; r < rounds; r++) {
		on_threads(threads, work);
		total += threads;
	}
	for (int i = 0; i < SHARED; i++)
		free(shared[i]);
	finish(2 * each * rounds * threads);
}
