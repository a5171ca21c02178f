/*
 * Allocation through wrappers: the row that counts is the wrapper's caller. Every caller is a function of its own, and
 * makes a number of blocks that no other makes.
 *
 * Prints "caller FUNCTION BLOCKS BYTES_AT_LEAST" for each, then "wait", and ends when its standard input does.
 */
#include "check.h"
#include <dlfcn.h>
#include <string>
#include <vector>

static void *kept[4096];
static int nkept;

static void
keep(void *p)
{
	CHECK(p != nullptr && nkept < 4096);
	kept[nkept++] = p;
}

/* As half of all C programs have it. */
extern "C" __attribute__((noinline, visibility("default"))) void *
xmalloc(size_t n)
{
	void *p = malloc(n);
	OPAQUE(p);
	if (!p)
		_exit(1);
	return p;
}

extern "C" __attribute__((noinline, visibility("default"))) void *
xrealloc(void *old, size_t n)
{
	void *p = realloc(old, n);
	OPAQUE(p);
	if (!p)
		_exit(1);
	return p;
}

#define CALLER extern "C" __attribute__((noinline, visibility("default"))) void

static void *(*g_malloc)(size_t);
static void *(*g_malloc0)(size_t);
static char *(*g_strdup)(const char *);
static const char *volatile text = "a string of some length, to be copied";

CALLER
via_malloc(int n)
{
	while (n--)
		keep(malloc(100));
}
CALLER
via_new(int n)
{
	while (n--)
		keep(operator new(100));
}
CALLER
via_new_array(int n)
{
	while (n--)
		keep(new char[100]);
}
CALLER
via_strdup(int n)
{
	while (n--)
		keep(strdup(text));
}
CALLER
via_strndup(int n)
{
	while (n--)
		keep(strndup(text, 20));
}
CALLER
via_g_malloc(int n)
{
	while (n--)
		keep(g_malloc(100));
}
CALLER
via_g_malloc0(int n)
{
	while (n--)
		keep(g_malloc0(100));
}
CALLER
via_g_strdup(int n)
{
	while (n--)
		keep(g_strdup(text));
}
CALLER
via_xmalloc(int n)
{
	while (n--)
		keep(xmalloc(100));
}
/* Blocks of another caller become this one's when it resizes them. */
CALLER
via_realloc(int n)
{
	while (n--) {
		kept[n] = realloc(kept[n], 5000);
		CHECK(kept[n] != nullptr);
	}
}
CALLER
via_xrealloc(int n)
{
	while (n--)
		keep(xrealloc(nullptr, 300));
}

/* Its members are the C++ library's. */
static std::string strings[200];
CALLER
via_string(int n)
{
	CHECK(n <= 200);
	while (n--)
		strings[n].append(text);
}

int
main()
{
	void *glib = dlopen("libglib-2.0.so.0", RTLD_NOW);
	CHECK(glib != nullptr, "%s", dlerror());
	g_malloc = (void *(*)(size_t))dlsym(glib, "g_malloc");
	g_malloc0 = (void *(*)(size_t))dlsym(glib, "g_malloc0");
	g_strdup = (char *(*)(const char *))dlsym(glib, "g_strdup");
	CHECK(g_malloc && g_malloc0 && g_strdup);

	static const struct {
		const char *name;
		void (*call)(int);
		int n, bytes;
	} callers[] = {
		{ "via_malloc", via_malloc, 211, 100 },
		{ "via_new", via_new, 113, 100 },
		{ "via_new_array", via_new_array, 127, 100 },
		{ "via_strdup", via_strdup, 131, 38 },
		{ "via_strndup", via_strndup, 137, 21 },
		{ "via_g_malloc", via_g_malloc, 139, 100 },
		{ "via_g_malloc0", via_g_malloc0, 149, 100 },
		{ "via_g_strdup", via_g_strdup, 151, 38 },
		{ "via_xmalloc", via_xmalloc, 157, 100 },
		{ "via_xrealloc", via_xrealloc, 163, 300 },
		{ "via_string", via_string, 167, 38 },
	};
	for (const auto &c : callers)
		c.call(c.n);
	/* The first 60 of via_malloc's. */
	via_realloc(60);
	for (const auto &c : callers) {
		int n = c.call == via_malloc ? c.n - 60 : c.n;
		printf("caller %s %d %d\n", c.name, n, n * c.bytes);
	}
	printf("caller via_realloc 60 300000\nwait\n");
	fflush(stdout);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
