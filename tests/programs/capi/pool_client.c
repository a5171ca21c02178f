/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A client of pool(9) and pool_cache(9): connections that are constructed once, requests that are not, pages of a size
 * of their own. Threads churn them; marks, limits and hooks are tried one by one.
 *
 * Written against pool(9) and pool_cache(9).
 */
#include <sys/pool.h>

#include "env.h"

#define CONN_MAGIC	0x636f6e6eu
#define THREADS		4
#define ROUNDS		(20000 * env_effort() / 100)
#define HELD		40

struct conn {
	uint32_t c_magic;
	int c_uses;
	struct env_mutex c_lock;		/* what makes construction worth keeping */
	char c_buffer[400];
};

struct request {
	struct request *r_next;
	uint64_t r_id;
};

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
	env_mutex_init(&c->c_lock);
	COUNT(constructed);
	return 0;
}

static void
conn_dtor(void *arg, void *object)
{
	struct conn *c = object;

	CHECK(arg == (void *)&constructed);
	CHECK(c->c_magic == CONN_MAGIC);
	c->c_magic = 0;
	env_mutex_destroy(&c->c_lock);
	COUNT(destructed);
}

static pool_cache_t conns;
static struct pool requests;

static void *
churn(void *arg)
{
	struct conn *held[HELD] = { NULL };
	uint64_t seed = (uintptr_t)arg + 1, bad = 0;

	int rounds = ROUNDS;

	for (int round = 0; round < rounds; round++) {
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
			bad += env_mutex_trylock(&held[at]->c_lock) != 0;
			held[at]->c_uses++;
		} else {
			env_mutex_unlock(&held[at]->c_lock);
			pool_cache_put(conns, held[at]);
			held[at] = NULL;
		}
		bad += r->r_id != seed;
		pool_put(&requests, r);
	}
	for (int at = 0; at < HELD; at++) {
		if (held[at] != NULL) {
			env_mutex_unlock(&held[at]->c_lock);
			pool_cache_put(conns, held[at]);
		}
	}
	return (void *)(uintptr_t)bad;
}

static void
threads(void)
{
	struct env_thread thread[THREADS];

	for (int i = 0; i < THREADS; i++)
		CHECK(env_thread_start(&thread[i], churn, (void *)(uintptr_t)i) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(env_thread_join(&thread[i]) == NULL);
	/* Far fewer constructions than allocations: that is what a pool cache is for. */
	CHECK(constructed > 0 && (env_effort() < 100 || constructed < THREADS * ROUNDS / 10));
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

/* ---- every item where it must be, and nobody else's ---- */

static void
alignment(void)
{
	static const unsigned int aligns[] = { 0, 8, 16, 64, 256, 4096 };
	static const size_t sizes[] = { 1, 24, 100, 700, 5000 };
	void *item[20];

	for (size_t a = 0; a < sizeof(aligns) / sizeof(aligns[0]); a++) {
		for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
			uintptr_t mask = (aligns[a] == 0 ? sizeof(void *) : aligns[a]) - 1;
			struct pool pool;

			pool_init(&pool, sizes[s], aligns[a], 0, 0, "aligned", &pool_allocator_kmem, IPL_VM);
			for (int i = 0; i < 20; i++) {
				item[i] = pool_get(&pool, PR_WAITOK);
				CHECK(((uintptr_t)item[i] & mask) == 0);
				memset(item[i], i, sizes[s]);
			}
			for (int i = 0; i < 20; i++) {
				const unsigned char *byte = item[i];

				CHECK(byte[0] == i && byte[sizes[s] - 1] == i);
				pool_put(&pool, item[i]);
			}
			pool_destroy(&pool);
		}
	}
}

/* ---- how often an object is constructed: never twice without being destructed between, and as the cache is told ---- */

#define OBJECTS	60

static int made, unmade, alive_most;

static int
count_ctor(void *arg, void *object, int flags)
{
	int *state = object;

	(void)flags;
	CHECK(arg == NULL);
	*state = 1;
	COUNT(made);
	if (NOW(made) - NOW(unmade) > alive_most)
		alive_most = made - unmade;
	return 0;
}

static void
count_dtor(void *arg, void *object)
{
	int *state = object;

	CHECK(arg == NULL && *state == 1);
	*state = 0;
	COUNT(unmade);
}

static void
counts(void)
{
	pool_cache_t cache = pool_cache_init(96, 32, 0, 0, "counted", NULL, IPL_NONE, count_ctor, count_dtor, NULL);
	int *object[OBJECTS];
	int before;

	CHECK(pool_cache_prime(cache, 2 * OBJECTS) == 0);
	CHECK(made == 0);		/* there is room; nothing is in it */
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < OBJECTS; i++) {
			object[i] = pool_cache_get(cache, i % 2 == 0 ? PR_WAITOK : PR_NOWAIT);
			CHECK(object[i] != NULL && *object[i] == 1);
		}
		CHECK(made - unmade >= OBJECTS);
		before = made;
		/* Objects in use stay as they are when the free ones are destructed. */
		for (int i = OBJECTS / 2; i < OBJECTS; i++)
			pool_cache_put(cache, object[i]);
		pool_cache_invalidate(cache);
		CHECK(made == before && made - unmade == OBJECTS / 2);
		for (int i = 0; i < OBJECTS / 2; i++) {
			CHECK(*object[i] == 1);
			pool_cache_put(cache, object[i]);
		}
		CHECK(made - unmade == OBJECTS / 2);
		pool_cache_invalidate(cache);
		CHECK(made == unmade);
	}
	/* An object that comes back unfit is destructed alone, and constructed anew. */
	object[0] = pool_cache_get(cache, PR_WAITOK);
	before = unmade;
	pool_cache_destruct_object(cache, object[0]);
	CHECK(unmade == before + 1);
	CHECK(pool_cache_reclaim(cache));
	CHECK(!pool_cache_reclaim(cache));
	CHECK(made == unmade && alive_most >= OBJECTS);
	pool_cache_destroy(cache);
	CHECK(made == unmade);
}

