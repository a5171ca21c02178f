/*
 * Somebody else maps memory where the heap would grow next: right behind it, and a little further on. (V8 does, and the
 * kernel may at any time.) The heap goes elsewhere, or around it; the other's memory is not touched.
 */
#include "check.h"
#include <sys/mman.h>

enum { INTRUDERS = 6, BLOCKS = 60000 };

/* End of the mappings that follow one another without a gap from the one that holds p. */
static uintptr_t
end_of_heap(const void *p)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	CHECK(maps);
	uintptr_t from, to, end = 0;
	char line[4096];
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 &&
		    ((from <= (uintptr_t)p && (uintptr_t)p < to) || (end && from == end)))
			end = to;
	fclose(maps);
	CHECK(end);
	return end;
}

int
main(void)
{
	static char *intruders[INTRUDERS], *blocks[BLOCKS];
	static const size_t distance[INTRUDERS] = { 0, 1 << 16, 1 << 20, 5 << 20, 40 << 20, 300 << 20 };
	int placed = 0;
	uint64_t rng = seed_of(3);
	for (int round = 0; round < 3; round++) {
		void *volatile probe = malloc(100);
		uintptr_t end = end_of_heap(probe);
		for (int i = 0; i < INTRUDERS; i++) {
			void *p = mmap((void *)(end + distance[i]), 8192, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			intruders[i] = p == MAP_FAILED ? NULL : p;
			if (intruders[i]) {
				fill(intruders[i], 8192, (uint64_t)i + 5);
				placed++;
			}
		}
		for (int i = 0; i < BLOCKS; i++) {
			size_t n = i % 500 ? 1 + next_random(&rng) % 8000 : 1 + next_random(&rng) % (4 << 20);
			blocks[i] = malloc(n);
			CHECK(blocks[i], "refused %zu bytes", n);
			size_t mark = n < 500 ? n : 500;
			fill(blocks[i], mark, (uint64_t)i);
			blocks[i][n - 1] = blocks[i][n - 1];
			for (int k = 0; k < INTRUDERS; k++)
				CHECK(!intruders[k] || blocks[i] + n <= intruders[k] || blocks[i] >= intruders[k] + 8192,
				    "a block of %zu bytes at %p lies in somebody else's memory", n, (void *)blocks[i]);
		}
		for (int i = 0; i < INTRUDERS; i++)
			if (intruders[i]) {
				CHECK(mismatch(intruders[i], 8192, (uint64_t)i + 5) == 8192, "somebody else's memory changed");
				munmap(intruders[i], 8192);
			}
		for (int i = 0; i < BLOCKS; i++)
			free(blocks[i]);
		free(probe);
	}
	CHECK(placed > 0, "no place behind the heap was free");
	puts("unharmed");
	return 0;
}
