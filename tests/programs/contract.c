/*
 * The contract of the malloc(3) family, call by call.
 *
 * usage: contract [--ours]
 *
 * With --ours every name must exist and hold to the stricter promises of kernmalloc (free_sized, no address
 * below 16-byte alignment for the smallest sizes); without it, what the C library lacks is passed over, so that the
 * program itself is tested against glibc.
 */
#include "check.h"
#include <dlfcn.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>

#define SMALL_SIZES 2100
static bool ours;

/* Through volatile pointers: the compiler knows these names too well. */
static void *(*volatile xmalloc)(size_t) = malloc;
static void *(*volatile xcalloc)(size_t, size_t) = calloc;
static void *(*volatile xrealloc)(void *, size_t) = realloc;
static void *(*volatile xreallocarray)(void *, size_t, size_t) = reallocarray;
static void (*volatile xfree)(void *) = free;
static void *(*volatile xmemalign)(size_t, size_t) = memalign;
static void *(*volatile xaligned_alloc)(size_t, size_t) = aligned_alloc;
static int (*volatile xposix_memalign)(void **, size_t, size_t) = posix_memalign;
static void *(*volatile xvalloc)(size_t) = valloc;
static void *(*volatile xpvalloc)(size_t) = pvalloc;
static size_t (*volatile xusable)(void *) = malloc_usable_size;

static bool
aligned(const void *p, size_t alignment)
{
	return ((uintptr_t)p & (alignment - 1)) == 0;
}

/* A block is writable to its end and holds what was written, and a neighbour does not change it. */
static void
own(void *p, size_t size)
{
	CHECK(p != NULL, "size %zu", size);
	CHECK(aligned(p, 16), "%p", p);
	size_t usable = xusable(p);
	CHECK(usable >= size, "usable %zu of %zu", usable, size);
	uint64_t key = (uintptr_t)p * 31 + size;
	fill(p, usable, key);
	CHECK(mismatch(p, usable, key) == usable);
}

static void
sizes(void)
{
	static void *blocks[SMALL_SIZES];
	for (size_t n = 0; n < SMALL_SIZES; n++) {
		blocks[n] = xmalloc(n);
		CHECK(blocks[n] != NULL);
		fill(blocks[n], xusable(blocks[n]), n * 77 + 5);
	}
	for (size_t n = 0; n < SMALL_SIZES; n++) {
		size_t usable = xusable(blocks[n]);
		CHECK(mismatch(blocks[n], usable, n * 77 + 5) == usable, "block of %zu overlaps", n);
		xfree(blocks[n]);
	}
	for (size_t n = 1; n < (64u << 20); n += n / 7 + 1) {
		void *p = xmalloc(n);
		own(p, n);
		xfree(p);
	}
	for (int shift = 4; shift < 27; shift++)
		for (int d = -1; d <= 1; d++) {
			size_t n = ((size_t)1 << shift) + (size_t)d;
			void *p = xmalloc(n), *q = xmalloc(n);
			own(p, n);
			own(q, n);
			CHECK(p != q);
			xfree(q);
			xfree(p);
		}
}

static void
zero_sizes(void)
{
	void *p[64];
	for (int i = 0; i < 64; i++) {
		p[i] = i % 3 == 0 ? xmalloc(0) : i % 3 == 1 ? xcalloc(0, 7) : xrealloc(NULL, 0);
		CHECK(p[i] != NULL && aligned(p[i], 16));
		for (int j = 0; j < i; j++)
			CHECK(p[i] != p[j], "two blocks of no bytes at one address");
	}
	for (int i = 0; i < 64; i++)
		xfree(p[i]);
	p[0] = xcalloc(5, 0);
	CHECK(p[0] != NULL);
	xfree(p[0]);
	p[0] = NULL;
	CHECK(xposix_memalign(&p[0], 64, 0) == 0 && aligned(p[0], 64));
	xfree(p[0]);
	CHECK(xusable(NULL) == 0);
}

static void
errno_is_kept(void)
{
	for (size_t n = 1; n < (8u << 20); n *= 3) {
		errno = 4711;
		void *p = xmalloc(n);
		CHECK(errno == 4711, "malloc(%zu) set errno to %d", n, errno);
		p = xrealloc(p, 2 * n);
		CHECK(errno == 4711, "realloc to %zu set errno to %d", 2 * n, errno);
		void *q = xcalloc(n, 2);
		CHECK(errno == 4711, "calloc set errno to %d", errno);
		void *r = NULL;
		CHECK(xposix_memalign(&r, 256, n) == 0);
		CHECK(errno == 4711, "posix_memalign set errno to %d", errno);
		xfree(p);
		CHECK(errno == 4711, "free set errno to %d", errno);
		xfree(q);
		xfree(r);
		xfree(NULL);
		CHECK(errno == 4711, "free set errno to %d", errno);
	}
}

