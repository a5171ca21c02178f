/*
 * Starts a program and writes what it cost: CPU time and peak resident memory of it and of the children that it waited
 * for. A small static program of its own, because the peak that the kernel reports after exec is no less than what the
 * parent had resident at fork.
 *
 * usage: launch FILE [NAME=VALUE...] /PROGRAM [ARGUMENT...]   writes "STATUS USER_US SYSTEM_US PEAK_KIB"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile pid_t child;

static void
pass_on(int signal)
{
	if (child > 0)
		kill(child, signal);
}

int
main(int argc, char **argv)
{
	if (argc < 3)
		return 125;
	signal(SIGTERM, pass_on);
	child = fork();
	if (child == 0) {
		/* Only now: the launcher itself shall not be preloaded, nor env(1) be measured. */
		char **arg = argv + 2;
		while (*arg && **arg != '/')
			putenv(*arg++);
		if (*arg)
			execv(*arg, arg);
		_exit(127);
	}
	int status;
	struct rusage use;
	while (wait4(child, &status, 0, &use) < 0)
		if (errno != EINTR)
			return 125;
	char text[200];
	int n = snprintf(text, sizeof text, "%d %ld %ld %ld\n", status, use.ru_utime.tv_sec * 1000000 + use.ru_utime.tv_usec,
	    use.ru_stime.tv_sec * 1000000 + use.ru_stime.tv_usec, use.ru_maxrss);
	int fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		return 125;
	return 0;
}
