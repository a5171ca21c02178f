/* SPDX-License-Identifier: BSD-2-Clause */
/* libmemstat(3) against what this program knows of its own allocations. */
#include <memstat.h>

#include <sys/malloc.h>
#include <vm/uma.h>

#include "env.h"

MALLOC_DEFINE(M_KNOWN, "known", "of which everything is known");
MALLOC_DEFINE_LIMIT(M_BOUND, "bound", "of which there may be little", 4096);
MALLOC_DEFINE(M_MANY, "many", "by many threads");

#define BLOCKS	1000
#define THREADS	4

/* The program's own record of a type. */
struct record {
	uint64_t allocs, frees, bytes_allocated, bytes_freed, sizes;
};

static uint64_t
served(size_t size)
{
	return malloc_size(size);
}

static uint64_t
bits(uint64_t mask)
{
	uint64_t count = 0;

	for (; mask != 0; mask &= mask - 1)
		count++;
	return count;
}

static struct memory_type *
find(struct memory_type_list *list, int allocator, const char *name)
{
	struct memory_type *type = memstat_mtl_find(list, allocator, name);

	if (type == NULL) {
		printf("find: %s is not in the list\n", name);
		COUNT(failures);
	}
	return type;
}

static void
check_type(struct memory_type_list *list, const char *name, const struct record *record)
{
	struct memory_type *type = find(list, ALLOCATOR_MALLOC, name);
	uint64_t allocs = 0, frees = 0, in = 0, out = 0, mask = 0;

	CHECK(strcmp(memstat_get_name(type), name) == 0 && memstat_get_allocator(type) == ALLOCATOR_MALLOC);
	CHECK(memstat_get_numallocs(type) == record->allocs && memstat_get_numfrees(type) == record->frees);
	CHECK(memstat_get_memalloced(type) == record->bytes_allocated);
	CHECK(memstat_get_memfreed(type) == record->bytes_freed);
	CHECK(memstat_get_count(type) == record->allocs - record->frees);
	CHECK(memstat_get_bytes(type) == record->bytes_allocated - record->bytes_freed);
	/* A bit for every size that was served, and no other. */
	CHECK(bits(memstat_get_sizemask(type)) == record->sizes);
	/* Nothing that only zones have. */
	CHECK(memstat_get_size(type) == 0 && memstat_get_countlimit(type) == 0 && memstat_get_free(type) == 0);
	for (int cpu = 0; cpu < 64; cpu++) {
		allocs += memstat_get_percpu_numallocs(type, cpu);
		frees += memstat_get_percpu_numfrees(type, cpu);
		in += memstat_get_percpu_memalloced(type, cpu);
		out += memstat_get_percpu_memfreed(type, cpu);
		mask |= memstat_get_percpu_sizemask(type, cpu);
	}
	/* The rest went past the CPUs. */
	CHECK(allocs <= record->allocs && in <= record->bytes_allocated && out <= record->bytes_freed);
	CHECK(frees <= record->frees && (mask & ~memstat_get_sizemask(type)) == 0);
	CHECK(record->allocs < 100 || allocs > 0);
}

