/* SPDX-License-Identifier: BSD-2-Clause */
/* Every way in which compiled C refers to something, so that a loader's work can be checked by running it. */
#include <stddef.h>
#include <stdint.h>

int links_check(void);
int links_add(int, int);
extern int nobody_has_this(void) __attribute__((__weak__));
size_t strlen(const char *);

static const char text[] = "constants";
static int zeros[1000];
int counted = 41;
static int *pointer = &counted;
static const char *const texts[] = { text, "another", text + 4 };
static int (*const functions[])(int, int) = { links_add, links_add };
static int order[4], orders;

__attribute__((__constructor__)) static void
last(void)
{
	order[orders++] = 3;
}

__attribute__((__constructor__(101))) static void
first(void)
{
	order[orders++] = 1;
}

__attribute__((__constructor__(60000))) static void
second(void)
{
	order[orders++] = 2;
}

__attribute__((__noinline__)) int
links_add(int a, int b)
{
	return a + b;
}

/* A jump table, where the compiler likes those. */
__attribute__((__noinline__)) static int
select(int which)
{
	switch (which) {
	case 0: return 17;
	case 1: return 4711;
	case 2: return -3;
	case 3: return zeros[3];
	case 4: return counted;
	case 5: return 99;
	case 6: return 12345;
	default: return -1;
	}
}

/* 64 bits of distance, which compilers do not use of themselves. */
__attribute__((__noinline__)) static int *
far(void)
{
	uintptr_t distance, here;

	__asm__("leaq 1f(%%rip), %1\n1:\tmovabsq $counted - 1b, %0" : "=r"(distance), "=r"(here));
	return (int *)(here + distance);
}

/* 0, or which of the references is wrong. */
int
links_check(void)
{
	if (order[0] != 1 || order[1] != 2 || order[2] != 3 || orders != 3)
		return 1;
	if (*pointer != 41 || pointer != &counted)
		return 2;
	if (texts[0] != text || texts[1][0] != 'a' || texts[2][0] != 't')
		return 3;
	if (functions[0](40, 2) != 42 || functions[1] != links_add)
		return 4;
	if (select(1) != 4711 || select(6) != 12345 || select(7) != -1 || select(4) != 41)
		return 5;
	for (size_t i = 0; i < sizeof(zeros) / sizeof(zeros[0]); i++) {
		if (zeros[i] != 0)
			return 6;
	}
	zeros[3] = 5;
	if (select(3) != 5)
		return 7;
	if (strlen(texts[0]) != 9)
		return 8;
	if (nobody_has_this != NULL)
		return 9;
	if (far() != &counted)
		return 10;
	counted++;
	return *pointer == 42 ? 0 : 11;
}
