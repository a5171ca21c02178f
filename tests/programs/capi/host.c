/* SPDX-License-Identifier: BSD-2-Clause */
/* Loads the module named by its argument, lets it work, unloads it, twice. What is in use at the end is no leak of a module. */
#include <sys/malloc.h>

#include <dlfcn.h>
#include <stdio.h>

MALLOC_DEFINE(M_HOST, "host", "kept to the end");

int
main(int argc, char **argv)
{
	void *kept = malloc(1000, M_HOST, M_WAITOK);

	for (int i = 0; argc == 2 && i < 2; i++) {
		void *module = dlopen(argv[1], RTLD_NOW);
		void (*work)(void);

		if (module == NULL) {
			printf("%s\n", dlerror());
			return 1;
		}
		*(void **)&work = dlsym(module, "module_work");
		printf("loaded: %d\n", malloc_desc2type("leaky module") != NULL && malloc_desc2type("tidy module") != NULL);
		work();
		dlclose(module);
		printf("unloaded: %d\n", malloc_desc2type("leaky module") == NULL && malloc_desc2type("tidy module") == NULL);
	}
	return kept == NULL;
}