static void
types(struct memory_type_list *list)
{
	static const size_t sizes[] = { 10, 100, 1000, 10000, 100000, 1000000 };
	struct record known = { 0, 0, 0, 0, 6 };
	static void *block[BLOCKS];
	static size_t size_of[BLOCKS];
	struct memory_type *type;
	int entries = 0, again = 0;
	void *few[16];
	int got = 0;

	for (int i = 0; i < BLOCKS; i++) {
		/* Mostly small; of the largest a few. */
		size_of[i] = sizes[i % 100 == 0 ? 4 + i / 100 % 2 : i % 4];
		block[i] = malloc(size_of[i], M_KNOWN, M_WAITOK);
		known.allocs++;
		known.bytes_allocated += served(size_of[i]);
	}
	CHECK(memstat_sysctl_malloc(list, 0) == 0);
	check_type(list, "known", &known);
	CHECK(memstat_mtl_find(list, ALLOCATOR_UMA, "known") == NULL);
	CHECK(memstat_mtl_find(list, ALLOCATOR_MALLOC, "nobody has this name") == NULL);
	type = find(list, ALLOCATOR_ANY, "known");
	CHECK(type == memstat_mtl_find(list, ALLOCATOR_MALLOC, "known"));
	for (struct memory_type *at = memstat_mtl_first(list); at != NULL; at = memstat_mtl_next(at)) {
		CHECK(memstat_get_allocator(at) == ALLOCATOR_MALLOC && strlen(memstat_get_name(at)) < MEMTYPE_MAXNAME);
		entries++;
	}
	CHECK(entries >= 6);	/* three of this program, three built in */

	/* What the caller keeps stays when the figures are brought up to date, and no entry comes twice. */
	for (int index = 0; index < MEMSTAT_MAXCALLER; index++) {
		CHECK(memstat_get_caller_pointer(type, index) == NULL && memstat_get_caller_uint64(type, index) == 0);
		memstat_set_caller_pointer(type, index, &block[index]);
		memstat_set_caller_uint64(type, index, 1000 + (uint64_t)index);
		memstat_set_percpu_caller_pointer(type, 0, index, &size_of[index]);
		memstat_set_percpu_caller_uint64(type, 0, index, 2000 + (uint64_t)index);
	}
	memstat_set_caller_uint64(type, MEMSTAT_MAXCALLER, 1);
	CHECK(memstat_get_caller_uint64(type, MEMSTAT_MAXCALLER) == 0);
	CHECK(memstat_get_percpu_caller_pointer(type, 100000, 0) == NULL && memstat_get_percpu_numallocs(type, -1) == 0);
	for (int i = 0; i < BLOCKS; i += 2) {
		free(block[i], M_KNOWN);
		known.frees++;
		known.bytes_freed += served(size_of[i]);
	}
	CHECK(memstat_sysctl_malloc(list, 0) == 0);
	check_type(list, "known", &known);
	CHECK(type == memstat_mtl_find(list, ALLOCATOR_MALLOC, "known"));
	for (int index = 0; index < MEMSTAT_MAXCALLER; index++) {
		CHECK(memstat_get_caller_pointer(type, index) == &block[index]);
		CHECK(memstat_get_caller_uint64(type, index) == 1000 + (uint64_t)index);
		CHECK(memstat_get_percpu_caller_pointer(type, 0, index) == &size_of[index]);
		CHECK(memstat_get_percpu_caller_uint64(type, 0, index) == 2000 + (uint64_t)index);
	}
	for (struct memory_type *at = memstat_mtl_first(list); at != NULL; at = memstat_mtl_next(at))
		again++;
	CHECK(again == entries);
	for (int i = 1; i < BLOCKS; i += 2)
		free(block[i], M_KNOWN);

	/* A limit, and requests that it refused. */
	while (got < 16 && (few[got] = malloc(1024, M_BOUND, M_NOWAIT)) != NULL)
		got++;
	CHECK(malloc(1024, M_BOUND, M_NOWAIT) == NULL);
	CHECK(memstat_sysctl_malloc(list, 0) == 0);
	type = find(list, ALLOCATOR_MALLOC, "bound");
	CHECK(memstat_get_byteslimit(type) == 4096 && memstat_get_count(type) == (uint64_t)got && got == 4);
	CHECK(memstat_get_failures(type) == 2 && memstat_get_sleeps(type) == 0);
	while (got > 0)
		free(few[--got], M_BOUND);
}

static void
zones(struct memory_type_list *list)
{
	uma_zone_t zone = uma_zcreate("memstat zone", 200, NULL, NULL, NULL, NULL, UMA_ALIGN_CACHE, 0);
	struct memory_type *type;
	uint64_t free_items, percpu = 0;
	void *item[50];

	uma_prealloc(zone, 60);
	uma_zone_set_max(zone, 50);
	for (int i = 0; i < 50; i++)
		CHECK((item[i] = uma_zalloc(zone, M_NOWAIT)) != NULL);
	CHECK(uma_zalloc(zone, M_NOWAIT) == NULL);
	for (int i = 40; i < 50; i++)
		uma_zfree(zone, item[i]);
	CHECK(memstat_sysctl_uma(list, 0) == 0);
	type = find(list, ALLOCATOR_UMA, "memstat zone");
	CHECK(memstat_get_allocator(type) == ALLOCATOR_UMA);
	CHECK(memstat_get_size(type) == 200 && memstat_get_rsize(type) == 256);
	CHECK(memstat_get_countlimit(type) == 50 && memstat_get_byteslimit(type) == 50 * 200);
	CHECK(memstat_get_numallocs(type) == 50 && memstat_get_numfrees(type) == 10 && memstat_get_count(type) == 40);
	CHECK(memstat_get_memalloced(type) == 50 * 200 && memstat_get_memfreed(type) == 10 * 200);
	CHECK(memstat_get_bytes(type) == 40 * 200 && memstat_get_sizemask(type) == 0);
	CHECK(memstat_get_failures(type) == 1 && memstat_get_sleeps(type) == 0 && memstat_get_xdomain(type) == 0);
	free_items = memstat_get_free(type);
	CHECK(free_items >= 20 && free_items == memstat_get_zonefree(type) + memstat_get_kegfree(type));
	for (int cpu = 0; cpu < 64; cpu++)
		percpu += memstat_get_percpu_free(type, cpu);
	CHECK(percpu <= memstat_get_zonefree(type));
	/* The zones behind malloc(9) are zones as well. */
	type = find(list, ALLOCATOR_UMA, "malloc-16");
	CHECK(memstat_get_size(type) == 16 && memstat_get_numallocs(type) >= memstat_get_numfrees(type));
	for (int i = 0; i < 40; i++)
		uma_zfree(zone, item[i]);
	uma_zone_reclaim(zone, UMA_RECLAIM_DRAIN_CPU);
	CHECK(memstat_sysctl_all(list, 0) == 0);
	type = find(list, ALLOCATOR_UMA, "memstat zone");
	CHECK(memstat_get_count(type) == 0 && memstat_get_free(type) == 0 && memstat_get_zonefree(type) == 0);
	uma_zdestroy(zone);
}

