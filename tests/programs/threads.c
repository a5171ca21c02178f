/*
 * Threads by the thousand, a few alive at a time. Each allocates, frees what an earlier thread left it, leaves
 * something to a later one, and frees more while it dies: from a pthread key's destructor, and from one that runs
 * again because it set its key anew.
 *
 * usage: threads COUNT
 */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>

enum { AT_ONCE = 16, LEFT = 64 };

static pthread_key_t key, late_key;
static _Atomic(void *) left[LEFT];
static _Atomic unsigned long destroyed, late;

static void
destructor(void *p)
{
	CHECK(mismatch(p, 3000, 9) == 3000, "a dying thread's block changed");
	free(p);
	/* Memory may be asked for here too. */
	p = calloc(1, 777);
	CHECK(p && first_nonzero(p, 777) == 777);
	pthread_setspecific(late_key, p);
	destroyed++;
}

static void
late_destructor(void *p)
{
	char *more = realloc(p, 5000);
	CHECK(more && first_nonzero(more, 777) == 777);
	free(more);
	late++;
}

static void *
live(void *arg)
{
	uint64_t rng = seed_of((uintptr_t)arg);
	void *mine = malloc(3000);
	CHECK(mine);
	fill(mine, 3000, 9);
	pthread_setspecific(key, mine);
	for (int i = 0; i < 40; i++) {
		size_t n = 64 + next_random(&rng) % 1000;
		size_t *p = malloc(n);
		CHECK(p);
		*p = n;
		fill(p + 1, n - sizeof *p, n);
		size_t *other = atomic_exchange(&left[next_random(&rng) % LEFT], p);
		if (other) {
			CHECK(mismatch(other + 1, *other - sizeof *other, *other) == *other - sizeof *other);
			free(other);
		}
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	CHECK(argc == 2);
	unsigned long count = strtoul(argv[1], NULL, 0), done = 0;
	CHECK(pthread_key_create(&key, destructor) == 0);
	CHECK(pthread_key_create(&late_key, late_destructor) == 0);
	while (done < count) {
		pthread_t threads[AT_ONCE];
		int n = 0;
		for (; n < AT_ONCE && done < count; n++, done++) {
			int error = pthread_create(&threads[n], NULL, live, (void *)(done + 1));
			CHECK(error == 0, "thread %lu: %s", done, strerror(error));
		}
		while (n > 0)
			pthread_join(threads[--n], NULL);
	}
	for (int i = 0; i < LEFT; i++)
		free(left[i]);
	CHECK(destroyed == count && late == count, "%lu and %lu destructors of %lu", destroyed, late, count);
	printf("%lu threads\n", count);
	return 0;
}
