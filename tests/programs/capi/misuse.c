/* SPDX-License-Identifier: BSD-2-Clause */
/* One bug by the number of its argument; each is reported and ends the program. */
#include <sys/kmem.h>
#include <sys/malloc.h>
#include <sys/vmem.h>

#include <string.h>

static struct malloc_type not_a_type[1];

int
main(int argc, char **argv)
{
	const char *bug = argc > 1 ? argv[1] : "";
	vmem_t *ids;
	vmem_addr_t id;
	void *block;

	if (strcmp(bug, "twice") == 0) {
		block = malloc(100, M_TEMP, M_WAITOK);
		free(block, M_TEMP);
		free(block, M_TEMP);
	} else if (strcmp(bug, "size") == 0) {
		kmem_free(kmem_alloc(100, KM_SLEEP), 90);
	} else if (strcmp(bug, "magic") == 0) {
		(void)!malloc(100, not_a_type, M_NOWAIT);
	} else if (strcmp(bug, "flags") == 0) {
		(void)!malloc(100, M_TEMP, M_ZERO);
	} else if (strcmp(bug, "never") == 0) {
		(void)!malloc((size_t)-1, M_TEMP, M_WAITOK);
	} else if (strcmp(bug, "range") == 0) {
		ids = vmem_create("ids", 1, 10, 1, 0, M_WAITOK);
		(void)vmem_alloc(ids, 2, M_WAITOK | M_FIRSTFIT, &id);
		vmem_free(ids, id, 1);
	}
	return 0;
}
