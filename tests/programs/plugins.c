/*
 * dlopen and dlclose in a loop, of libraries that allocate; what they allocated outlives them. Two copies of one library
 * under other names take each other's place in memory.
 *
 * usage: plugins COUNT LIBRARY...
 */
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>

static char **libraries;
static int nlibraries, count;

static void *
load_and_unload(void *arg)
{
	char *said[16] = { 0 };
	for (int i = 0; i < count; i++) {
		void *handle = dlopen(libraries[(i + (int)(uintptr_t)arg) % nlibraries], RTLD_NOW | RTLD_LOCAL);
		CHECK(handle, "%s", dlerror());
		char *(*say)(const char *) = (char *(*)(const char *))dlsym(handle, "plugin_say");
		CHECK(say, "%s", dlerror());
		char **slot = &said[i % 16];
		if (*slot) {
			CHECK(strcmp(*slot, "kept after the library has gone") == 0);
			free(*slot);
		}
		*slot = say("kept after the library has gone");
		CHECK(dlclose(handle) == 0, "%s", dlerror());
		CHECK(dlopen("/nonexistent/library.so", RTLD_NOW) == NULL && dlerror() != NULL);
	}
	for (int i = 0; i < 16; i++)
		free(said[i]);
	return NULL;
}

int
main(int argc, char **argv)
{
	CHECK(argc >= 3);
	count = atoi(argv[1]);
	libraries = argv + 2;
	nlibraries = argc - 2;
	pthread_t t[3];
	for (uintptr_t i = 0; i < 3; i++)
		CHECK(pthread_create(&t[i], NULL, load_and_unload, (void *)i) == 0);
	load_and_unload(NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	printf("%d times\n", count);
	return 0;
}
