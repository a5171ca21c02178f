/*
 * The preloaded library's paths. Callgrind collects inside of functions named guarded_..., and writes what it collected after
 * each call of kernmalloc_steady (see src/steady.rs); of that only what lies in the library is taken.
 * usage: preload PREFIX [COUNT]; PREFIX is what the names of the paths begin with, COUNT takes only the first so many paths
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
/*
 * Valgrind does not know rseq(2), and without it a slot is taken the long way. This program stands in for kernel and C
 * library: an area of its own where they keep theirs, which says CPU 0 for ever. One thread that no event restarts cannot
 * tell the difference.
 */
__asm__(".pushsection .tbss, \"awT\", @nobits\n"
	".balign 32\n"
	"kernmalloc_rseq_area: .zero 32\n"
	".popsection\n"
	".pushsection .data\n"
	".balign 8\n"
	".globl __rseq_offset\n.type __rseq_offset, @object\n.size __rseq_offset, 8\n"
	"__rseq_offset: .quad kernmalloc_rseq_area@tpoff\n"
	".globl __rseq_size\n.type __rseq_size, @object\n.size __rseq_size, 4\n"
	"__rseq_size: .long 32\n"
	".popsection\n");
#endif

#define GUARDED __attribute__((noinline, noclone, noipa))
enum { WARM_ROUNDS = 64, ROUNDS = 256 };

static void *(*operator_new)(size_t);
static void (*operator_delete)(void *);

GUARDED void *guarded_malloc(size_t n) { return malloc(n); }
GUARDED void *guarded_calloc(size_t m, size_t n) { return calloc(m, n); }
GUARDED void *guarded_realloc(void *p, size_t n) { return realloc(p, n); }
GUARDED void *guarded_aligned_alloc(size_t a, size_t n) { return aligned_alloc(a, n); }
GUARDED void *guarded_strdup(const char *s) { return strdup(s); }
GUARDED void *guarded_new(size_t n) { return operator_new(n); }
GUARDED void guarded_delete(void *p) { operator_delete(p); }
GUARDED void guarded_free(void *p) { free(p); }

static void
must(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "%s\n", what);
		exit(1);
	}
}

#define PATH(name, body)                              \
	static void name(unsigned rounds)             \
	{                                             \
		for (unsigned i = 0; i < rounds; i++) \
			body;                         \
	}
PATH(malloc_64, free(guarded_malloc(64)))
PATH(malloc_2048, free(guarded_malloc(2048)))
PATH(malloc_65536, free(guarded_malloc(65536)))
PATH(free_64, guarded_free(malloc(64)))
PATH(free_2048, guarded_free(malloc(2048)))
PATH(free_65536, guarded_free(malloc(65536)))
PATH(calloc_64, free(guarded_calloc(4, 16)))
PATH(aligned_64, free(guarded_aligned_alloc(64, 100)))
PATH(strdup_64, free(guarded_strdup("a string that libc's strdup copies for us, of 63 characters....")))
PATH(new_64, operator_delete(guarded_new(64)))
PATH(delete_64, guarded_delete(operator_new(64)))

static void
realloc_100(unsigned rounds)
{
	/* Kept from the first rounds to the counted ones: a block that takes another call's credit costs more. */
	static void *p;
	if (!p)
		p = malloc(100);
	for (unsigned i = 0; i < rounds; i++)
		must(guarded_realloc(p, i % 2 ? 100 : 110) == p, "the block has moved");
}

static const struct path {
	const char *name;
	void (*run)(unsigned);
} paths[] = {
	{ "malloc, 64 B", malloc_64 },
	{ "free, 64 B", free_64 },
	{ "malloc, 2 KiB", malloc_2048 },
	{ "free, 2 KiB", free_2048 },
	{ "malloc, 64 KiB", malloc_65536 },
	{ "free, 64 KiB", free_65536 },
	{ "calloc, 64 B", calloc_64 },
	{ "aligned_alloc, 100 B at 64", aligned_64 },
	{ "malloc through a wrapper (strdup), 64 B", strdup_64 },
	{ "realloc in place, 100 to 110 B", realloc_100 },
	{ "operator new, 64 B", new_64 },
	{ "operator delete, 64 B", delete_64 },
};

/* Callgrind knows it by this name. */
GUARDED void
kernmalloc_steady(const struct path *path)
{
	path->run(ROUNDS);
	/* Not a tail call: this function ends after the path. */
	__asm__ volatile("" : : : "memory");
}

int
main(int argc, char **argv)
{
	must(argc == 2 || argc == 3, "usage: preload PREFIX [COUNT]");
	const size_t all = sizeof paths / sizeof *paths;
	const size_t count = argc == 3 ? strtoul(argv[2], NULL, 10) : all;
	must(count <= all, "there are not so many paths");
	/* The library brings them; this program is not linked with the C++ library. */
	operator_new = (void *(*)(size_t))(uintptr_t)dlsym(RTLD_DEFAULT, "_Znwm");
	operator_delete = (void (*)(void *))(uintptr_t)dlsym(RTLD_DEFAULT, "_ZdlPv");
	must(operator_new && operator_delete, "the library is not preloaded");
	for (size_t i = 0; i < count; i++) {
		paths[i].run(WARM_ROUNDS);
		kernmalloc_steady(&paths[i]);
	}
	for (size_t i = 0; i < count; i++)
		printf("%d %s: %s\n", ROUNDS, argv[1], paths[i].name);
	return 0;
}
