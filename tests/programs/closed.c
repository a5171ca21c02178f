/*
 * A program that closes every descriptor, as daemons do, then allocates a great deal, forks, and opens files of its
 * own under the numbers that were free. Nothing of the allocator may be written into them.
 */
#include "check.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

int
main(int argc, char **argv)
{
	CHECK(argc == 2, "usage: closed DIRECTORY");
	int report = dup2(1, 1500);
	CHECK(report == 1500);
	for (int fd = 0; fd < 1024; fd++)
		close(fd);
	char name[4096];
	int mine[40];
	for (int i = 0; i < 40; i++) {
		snprintf(name, sizeof name, "%s/file%d", argv[1], i);
		mine[i] = open(name, O_CREAT | O_TRUNC | O_RDWR, 0600);
		/* The lowest number is free, unless the allocator took one meanwhile. */
		if (mine[i] != i)
			return dprintf(report, "descriptor %d is not free\n", i), 1;
	}
	static void *blocks[200000];
	uint64_t rng = seed_of(4);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 200000; i++) {
			size_t n = i % 1000 ? next_random(&rng) % 400 : next_random(&rng) % 300000;
			blocks[i] = malloc(n);
			if (!blocks[i])
				return dprintf(report, "refused\n"), 1;
			memset(blocks[i], 0xEE, n);
		}
		for (int i = 0; i < 200000; i++)
			free(blocks[i]);
	}
	pid_t pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 10000; i++)
			blocks[i] = calloc(1, next_random(&rng) % 4000);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	if (status)
		return dprintf(report, "the child ended with %#x\n", (unsigned)status), 1;
	for (int i = 0; i < 40; i++) {
		struct stat st;
		if (fstat(mine[i], &st) || st.st_size != 0)
			return dprintf(report, "file %d of the program was written to\n", i), 1;
	}
	dprintf(report, "untouched\n");
	return 0;
}
