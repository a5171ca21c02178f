/* A library that allocates when it is loaded, when it is called, and when it goes. See plugins.c. */
#include <stdlib.h>
#include <string.h>

static void *at_load;

__attribute__((constructor)) static void
loaded(void)
{
	at_load = calloc(1, 5000);
}

__attribute__((destructor)) static void
unloaded(void)
{
	free(at_load);
}

/* Stays with the caller after the library is gone. */
char *
plugin_say(const char *what)
{
	char *p = malloc(strlen(what) + 1 + 64);
	strcpy(p, what);
	return p;
}
