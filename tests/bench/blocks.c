/*
 * Many live blocks of 16 to 64 bytes, of which a random one is replaced, again and again. Then blocks chosen in the same
 * order are only touched: read and written. What a replacement takes beyond a touch is the allocator's, and if its
 * structures are sound, it grows as touches do: by misses of the caches. usage: blocks LIVE COUNT
 * writes "REPLACE_US TOUCH_US PEAK_KIB": CPU time of all replacements and of all touches
 */
#include "bench.h"
#include <sys/mman.h>
#include <time.h>

static unsigned char **blocks;
static uint64_t live;

static uint64_t
cpu_us(void)
{
	struct timespec time;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static inline unsigned char **
any_block(uint64_t r)
{
	/* The upper half times the number, without a division. */
	return &blocks[(r >> 32) * live >> 32];
}

static void
replace(uint64_t count, uint64_t seed)
{
	uint64_t rng = seed_of(seed);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t r = next_random(&rng);
		unsigned char **slot = any_block(r);
		free(*slot);
		*slot = allocate(16 + r % 49);
	}
}

static void
touch(uint64_t count, uint64_t seed)
{
	uint64_t rng = seed_of(seed);
	for (uint64_t i = 0; i < count; i++)
		++**any_block(next_random(&rng));
}

/* VmHWM: what getrusage(2) says includes the parent's. */
static long
peak_kib(void)
{
	char line[200];
	long kib = 0;
	FILE *status = fopen("/proc/self/status", "r");
	while (status && fgets(line, sizeof line, status))
		sscanf(line, "VmHWM: %ld", &kib);
	return kib;
}

int
main(int argc, char **argv)
{
	live = argument(argc, argv, 1);
	uint64_t count = argument(argc, argv, 2), rng = seed_of(1);
	if (live == 0 || live >> 32) {
		fputs("blocks: LIVE is from 1 to 2^32 - 1\n", stderr);
		return 2;
	}
	/* Not of the allocator's memory. */
	blocks = mmap(NULL, live * sizeof *blocks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (blocks == MAP_FAILED) {
		perror("blocks: mmap");
		return 1;
	}
	for (uint64_t i = 0; i < live; i++)
		blocks[i] = allocate(16 + next_random(&rng) % 49);
	replace(count / 4, 2);
	uint64_t before = cpu_us();
	replace(count, 3);
	uint64_t between = cpu_us();
	touch(count, 3);
	uint64_t after = cpu_us();
	printf("%lu %lu %ld\n", between - before, after - between, peak_kib());
	return 0;
}
