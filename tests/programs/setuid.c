/*
 * Installed setuid by the test and started by another user: says which malloc it has, and that its heap works.
 */
#include "check.h"
#include <dlfcn.h>
#include <sys/auxv.h>

int
main(void)
{
	Dl_info home;
	CHECK(dladdr(dlsym(RTLD_DEFAULT, "malloc"), &home));
	char *p = malloc(100000);
	CHECK(p);
	memset(p, 1, 100000);
	free(p);
	const char *base = strrchr(home.dli_fname, '/');
	printf("secure %lu, uid %d, effective %d, malloc of %s\n", getauxval(AT_SECURE), (int)getuid(), (int)geteuid(),
	    base ? base + 1 : home.dli_fname);
	return 0;
}
