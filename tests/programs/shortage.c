/*
 * Runs out of memory at one call site, on purpose.
 *
 * usage: shortage as|data|none MEGABYTES SIZE
 *
 * Sets the limit on itself ("none": it is set from outside), then allocates blocks of SIZE until refused, a few times over.
 * Every block keeps its contents, every refusal is NULL with ENOMEM, and what was given back can be had again. Prints how
 * often it was refused, then waits for its standard input to close.
 */
#include "check.h"
#include <sys/resource.h>

enum { MOST = 4000000 };
static void *blocks[MOST];

__attribute__((noinline)) void *
hungry_site(size_t n)
{
	void *p = malloc(n);
	OPAQUE(p);
	return p;
}

int
main(int argc, char **argv)
{
	CHECK(argc == 4);
	size_t size = strtoull(argv[3], NULL, 0);
	struct rlimit limit = { .rlim_cur = strtoull(argv[2], NULL, 0) << 20, .rlim_max = RLIM_INFINITY };
	if (strcmp(argv[1], "as") == 0)
		CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
	else if (strcmp(argv[1], "data") == 0)
		CHECK(setrlimit(RLIMIT_DATA, &limit) == 0);
	unsigned long refused = 0, most = 0;
	for (int round = 0; round < 3; round++) {
		unsigned long n = 0;
		for (;; n++) {
			CHECK(n < MOST, "the limit is not felt");
			errno = 0;
			blocks[n] = hungry_site(size);
			if (!blocks[n])
				break;
			size_t mark = size < 4096 ? size : 4096;
			fill(blocks[n], mark, n);
		}
		CHECK(errno == ENOMEM, "refused with errno %d", errno);
		refused++;
		/* Asked again at once: refused again, and nothing breaks. */
		for (int i = 0; i < 100; i++) {
			errno = 0;
			void *p = hungry_site(size);
			if (p) { /* some had become free, for instance in another CPU's cache */
				free(p);
				continue;
			}
			CHECK(errno == ENOMEM);
			refused++;
		}
		for (unsigned long i = 0; i < n; i++) {
			size_t mark = size < 4096 ? size : 4096;
			CHECK(mismatch(blocks[i], mark, i) == mark, "block %lu of %lu changed", i, n);
			free(blocks[i]);
		}
		CHECK(n >= 10, "refused after %lu blocks", n);
		CHECK(most == 0 || n >= most - most / 4, "first %lu blocks, now only %lu", most, n);
		if (n > most)
			most = n;
	}
	printf("refused %lu\n", refused);
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
