/* SPDX-License-Identifier: BSD-2-Clause */
/* A client of pool(9) and pool_cache(9): connections that are constructed once, requests that are not. Threads churn both. */
#include <sys/types.h>
#include <sys/pool.h>

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int failures;

#define CHECK(what) do {							\
	if (!(what)) {								\
		printf("%s:%d: not so: %s\n", __func__, __LINE__, #what);	\
		failures++;							\
	}									\
} while (0)

#define CONN_MAGIC	0x636f6e6eu
#define THREADS		4
#define ROUNDS		20000
#define HELD		40

struct conn {
	uint32_t c_magic;
	int c_uses;
	pthread_mutex_t c_lock;		/* what makes construction worth keeping */
	char c_buffer[400];
};

struct request {
	struct request *r_next;
	uint64_t r_id;
};

static pthread_mutex_t count_lock = PTHREAD_MUTEX_INITIALIZER;
static int constructed, destructed, refuse;

static int
conn_ctor(void *arg, void *object, int flags)
{
	struct conn *c = object;

	CHECK(arg == (void *)&constructed);
	CHECK(flags == PR_WAITOK || flags == PR_NOWAIT);
	if (refuse)
		return 1;
	c->c_magic = CONN_MAGIC;
	c->c_uses = 0;
	pthread_mutex_init(&c->c_lock, NULL);
	pthread_mutex_lock(&count_lock);
	constructed++;
	pthread_mutex_unlock(&count_lock);
	return 0;
}

static void
conn_dtor(void *arg, void *object)
{
	struct conn *c = object;

	CHECK(arg == (void *)&constructed);
	CHECK(c->c_magic == CONN_MAGIC);
	c->c_magic = 0;
	pthread_mutex_destroy(&c->c_lock);
	pthread_mutex_lock(&count_lock);
	destructed++;
	pthread_mutex_unlock(&count_lock);
}

static pool_cache_t conns;
static struct pool requests;

static void *
churn(void *arg)
{
	struct conn *held[HELD] = { NULL };
	uint64_t seed = (uintptr_t)arg + 1, bad = 0;

	for (int round = 0; round < ROUNDS; round++) {
		struct request *r = pool_get(&requests, PR_WAITOK | PR_ZERO);
		int at;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		at = (int)((seed >> 33) % HELD);
		bad += r->r_next != NULL || r->r_id != 0;
		r->r_id = seed;
		if (held[at] == NULL) {
			held[at] = pool_cache_get(conns, PR_WAITOK);
			/* As its constructor or its last owner left it, and nobody else's. */
			bad += held[at]->c_magic != CONN_MAGIC;
			bad += pthread_mutex_trylock(&held[at]->c_lock) != 0;
			held[at]->c_uses++;
		} else {
			pthread_mutex_unlock(&held[at]->c_lock);
			pool_cache_put(conns, held[at]);
			held[at] = NULL;
		}
		bad += r->r_id != seed;
		pool_put(&requests, r);
	}
	for (int at = 0; at < HELD; at++) {
		if (held[at] != NULL) {
			pthread_mutex_unlock(&held[at]->c_lock);
			pool_cache_put(conns, held[at]);
		}
	}
	return (void *)(uintptr_t)bad;
}

static void
threads(void)
{
	pthread_t thread[THREADS];
	void *bad;

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, churn, (void *)(uintptr_t)i) == 0);
	for (int i = 0; i < THREADS; i++) {
		CHECK(pthread_join(thread[i], &bad) == 0);
		CHECK(bad == NULL);
	}
	/* Far fewer constructions than allocations: that is what a pool cache is for. */
	CHECK(constructed > 0 && constructed < THREADS * ROUNDS / 10);
}

static void
construction(void)
{
	struct conn *c = pool_cache_get(conns, PR_WAITOK);
	int before = constructed;

	c->c_uses = 77;
	pool_cache_put(conns, c);
	c = pool_cache_get(conns, PR_NOWAIT);
	CHECK(c->c_magic == CONN_MAGIC && constructed == before);
	/* One that is not fit to be handed on. */
	c->c_uses = 99;
	before = destructed;
	pool_cache_destruct_object(conns, c);
	CHECK(destructed == before + 1);
	pool_cache_invalidate(conns);
	CHECK(destructed == constructed);
	refuse = 1;
	CHECK(pool_cache_get(conns, PR_NOWAIT) == NULL);
	refuse = 0;
	c = pool_cache_get(conns, PR_NOWAIT);
	CHECK(c != NULL && c->c_uses == 0);
	pool_cache_put(conns, c);
	CHECK(pool_cache_prime(conns, 100) == 0);
	pool_cache_reclaim(conns);
	CHECK(destructed == constructed);
}

static void *spare[4];
static int spares, drains;

static void
drain(void *arg, int flags)
{
	struct pool *pp = arg;

	(void)flags;
	drains++;
	while (spares > 0)
		pool_put(pp, spare[--spares]);
}

static void
hard_limit(void)
{
	struct pool small;
	void *item[16];

	memset(&small, 0xff, sizeof(small));
	pool_init(&small, 64, 64, 0, 0, "small", NULL, IPL_NONE);
	pool_sethardlimit(&small, 16, "the pool is small", 60);
	pool_setlowat(&small, 4);
	pool_sethiwat(&small, 8);
	for (int i = 0; i < 16; i++) {
		item[i] = pool_get(&small, PR_NOWAIT);
		CHECK(item[i] != NULL && ((uintptr_t)item[i] & 63) == 0);
		for (int j = 0; j < i; j++)
			CHECK(item[i] != item[j]);
	}
	CHECK(pool_get(&small, PR_NOWAIT) == NULL);
	CHECK(pool_get(&small, PR_WAITOK | PR_LIMITFAIL) == NULL);
	/* Somebody can spare a few. */
	for (spares = 0; spares < 4; spares++)
		spare[spares] = item[12 + spares];
	pool_set_drain_hook(&small, drain, &small);
	CHECK((item[12] = pool_get(&small, PR_WAITOK)) != NULL && drains == 1 && spares == 0);
	CHECK((item[13] = pool_get(&small, PR_NOWAIT)) != NULL && drains == 1);
	for (int i = 0; i < 14; i++)
		pool_put(&small, item[i]);
	pool_reclaim(&small);
	pool_destroy(&small);
}

int
main(void)
{
	conns = pool_cache_init(sizeof(struct conn), 0, 0, 0, "conn", NULL, IPL_SOFTNET, conn_ctor, conn_dtor,
	    &constructed);
	pool_init(&requests, sizeof(struct request), 0, 0, 0, "request", &pool_allocator_nointr, IPL_VM);
	CHECK(conns != NULL);
	CHECK(pool_cache_init(8, 0, 4, 0, "offset", NULL, IPL_NONE, NULL, NULL, NULL) == NULL);
	CHECK(pool_prime(&requests, 50) == 0);
	threads();
	construction();
	hard_limit();
	pool_cache_destroy(conns);
	pool_destroy(&requests);
	CHECK(constructed == destructed);
	if (failures == 0)
		printf("pools destroyed\n");
	return failures != 0;
}
