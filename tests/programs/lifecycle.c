/*
 * The heap before main and after it: the earliest constructors, constructors of a library, exit handlers,
 * destructors, and a handler registered by a destructor. Also threads that still run while the program leaves.
 */
#include "check.h"
#include <pthread.h>

static char *early[100];

static void
round_trip(const char *when)
{
	void *p[200];
	for (size_t i = 0; i < 200; i++) {
		p[i] = i % 3 ? malloc(i * i) : calloc(i, i);
		CHECK(p[i], "%s", when);
		fill(p[i], i * i, i);
	}
	for (size_t i = 0; i < 200; i++) {
		CHECK(mismatch(p[i], i * i, i) == i * i, "%s", when);
		p[i] = realloc(p[i], 2 * i * i + 1);
		CHECK(p[i], "%s", when);
		CHECK(mismatch(p[i], i * i, i) == i * i, "%s", when);
		free(p[i]);
	}
	dprintf(1, "%s\n", when);
}

__attribute__((constructor(101))) static void
first(void)
{
	for (int i = 0; i < 100; i++) {
		early[i] = malloc(123);
		fill(early[i], 123, (uint64_t)i);
	}
	round_trip("constructor 101");
}

__attribute__((constructor(65535))) static void
last(void)
{
	round_trip("constructor 65535");
}

static void
even_later(void)
{
	round_trip("exit handler of a destructor");
}

static void
at_exit(void)
{
	round_trip("exit handler");
}

__attribute__((destructor(101))) static void
very_last(void)
{
	for (int i = 0; i < 100; i++) {
		CHECK(mismatch(early[i], 123, (uint64_t)i) == 123);
		free(early[i]);
	}
	round_trip("destructor 101");
}

__attribute__((destructor)) static void
leaving(void)
{
	round_trip("destructor");
	atexit(even_later);
}

static void *
never_ends(void *arg)
{
	(void)arg;
	for (uint64_t rng = 7;;) {
		void *p = malloc(next_random(&rng) % 5000);
		CHECK(p);
		free(p);
	}
}

int
main(int argc, char **argv)
{
	atexit(at_exit);
	round_trip("main");
	if (argc > 1 && strcmp(argv[1], "threads") == 0)
		for (int i = 0; i < 3; i++) {
			pthread_t t;
			CHECK(pthread_create(&t, NULL, never_ends, NULL) == 0);
			usleep(20000);
		}
	return 0;
}
