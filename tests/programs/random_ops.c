/*
 * The whole malloc(3) surface under random operations, against a model: every block's contents, alignment and
 * usable size are known, and no two blocks may overlap. Blocks change hands between threads.
 *
 * usage: random_ops SEED THREADS OPERATIONS [short]
 *
 * With "short" the page supply is expected to fail now and then (a limit is set from outside): a refusal must be NULL
 * with ENOMEM and change nothing. Prints how many were refused.
 */
#include "check.h"
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { SLOTS = 4096, MOST_THREADS = 64, ROUNDS = 8 };

struct block {
	void *p;
	size_t size;
	uint64_t key;
};

/* A slot is held by the thread that set its flag. */
static struct slot {
	atomic_flag held;
	struct block block;
} slots[SLOTS];

static pthread_barrier_t barrier;
static bool may_be_short;
static _Atomic uint64_t refused, done;
static uint64_t seed, operations;
static int nthreads;

/* Large blocks are filled and checked at both ends and on every page, so that operations stay many. */
static void
fill_block(const struct block *b)
{
	if (b->size <= 16384) {
		fill(b->p, b->size, b->key);
		return;
	}
	fill(b->p, 4096, b->key);
	for (size_t at = 8192; at + 8 <= b->size; at += 4096)
		fill((char *)b->p + at, 8, b->key + at);
	fill((char *)b->p + b->size - 64, 64, b->key + 1);
}

static void
check_prefix(const struct block *b, const void *p, size_t n)
{
	if (b->size <= 16384) {
		size_t least = n < b->size ? n : b->size;
		size_t at = mismatch(p, least, b->key);
		CHECK(at >= least, "block %p of %zu bytes: byte %zu changed", p, b->size, at);
		return;
	}
	size_t head = n < 4096 ? n : 4096;
	CHECK(mismatch(p, head, b->key) >= head, "block %p of %zu bytes changed in its head", p, b->size);
	/* The last 64 bytes were written over some page's mark. */
	for (size_t at = 8192; at + 8 <= b->size - 64 && at + 8 <= n; at += 4096)
		CHECK(mismatch((const char *)p + at, 8, b->key + at) == 8, "block %p of %zu bytes changed at %zu", p, b->size, at);
	if (n >= b->size)
		CHECK(mismatch((const char *)p + b->size - 64, 64, b->key + 1) == 64, "block %p of %zu bytes changed in its tail", p,
		    b->size);
}

static size_t
random_size(uint64_t *rng)
{
	uint64_t r = next_random(rng);
	switch (r % 64) {
	case 0:
		return 0;
	case 1: /* a large one */
		return (r >> 8) % (4u << 20);
	case 2:
	case 3:
		return (r >> 8) % (200u << 10);
	case 4 ... 12:
		return (r >> 8) % 20000;
	default: /* around a size class, or small */
		return (r >> 8) % 3 ? (r >> 16) % 600 : ((size_t)16 << ((r >> 16) % 9)) + (r >> 32) % 3 - 1;
	}
}

static bool
got(void *p, int error)
{
	if (p)
		return true;
	CHECK(may_be_short, "refused without need");
	CHECK(error == ENOMEM, "refused with errno %d", error);
	atomic_fetch_add(&refused, 1);
	return false;
}

static void
check_new(const struct block *b, size_t alignment)
{
	CHECK(((uintptr_t)b->p & (alignment - 1)) == 0, "%p is not aligned to %zu", b->p, alignment);
	CHECK(malloc_usable_size(b->p) >= b->size, "%p: %zu usable of %zu", b->p, malloc_usable_size(b->p), b->size);
}

static void
allocate(struct block *b, uint64_t *rng)
{
	size_t n = random_size(rng), alignment = 16;
	uint64_t r = next_random(rng);
	bool zero = false;
	struct block new = { .size = n, .key = r | 1 };
	errno = 0;
	switch (r % 12) {
	case 0:
	case 1:
		new.p = calloc(1 + n / 8, 8);
		new.size = (1 + n / 8) * 8;
		zero = true;
		break;
	case 2:
		new.p = realloc(NULL, n);
		break;
	case 3:
		new.p = reallocarray(NULL, n / 4 + 1, 4);
		new.size = (n / 4 + 1) * 4;
		break;
	case 4:
		alignment = (size_t)1 << (4 + (r >> 32) % ((r >> 40) % 16 ? 9 : 19));
		new.p = aligned_alloc(alignment, n);
		break;
	case 5:
		alignment = (size_t)1 << (3 + (r >> 32) % 12);
		errno = posix_memalign(&new.p, alignment, n);
		break;
	case 6:
		alignment = (size_t)1 << (r >> 32) % 13;
		new.p = memalign(alignment, n);
		break;
	case 7:
		alignment = 4096;
		new.p = (r >> 32) % 2 ? valloc(n) : pvalloc(n);
		break;
	default:
		new.p = malloc(n);
	}
	if (!got(new.p, errno)) {
		return;
	}
	check_new(&new, alignment);
	if (zero) {
		size_t at = first_nonzero(new.p, new.size);
		CHECK(at == new.size, "calloc of %zu bytes: byte %zu is not zero", new.size, at);
	}
	/* All that is usable is the program's. */
	if ((r >> 48) % 2)
		new.size = malloc_usable_size(new.p);
	fill_block(&new);
	*b = new;
}

