/*
 * A library opened with RTLD_DEEPBIND, and one that it opens itself by a name only its own search path finds: what each allocates the other
 * frees.
 *
 * usage: deepbind LIBRARY NAME
 *
 * LIBRARY is deeper.so; NAME that of a copy of plugin.so beside it.
 */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <malloc.h>

int
main(int argc, char **argv)
{
	CHECK(argc == 3);
	CHECK(dlopen(argv[2], RTLD_NOW) == NULL, "the program finds it, so it tells nothing who asks");
	void *handle = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
	CHECK(handle, "%s", dlerror());
	char *(*swap)(char *) = (char *(*)(char *))dlsym(handle, "deeper_swap");
	char *(*say)(const char *, const char *) = (char *(*)(const char *, const char *))dlsym(handle, "deeper_say");
	CHECK(swap && say, "%s", dlerror());
	for (int i = 0; i < 1000; i++) {
		char *mine = malloc(100 + i * 50);
		CHECK(mine);
		strcpy(mine, "from the program");
		char *theirs = swap(mine);
		CHECK(strcmp(theirs, "from the library") == 0);
		CHECK(malloc_usable_size(theirs) >= 200);
		theirs = realloc(theirs, 5000);
		CHECK(theirs && strcmp(theirs, "from the library") == 0);
		free(theirs);
	}
	char *said = say(argv[2], "from behind it");
	CHECK(strcmp(said, "from behind it") == 0);
	free(said);
	void *same = dlmopen(LM_ID_BASE, argv[1], RTLD_NOW | RTLD_DEEPBIND);
	CHECK(same == handle, "%s", dlerror());
	CHECK(dlclose(same) == 0 && dlclose(handle) == 0);
	puts("done");
	return 0;
}