/* ---- water marks ---- */

static void
water(void)
{
	struct pool pool;
	void *item[200];

	/* Four to a page and more, so that pages come and go. */
	pool_init(&pool, 1000, 0, 0, 0, "water", NULL, IPL_NONE);
	pool_setlowat(&pool, 10);
	CHECK(env_zone("water").ez_free >= 10);
	for (int i = 0; i < 200; i++) {
		CHECK((item[i] = pool_get(&pool, PR_NOWAIT)) != NULL);
		/* However many are taken: the next ten are there. */
		CHECK(env_zone("water").ez_free >= 10);
	}
	CHECK(env_zone("water").ez_count == 200);
	pool_setlowat(&pool, 0);
	/* Without a mark what is given back stays for whoever comes. */
	for (int i = 0; i < 100; i++)
		pool_put(&pool, item[i]);
	CHECK(env_zone("water").ez_free >= 100);
	pool_sethiwat(&pool, 20);
	for (int i = 100; i < 200; i++)
		pool_put(&pool, item[i]);
	/* At most the mark, and what a slab has. */
	CHECK(env_zone("water").ez_free <= 20 + 64 && env_zone("water").ez_count == 0);
	pool_sethiwat(&pool, 1);
	CHECK(env_zone("water").ez_free <= 1 + 64);
	pool_destroy(&pool);
}

/* ---- PR_WAITOK at the hard limit: asleep until something is given back ---- */

#define SLEEPERS	3

static struct pool scarce;
static int served;

static void *
sleeper(void *unused)
{
	void *item = pool_get(&scarce, PR_WAITOK);

	(void)unused;
	COUNT(served);
	return item;
}

static void
sleeping(void)
{
	struct env_thread thread[SLEEPERS];
	void *item[8], *got[SLEEPERS];

	pool_init(&scarce, 40, 0, 0, 0, "scarce", NULL, IPL_NONE);
	pool_sethardlimit(&scarce, 8, "the pool is scarce", 0);
	for (int i = 0; i < 8; i++)
		CHECK((item[i] = pool_get(&scarce, PR_NOWAIT)) != NULL);
	for (int i = 0; i < SLEEPERS; i++)
		CHECK(env_thread_start(&thread[i], sleeper, NULL) == 0);
	while (env_zone("scarce").ez_sleeps < SLEEPERS)
		env_yield();
	CHECK(served == 0);
	/* Who does not want to sleep goes without; and what comes back is for those who stand in line. */
	CHECK(pool_get(&scarce, PR_NOWAIT) == NULL && pool_get(&scarce, PR_WAITOK | PR_LIMITFAIL) == NULL);
	for (int i = 0; i < SLEEPERS; i++) {
		pool_put(&scarce, item[i]);
		while (NOW(served) < i + 1)
			env_yield();
		CHECK(served == i + 1);
		CHECK(pool_get(&scarce, PR_NOWAIT) == NULL);
	}
	for (int i = 0; i < SLEEPERS; i++) {
		CHECK((got[i] = env_thread_join(&thread[i])) != NULL);
		for (int j = SLEEPERS; j < 8; j++)
			CHECK(got[i] != item[j]);
		pool_put(&scarce, got[i]);
	}
	/* A limit that is raised lets more through, one that is 0 all. */
	pool_sethardlimit(&scarce, 9, NULL, 0);
	for (int i = 0; i < SLEEPERS; i++)
		CHECK((item[i] = pool_get(&scarce, PR_NOWAIT)) != NULL);
	CHECK((got[0] = pool_get(&scarce, PR_NOWAIT)) != NULL && pool_get(&scarce, PR_NOWAIT) == NULL);
	pool_sethardlimit(&scarce, 0, NULL, 0);
	CHECK((got[1] = pool_get(&scarce, PR_NOWAIT)) != NULL);
	pool_put(&scarce, got[0]);
	pool_put(&scarce, got[1]);
	for (int i = 0; i < 8; i++)
		pool_put(&scarce, item[i]);
	CHECK(env_zone("scarce").ez_count == 0);
	pool_destroy(&scarce);
}

int
program(void)
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
	alignment();
	counts();
	water();
	sleeping();
	pool_cache_destroy(conns);
	pool_destroy(&requests);
	CHECK(constructed == destructed);
	if (failures == 0)
		printf("pools destroyed\n");
	return failures != 0;
}
