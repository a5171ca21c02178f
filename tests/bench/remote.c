/*
 * Blocks made by one thread and freed by another, handed over in crates of 256 between pairs of a producer and a
 * consumer, as xmalloc-test has it. Who has to wait sleeps, so that waiting costs no CPU time.
 * usage: remote PAIRS COUNT [SIZE]   (without SIZE: usual sizes)
 */
#include "bench.h"

enum { CRATE = 256, CRATES = 16 };

static struct pair {
	_Alignas(64) pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t filled, emptied;
	void *slot[CRATES][CRATE];
} pairs[64];
static uint64_t crates;
static size_t fixed;

/* Waits until there is a crate to fill, or one to empty. */
static void
wait_for(struct pair *pair, int producer, uint64_t n)
{
	pthread_mutex_lock(&pair->lock);
	while (producer ? n - pair->emptied == CRATES : pair->filled == n)
		pthread_cond_wait(&pair->changed, &pair->lock);
	pthread_mutex_unlock(&pair->lock);
}

static void
hand_over(struct pair *pair, int producer, uint64_t n)
{
	pthread_mutex_lock(&pair->lock);
	*(producer ? &pair->filled : &pair->emptied) = n + 1;
	pthread_cond_signal(&pair->changed);
	pthread_mutex_unlock(&pair->lock);
}

static void *
work(void *arg)
{
	uintptr_t me = (uintptr_t)arg;
	struct pair *pair = &pairs[me / 2];
	int producer = me % 2 == 0;
	uint64_t rng = seed_of(me + 1);
	for (uint64_t n = 0; n < crates; n++) {
		void **crate = pair->slot[n % CRATES];
		wait_for(pair, producer, n);
		for (int i = 0; i < CRATE; i++)
			if (producer)
				crate[i] = allocate(fixed ? fixed : usual_size(next_random(&rng)));
			else
				free(crate[i]);
		hand_over(pair, producer, n);
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	unsigned n = (unsigned)argument(argc, argv, 1);
	crates = argument(argc, argv, 2) / n / CRATE;
	fixed = argc > 3 ? argument(argc, argv, 3) : 0;
	for (unsigned i = 0; i < n; i++) {
		pthread_mutex_init(&pairs[i].lock, NULL);
		pthread_cond_init(&pairs[i].changed, NULL);
	}
	on_threads(2 * n, work);
	finish(2 * crates * CRATE * n);
}