static void
release(struct block *b)
{
	check_prefix(b, b->p, b->size);
	errno = 4711;
	free(b->p);
	CHECK(errno == 4711, "free set errno to %d", errno);
	b->p = NULL;
}

static void
resize(struct block *b, uint64_t *rng)
{
	size_t n = random_size(rng);
	uint64_t r = next_random(rng);
	if (n == 0)
		n = 1;
	if (r % 4 == 0) /* a little more, as buffers grow */
		n = b->size + b->size / 2 + 1;
	if (n > (8u << 20))
		n = 100;
	struct block new = { .size = n, .key = b->key };
	errno = 0;
	new.p = (r >> 32) % 4 ? realloc(b->p, n) : reallocarray(b->p, n, 1);
	if (!got(new.p, errno)) {
		check_prefix(b, b->p, b->size);
		return;
	}
	check_new(&new, 16);
	check_prefix(b, new.p, n);
	new.key = r | 1;
	fill_block(&new);
	*b = new;
}

/* Heap sort: qsort allocates. */
static struct block sorted[SLOTS];

static void
sift(size_t root, size_t end)
{
	for (size_t child; (child = 2 * root + 1) < end; root = child) {
		if (child + 1 < end && (uintptr_t)sorted[child].p < (uintptr_t)sorted[child + 1].p)
			child++;
		if ((uintptr_t)sorted[root].p >= (uintptr_t)sorted[child].p)
			return;
		struct block t = sorted[root];
		sorted[root] = sorted[child];
		sorted[child] = t;
	}
}

/* By one thread while the others wait. */
static void
check_all(void)
{
	size_t n = 0;
	for (int i = 0; i < SLOTS; i++)
		if (slots[i].block.p)
			sorted[n++] = slots[i].block;
	for (size_t i = n / 2; i-- > 0;)
		sift(i, n);
	for (size_t end = n; end-- > 1;) {
		struct block t = sorted[0];
		sorted[0] = sorted[end];
		sorted[end] = t;
		sift(0, end);
	}
	for (size_t i = 0; i < n; i++) {
		struct block *b = &sorted[i];
		check_prefix(b, b->p, b->size);
		/* Also of those of no bytes, the addresses differ. */
		CHECK(i + 1 == n || (uintptr_t)b->p + (b->size ? b->size : 1) <= (uintptr_t)sorted[i + 1].p,
		    "%p of %zu bytes overlaps %p", b->p, b->size, sorted[i + 1].p);
	}
}

static void *
churn(void *arg)
{
	uint64_t rng = seed_of(seed * MOST_THREADS + (uint64_t)(uintptr_t)arg);
	uint64_t each = operations / (uint64_t)nthreads / ROUNDS;
	for (int round = 0; round < ROUNDS; round++) {
		for (uint64_t i = 0; i < each; i++) {
			uint64_t r = next_random(&rng);
			struct slot *slot = &slots[r % SLOTS];
			if (atomic_flag_test_and_set_explicit(&slot->held, memory_order_acquire))
				continue;
			if (!slot->block.p)
				allocate(&slot->block, &rng);
			else if ((r >> 32) % 4 == 0)
				resize(&slot->block, &rng);
			else
				release(&slot->block);
			atomic_flag_clear_explicit(&slot->held, memory_order_release);
			atomic_fetch_add_explicit(&done, 1, memory_order_relaxed);
			if ((r >> 34) % 65536 == 0)
				malloc_trim(0);
		}
		pthread_barrier_wait(&barrier);
		if (arg == NULL)
			check_all();
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int
main(int argc, char **argv)
{
	CHECK(argc >= 4, "usage: random_ops SEED THREADS OPERATIONS [short]");
	seed = strtoull(argv[1], NULL, 0);
	nthreads = atoi(argv[2]);
	operations = strtoull(argv[3], NULL, 0);
	may_be_short = argc > 4;
	CHECK(nthreads >= 1 && nthreads <= MOST_THREADS);
	pthread_barrier_init(&barrier, NULL, (unsigned)nthreads);
	pthread_t threads[MOST_THREADS];
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	for (int i = 1; i < nthreads; i++) {
		int error = pthread_create(&threads[i], &attr, churn, (void *)(uintptr_t)i);
		CHECK(error == 0, "pthread_create: %s", strerror(error));
	}
	churn(NULL);
	for (int i = 1; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	CHECK(done > operations / 2, "only %llu operations ran", (unsigned long long)done);

	for (int i = 0; i < SLOTS; i++)
		if (slots[i].block.p)
			release(&slots[i].block);
	/* With everything given back, what failed before must be possible again. */
	if (may_be_short) {
		void *p = malloc(1 << 20);
		CHECK(p != NULL, "after everything was freed there is no megabyte left");
		memset(p, 1, 1 << 20);
		free(p);
		dprintf(1, "refused %llu\n", (unsigned long long)refused);
	}
	puts("model holds");
	return 0;
}
