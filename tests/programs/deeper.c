/* A library that frees what it is given and gives what it allocated. See deepbind.c. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

char *
deeper_swap(char *theirs)
{
	if (strcmp(theirs, "from the program") != 0)
		return NULL;
	free(theirs);
	char *mine = calloc(1, 200);
	strcpy(mine, "from the library");
	return mine;
}

/* By a name that is looked for beside this library: its RUNPATH is $ORIGIN, the program has none. */
char *
deeper_say(const char *name, const char *what)
{
	void *handle = dlopen(name, RTLD_NOW | RTLD_DEEPBIND);
	if (!handle)
		return dlerror();
	char *(*say)(const char *) = (char *(*)(const char *))dlsym(handle, "plugin_say");
	return say ? say(what) : dlerror();
}