/* Threads, whose blocks are freed by others: sums are exact all the same. */
static void *mailbox[THREADS][200];

static void *
allocate(void *arg)
{
	void **box = arg;

	for (int i = 0; i < 200; i++)
		box[i] = malloc(16 + (size_t)i, M_MANY, M_WAITOK);
	return NULL;
}

static void *
release(void *arg)
{
	void **box = arg;

	for (int i = 0; i < 200; i++)
		free(box[i], M_MANY);
	return NULL;
}

static void
threads(struct memory_type_list *list)
{
	struct env_thread thread[THREADS];
	struct record many = { 0, 0, 0, 0, 0 };
	uint64_t last = 0;

	for (int i = 0; i < THREADS; i++)
		CHECK(env_thread_start(&thread[i], allocate, mailbox[i]) == 0);
	for (int i = 0; i < THREADS; i++)
		env_thread_join(&thread[i]);
	for (int i = 0; i < 200; i++) {
		many.bytes_allocated += THREADS * served(16 + (size_t)i);
		many.sizes += served(16 + (size_t)i) != last;
		last = served(16 + (size_t)i);
	}
	many.allocs = THREADS * 200;
	CHECK(memstat_sysctl_malloc(list, 0) == 0);
	check_type(list, "many", &many);
	for (int i = 0; i < THREADS; i++)
		CHECK(env_thread_start(&thread[i], release, mailbox[(i + 1) % THREADS]) == 0);
	for (int i = 0; i < THREADS; i++)
		env_thread_join(&thread[i]);
	many.frees = many.allocs;
	many.bytes_freed = many.bytes_allocated;
	CHECK(memstat_sysctl_malloc(list, 0) == 0);
	CHECK(memstat_get_bytes(find(list, ALLOCATOR_MALLOC, "many")) == 0);
	CHECK(memstat_get_numfrees(find(list, ALLOCATOR_MALLOC, "many")) == many.frees);
}

int
program(void)
{
	struct memory_type_list *list = memstat_mtl_alloc();

	CHECK(list != NULL && memstat_mtl_first(list) == NULL);
	CHECK(memstat_mtl_geterror(list) == MEMSTAT_ERROR_UNDEFINED);
	CHECK(memstat_get_allocator(NULL) == ALLOCATOR_UNKNOWN);
	types(list);
	zones(list);
	threads(list);
	CHECK(memstat_mtl_geterror(list) == MEMSTAT_ERROR_UNDEFINED);
	CHECK(memstat_kvm_all(list, NULL) == -1 && memstat_mtl_geterror(list) == MEMSTAT_ERROR_KVM);
	CHECK(strlen(memstat_strerror(MEMSTAT_ERROR_KVM)) > 0 && strcmp(memstat_strerror(99), "Unknown error") == 0);
	for (int error = MEMSTAT_ERROR_UNDEFINED; error <= MEMSTAT_ERROR_KVM_SHORTREAD; error++)
		CHECK(strcmp(memstat_strerror(error), memstat_strerror(99)) != 0);
	memstat_mtl_free(list);
	if (failures == 0)
		printf("figures agree\n");
	return failures != 0;
}
