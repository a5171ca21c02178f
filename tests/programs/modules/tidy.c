/* SPDX-License-Identifier: BSD-2-Clause */
/* A module that gives all back, but forgets to detach the type that it attached by hand. */
#include <sys/malloc.h>
#include <vm/uma.h>

MALLOC_DEFINE(M_FORMS, "forms", "a module's forms");
static MALLOC_DEFINE(M_DRAWERS, "drawers", "where forms go");
MALLOC_JUSTDEFINE(M_BYHAND, "by hand", "attached by hand");

static void *kept;

int tidy_work(void);

/* After the types', which come before it here; the destructors the other way round. */
__attribute__((__constructor__)) static void
keep(void)
{
	kept = malloc(77, M_FORMS, M_WAITOK);
}

__attribute__((__destructor__)) static void
give_back(void)
{
	free(kept, M_FORMS);
}

/* 0, or what went wrong. */
int
tidy_work(void)
{
	uma_zone_t zone = uma_zcreate("forms", 80, NULL, NULL, NULL, NULL, UMA_ALIGN_PTR, 0);
	void *form = malloc(5000, M_FORMS, M_WAITOK), *drawer = malloc(40, M_DRAWERS, M_NOWAIT), *item;

	if (zone == NULL || drawer == NULL)
		return 1;
	item = uma_zalloc(zone, M_WAITOK);
	malloc_type_attach(M_BYHAND);
	free(malloc(1, M_BYHAND, M_WAITOK), M_BYHAND);
	if (malloc_desc2type("forms") != M_FORMS || malloc_desc2type("by hand") != M_BYHAND)
		return 2;
	uma_zfree(zone, item);
	uma_zdestroy(zone);
	free(drawer, M_DRAWERS);
	free(form, M_FORMS);
	return 0;
}