/* NULL, ENOMEM, and the heap goes on. */
#define REFUSED(expression)                                                   \
	do {                                                                  \
		errno = 0;                                                    \
		void *refused = (expression);                                 \
		OPAQUE(refused);                                              \
		CHECK(refused == NULL, "%s gave %p", #expression, refused);   \
		CHECK(errno == ENOMEM, "%s: errno %d", #expression, errno);   \
	} while (0)

static void
overflow(void)
{
	size_t most = SIZE_MAX, half = (size_t)PTRDIFF_MAX + 1;
	OPAQUE(most);
	OPAQUE(half);
	for (size_t back = 0; back < 9000; back += back < 70 ? 1 : 97) {
		REFUSED(xmalloc(most - back));
		REFUSED(xcalloc(1, most - back));
		REFUSED(xcalloc(most - back, 1));
		REFUSED(xmemalign(4096, most - back));
		REFUSED(xvalloc(most - back));
		REFUSED(xpvalloc(most - back));
		REFUSED(xaligned_alloc(64, most - back));
		REFUSED(xrealloc(NULL, most - back));
		REFUSED(xmalloc(half + back));
		REFUSED(xmalloc(half - 1 - back));
	}
	REFUSED(xcalloc(half, 2));
	REFUSED(xcalloc(2, half));
	REFUSED(xcalloc((size_t)1 << 33, (size_t)1 << 31));
	REFUSED(xcalloc(((size_t)1 << 32) + 1, (size_t)1 << 32));
	REFUSED(xcalloc(most, most));
	REFUSED(xreallocarray(NULL, half, 2));
	REFUSED(xreallocarray(NULL, ((size_t)1 << 32) + 1, (size_t)1 << 32));
	REFUSED(xreallocarray(NULL, most, 2));
	REFUSED(xmemalign((size_t)1 << 63, 1));
	REFUSED(xmemalign((size_t)1 << 62, (size_t)1 << 62));

	void *p = xmalloc(100);
	fill(p, 100, 99);
	REFUSED(xrealloc(p, most));
	REFUSED(xrealloc(p, half));
	REFUSED(xreallocarray(p, half, 2));
	CHECK(mismatch(p, 100, 99) == 100, "a failed realloc changed the block");
	xfree(p);
	p = xmalloc(3 << 20);
	fill(p, 3 << 20, 98);
	REFUSED(xrealloc(p, most));
	REFUSED(xrealloc(p, half - 4096));
	CHECK(mismatch(p, 3 << 20, 98) == 3 << 20, "a failed realloc changed the block");
	xfree(p);

	/* posix_memalign returns the error and leaves errno and the pointer alone. */
	void *untouched = &p;
	errno = 4711;
	CHECK(xposix_memalign(&untouched, 64, most - 100) == ENOMEM);
	CHECK(untouched == &p, "posix_memalign wrote its pointer on failure");
	CHECK(!ours || errno == 4711, "posix_memalign set errno to %d", errno);
}

static void
callocs(void)
{
	/* Dirty many blocks of a size, free them, and take them again. */
	static const size_t sizes[] = { 1, 16, 40, 100, 500, 1024, 4000, 4096, 8192, 20000, 65536, 70000, 1 << 20, 5 << 20 };
	static void *held[512];
	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
		size_t n = sizes[s];
		int count = n > 65536 ? 8 : 512;
		for (int round = 0; round < 3; round++) {
			for (int i = 0; i < count; i++) {
				held[i] = xmalloc(n);
				memset(held[i], 0xA5, xusable(held[i]));
			}
			for (int i = 0; i < count; i++)
				xfree(held[(i * 7 + 3) % count]);
			for (int i = 0; i < count; i++) {
				held[i] = i % 2 ? xcalloc(n, 1) : xcalloc(1, n);
				CHECK(held[i] != NULL);
				size_t z = first_nonzero(held[i], n);
				CHECK(z == n, "calloc of %zu: byte %zu is not zero", n, z);
				memset(held[i], 0x5A, n);
			}
			for (int i = 0; i < count; i++)
				xfree(held[i]);
		}
	}
	for (size_t n = 1; n < 300; n++) {
		unsigned char *p = xcalloc(n, 3);
		CHECK(first_nonzero(p, 3 * n) == 3 * n);
		own(p, 3 * n);
		xfree(p);
	}
}

static void
reallocs(void)
{
	/* Every pair of sizes from a list, both ways. */
	static const size_t sizes[] = { 1, 8, 16, 17, 32, 48, 100, 128, 129, 500, 1000, 1025, 3000, 4096, 4097, 9000, 20000,
		40000, 65536, 65537, 100000, 131072, 300000, 1 << 20, (1 << 20) + 1, 3 << 20, 9 << 20 };
	size_t count = sizeof sizes / sizeof *sizes;
	for (size_t a = 0; a < count; a++)
		for (size_t b = 0; b < count; b++) {
			size_t from = sizes[a], to = sizes[b], least = from < to ? from : to;
			void *p = xmalloc(from);
			fill(p, from, from * 3 + to);
			void *q = (a + b) % 2 ? xrealloc(p, to) : xreallocarray(p, 1, to);
			CHECK(q != NULL && aligned(q, 16));
			CHECK(mismatch(q, least, from * 3 + to) == least, "realloc %zu to %zu lost contents", from, to);
			own(q, to);
			xfree(q);
		}
	/* By single bytes, up and down. */
	unsigned char *p = NULL;
	for (size_t n = 1; n <= 5000; n++) {
		p = xrealloc(p, n);
		CHECK(p != NULL);
		p[n - 1] = (unsigned char)(n * 7);
		if (n % 97 == 0)
			for (size_t i = 0; i < n; i++)
				CHECK(p[i] == (unsigned char)((i + 1) * 7));
	}
	for (size_t n = 5000; n >= 1; n--) {
		p = xrealloc(p, n);
		CHECK(p != NULL);
		CHECK(p[n - 1] == (unsigned char)(n * 7));
	}
	/* Large growth: the contents move or stay, never change. */
	size_t n = 100000;
	xfree(p);
	p = xmalloc(n);
	fill(p, n, 5);
	while (n < (200u << 20)) {
		size_t more = n + n / 2;
		unsigned char *q = xrealloc(p, more);
		CHECK(q != NULL);
		CHECK(mismatch(q, 100000, 5) == 100000);
		q[more - 1] = 1;
		p = q;
		n = more;
	}
	p = xrealloc(p, 70000);
	CHECK(mismatch(p, 70000, 5) == 70000);
	/* Size 0 frees and gives NULL, as glibc and NetBSD do; errno is left alone. */
	errno = 4711;
	CHECK(xrealloc(p, 0) == NULL);
	CHECK(errno == 4711);
	CHECK(xreallocarray(xmalloc(10), 0, 5) == NULL);
	/* A block from memalign can be grown; the alignment need not survive, the contents must. */
	for (size_t a = 32; a <= (1u << 20); a *= 4) {
		p = xmemalign(a, 1000);
		CHECK(aligned(p, a));
		fill(p, 1000, a);
		p = xrealloc(p, 100000);
		CHECK(mismatch(p, 1000, a) == 1000);
		xfree(p);
	}
}

static void
alignments(void)
{
	static const size_t sizes[] = { 0, 1, 15, 16, 100, 1000, 4095, 4096, 5000, 65536, 100000, 3 << 20 };
	void *held[sizeof sizes / sizeof *sizes];
	for (size_t a = 1; a <= (4u << 20); a *= 2)
		for (int how = 0; how < 3; how++) {
			for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
				size_t n = sizes[s];
				held[s] = NULL;
				if (how == 0)
					held[s] = xmemalign(a, n);
				else if (how == 1)
					held[s] = xaligned_alloc(a, n);
				else if (a < sizeof(void *))
					CHECK(xposix_memalign(&held[s], a, n) == EINVAL && held[s] == NULL);
				else
					CHECK(xposix_memalign(&held[s], a, n) == 0);
				if (how == 2 && a < sizeof(void *))
					continue;
				CHECK(held[s] != NULL, "alignment %zu size %zu", a, n);
				CHECK(aligned(held[s], a), "%p is not aligned to %zu", held[s], a);
				size_t usable = xusable(held[s]);
				CHECK(usable >= n);
				fill(held[s], usable, a * 13 + n);
			}
			for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
				if (held[s]) {
					size_t usable = xusable(held[s]);
					CHECK(mismatch(held[s], usable, a * 13 + sizes[s]) == usable);
					xfree(held[s]);
				}
		}
	/* What is no power of two of a pointer's size. */
	void *p = &p;
	static const size_t wrong[] = { 0, 1, 2, 4, 7, 9, 24, 48, 100, 4095, 4097, SIZE_MAX, ((size_t)1 << 63) + 1 };
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		CHECK(xposix_memalign(&p, wrong[i], 10) == EINVAL, "alignment %zu", wrong[i]);
		CHECK(p == &p);
	}
	/* glibc rounds such an alignment up before 2.38 and refuses it since; either is a contract that programs meet. */
	static const size_t lenient[] = { 0, 24 };
	for (size_t i = 0; i < 2; i++) {
		errno = 0;
		void *v = xaligned_alloc(lenient[i], 48);
		CHECK(v ? aligned(v, lenient[i] ? 32 : 16) : errno == EINVAL);
		xfree(v);
	}
	long page = sysconf(_SC_PAGESIZE);
	for (size_t n = 0; n < 20000; n += 1 + n / 3) {
		void *v = xvalloc(n), *pv = xpvalloc(n);
		CHECK(v && aligned(v, (size_t)page));
		CHECK(pv && aligned(pv, (size_t)page));
		size_t rounded = (n + (size_t)page - 1) & ~((size_t)page - 1);
		CHECK(xusable(pv) >= rounded, "pvalloc(%zu) has %zu usable", n, xusable(pv));
		fill(v, xusable(v), 1);
		fill(pv, xusable(pv), 2);
		xfree(v);
		xfree(pv);
	}
}

