/*
 * Fragmentation: a cache of constant bytes whose sizes drift upward over time, with a few blocks of every age that stay
 * for good. Then nine tenths are dropped, and the program says how much stays resident. usage: drift MEGABYTES PHASES
 */
#include "bench.h"

enum { SLOTS = 1 << 20 };
static struct {
	void *p;
	uint32_t size;
} slots[SLOTS];

static uint64_t
resident(void)
{
	unsigned long size, pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	if (!f || fscanf(f, "%lu %lu", &size, &pages) != 2)
		exit(1);
	fclose(f);
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

int
main(int argc, char **argv)
{
	uint64_t bytes = argument(argc, argv, 1) << 20, phases = argument(argc, argv, 2), operations = 0, held = 0;
	uint64_t rng = seed_of(1);
	size_t oldest = 0, next = 0;
	for (uint64_t phase = 0; phase < phases; phase++) {
		size_t base = 100 + phase * 37;
		for (uint64_t turned = 0; turned < bytes;) {
			uint64_t r = next_random(&rng);
			size_t n = base + r % (base / 2 + 1);
			while (held + n > bytes) {
				/* The oldest goes; one in 64 is passed over, until the ring comes round. */
				if (slots[oldest].p && next_random(&rng) % 64) {
					free(slots[oldest].p);
					held -= slots[oldest].size;
					slots[oldest].p = NULL;
					operations++;
				}
				oldest = (oldest + 1) % SLOTS;
			}
			while (slots[next].p)
				next = (next + 1) % SLOTS;
			slots[next].p = allocate(n);
			memset(slots[next].p, 1, n);
			slots[next].size = (uint32_t)n;
			next = (next + 1) % SLOTS;
			held += n;
			turned += n;
			operations++;
		}
	}
	uint64_t full = resident(), full_held = held;
	for (size_t i = 0; i < SLOTS; i++)
		if (slots[i].p && next_random(&rng) % 10) {
			free(slots[i].p);
			held -= slots[i].size;
			slots[i].p = NULL;
			operations++;
		}
	/* As a program goes on after its peak. */
	for (int i = 0; i < 200000; i++)
		free(allocate(usual_size(next_random(&rng))));
	uint64_t after = resident();
	printf("live %lu resident %lu; after dropping nine tenths live %lu resident %lu bytes\n", (unsigned long)full_held,
	    (unsigned long)full, (unsigned long)held, (unsigned long)after);
	finish(operations + 400000);
}
