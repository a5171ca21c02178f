/* SPDX-License-Identifier: BSD-2-Clause */
/* A module with two types, one of which leaks. Loaded and unloaded by `host.c`. */
#include <sys/malloc.h>

static MALLOC_DEFINE(M_TIDY, "tidy module", "gives all back");
MALLOC_DEFINE(M_LEAKY, "leaky module", "does not");

void module_work(void);

void
module_work(void)
{
	for (int i = 0; i < 3; i++)
		free(malloc(100, M_TIDY, M_WAITOK), M_TIDY);
	for (int i = 0; i < 3; i++)
		malloc(100, M_LEAKY, M_WAITOK);
}