static void
the_rest(void)
{
	for (int i = 0; i < 1000; i++)
		xfree(xmalloc(1000));
	int trimmed = malloc_trim(0);
	CHECK(trimmed == 0 || trimmed == 1, "%d", trimmed);
	CHECK(mallopt(M_MMAP_THRESHOLD, 128 << 10) == 1 || ours);
	CHECK(mallopt(M_ARENA_MAX, 1) == 1 || ours);

	struct mallinfo2 before = mallinfo2();
	void *p = xmalloc(32 << 20);
	memset(p, 1, 32 << 20);
	struct mallinfo2 with = mallinfo2();
	CHECK(with.uordblks + with.hblkhd >= before.uordblks + before.hblkhd + (32 << 20),
	    "in use before %zu+%zu, with 32 MiB more %zu+%zu", before.uordblks, before.hblkhd, with.uordblks, with.hblkhd);
	xfree(p);
	struct mallinfo2 after = mallinfo2();
	CHECK(after.uordblks + after.hblkhd < with.uordblks + with.hblkhd);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	struct mallinfo old = mallinfo();
	CHECK(old.uordblks >= 0);
#pragma GCC diagnostic pop

	char *text = NULL;
	size_t length = 0;
	FILE *memory = open_memstream(&text, &length);
	CHECK(memory != NULL);
	CHECK(malloc_info(0, memory) == 0);
	fclose(memory);
	CHECK(strncmp(text, "<malloc version=", 16) == 0, "malloc_info: %.60s", text);
	CHECK(strstr(text, "</malloc>") != NULL);
	xfree(text);
	errno = 0;
	CHECK(malloc_info(1, stdout) != 0);

	/* Goes to stderr; the test looks only at that it returns. */
	malloc_stats();

	void (*cfree)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "cfree");
	CHECK(cfree != NULL || !ours, "no cfree");
	if (cfree)
		cfree(xmalloc(10));
	void (*free_sized)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");
	void (*free_aligned_sized)(void *, size_t, size_t) =
	    (void (*)(void *, size_t, size_t))dlsym(RTLD_DEFAULT, "free_aligned_sized");
	CHECK((free_sized && free_aligned_sized) || !ours, "no free_sized");
	if (free_sized && free_aligned_sized) {
		for (size_t n = 0; n < (2u << 20); n += n / 3 + 1) {
			p = xmalloc(n);
			own(p, n);
			free_sized(p, n);
			p = xcalloc(1, n);
			free_sized(p, n);
			p = xaligned_alloc(256, n);
			own(p, n);
			free_aligned_sized(p, 256, n);
		}
		free_sized(NULL, 10);
		free_aligned_sized(NULL, 64, 10);
	}
	static const char *const names[] = { "malloc", "free", "calloc", "realloc", "reallocarray", "memalign",
		"aligned_alloc", "posix_memalign", "valloc", "pvalloc", "malloc_usable_size", "malloc_trim", "mallinfo",
		"mallinfo2", "malloc_info", "malloc_stats", "mallopt" };
	Dl_info home;
	CHECK(dladdr(dlsym(RTLD_DEFAULT, "malloc"), &home));
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		void *symbol = dlsym(RTLD_DEFAULT, names[i]);
		Dl_info here;
		CHECK(symbol && dladdr(symbol, &here));
		CHECK(strcmp(here.dli_fname, home.dli_fname) == 0, "%s comes from %s, malloc from %s", names[i],
		    here.dli_fname, home.dli_fname);
	}
	CHECK(!ours || !strstr(home.dli_fname, "libc.so"), "malloc is the C library's");
}

int
main(int argc, char **argv)
{
	ours = argc > 1 && strcmp(argv[1], "--ours") == 0;
	sizes();
	zero_sizes();
	errno_is_kept();
	overflow();
	callocs();
	reallocs();
	alignments();
	the_rest();
	/* Once more over the used heap. */
	sizes();
	callocs();
	puts("contract kept");
	return 0;
}
