/*
 * One mistake per run, named by the first argument. Prints the address it is about to give to free, commits the
 * mistake, and if it is let go on, shows that the heap is still sound.
 */
#include "check.h"
#include <malloc.h>
#include <pthread.h>
#include <sys/mman.h>

static char in_static_memory[256] __attribute__((aligned(64)));

/* Where the blocks come from: the report shall name this program. */
__attribute__((noinline)) void *
victim_site(size_t n)
{
	void *p = malloc(n);
	OPAQUE(p);
	return p;
}

static void *
free_in_thread(void *p)
{
	free(p);
	return NULL;
}

static void
in_thread(void *p)
{
	pthread_t t;
	CHECK(pthread_create(&t, NULL, free_in_thread, p) == 0);
	pthread_join(t, NULL);
}

/* Other traffic, in other sizes: the victim's place stays free. */
static void
traffic(void)
{
	void *p[500];
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 500; i++)
			p[i] = malloc(300 + (size_t)(i * 37) % 2000);
		for (int i = 0; i < 500; i++)
			free(p[i]);
	}
}

static void
announce(void *p)
{
	printf("%p\n", p);
	fflush(stdout);
}

static void
sound(size_t size)
{
	enum { N = 3000 };
	static void *p[N];
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < N; i++) {
			size_t n = i % 2 && size < 10000 ? size : (size_t)(i * 13) % 700;
			p[i] = malloc(n);
			CHECK(p[i]);
			fill(p[i], n, (uint64_t)i);
		}
		for (int i = 0; i < N; i++) {
			size_t n = i % 2 && size < 10000 ? size : (size_t)(i * 13) % 700;
			CHECK(mismatch(p[i], n, (uint64_t)i) == n, "two blocks share memory");
			free(p[i]);
		}
	}
	if (size >= 10000) {
		for (int i = 0; i < 20; i++) {
			p[i] = malloc(size);
			fill(p[i], size, (uint64_t)i);
		}
		for (int i = 0; i < 20; i++) {
			CHECK(mismatch(p[i], size, (uint64_t)i) == size, "two blocks share memory");
			free(p[i]);
		}
	}
	puts("sound");
}

int
main(int argc, char **argv)
{
	CHECK(argc == 2);
	/* What is announced between two frees must not take the freed block for a buffer. */
	setvbuf(stdout, NULL, _IONBF, 0);
	const char *what = argv[1];
	size_t size = strncmp(what, "large-", 6) == 0 ? 300000 : 100;
	if (size > 100)
		what += 6;
	char *p = victim_site(size), *neighbour = victim_site(size);
	CHECK(p && neighbour);
	fill(neighbour, size, 77);
	/* Through a volatile, or the compiler complains of the mistake itself. */
	void *volatile bad = p;

	if (strcmp(what, "double") == 0) {
		free(p);
		announce(bad);
		free(bad);
	} else if (strcmp(what, "double-later") == 0) {
		free(p);
		traffic();
		announce(bad);
		free(bad);
	} else if (strcmp(what, "double-after-neighbour") == 0) {
		void *other = victim_site(size);
		free(p);
		free(other);
		announce(bad);
		free(bad);
	} else if (strcmp(what, "double-in-thread") == 0) {
		free(p);
		announce(bad);
		in_thread(bad);
	} else if (strcmp(what, "double-of-thread") == 0) {
		in_thread(p);
		announce(bad);
		free(bad);
	} else if (strcmp(what, "double-realloc") == 0) {
		/* Grown so far that it must move. */
		char *q = realloc(p, size * 400);
		CHECK(q && q != (char *)bad);
		announce(bad);
		free(bad);
	} else if (strcmp(what, "realloc-of-freed") == 0) {
		free(p);
		announce(bad);
		void *q = realloc(bad, size * 2);
		CHECK(q != bad || q == NULL);
	} else if (strcmp(what, "interior") == 0) {
		bad = p + (size > 100 ? 8192 : 16);
		announce(bad);
		free(bad);
		free(p);
	} else if (strcmp(what, "unaligned") == 0) {
		bad = p + 1;
		announce(bad);
		free(bad);
		free(p);
	} else if (strcmp(what, "interior-unaligned") == 0) {
		bad = p + size / 2 + 3;
		announce(bad);
		free(bad);
		free(p);
	} else if (strcmp(what, "wild") == 0) {
		bad = (void *)(uintptr_t)0xdeadbeef0;
		announce(bad);
		free(bad);
	} else if (strcmp(what, "wild-low") == 0) {
		bad = (void *)16;
		announce(bad);
		free(bad);
	} else if (strcmp(what, "wild-noncanonical") == 0) {
		bad = (void *)(uintptr_t)0xa5a5a5a5a5a5a5a0;
		announce(bad);
		free(bad);
	} else if (strcmp(what, "wild-in-heap") == 0) {
		/* Never handed out, but near what was. */
		bad = (void *)(((uintptr_t)p & ~(uintptr_t)0xfff) + ((uintptr_t)48 << 20));
		announce(bad);
		free(bad);
	} else if (strcmp(what, "mapped") == 0) {
		bad = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(bad != MAP_FAILED);
		announce(bad);
		free(bad);
	} else if (strcmp(what, "stack") == 0) {
		char local[64] __attribute__((aligned(16)));
		bad = local;
		announce(bad);
		free(bad);
	} else if (strcmp(what, "static") == 0) {
		bad = in_static_memory + 64;
		announce(bad);
		free(bad);
	} else {
		CHECK(0, "no mistake named %s", what);
	}
	CHECK(mismatch(neighbour, size, 77) == size, "the neighbour changed");
	free(neighbour);
	sound(size);
	return 0;
}
