/*
 * Starts a program and writes what it cost: CPU time and peak resident memory of it and of the children that it waited
 * for, their page faults, and the memory that was resident in the middle of samples taken every 10 ms (the program's and
 * its descendants' together). A small static program of its own, because the peak that the kernel reports after exec
 * is no less than what the parent had resident at fork.
 *
 * usage: launch FILE [NAME=VALUE...] /PROGRAM [ARGUMENT...]
 * writes "STATUS USER_US SYSTEM_US PEAK_KIB FAULTS STEADY_KIB"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SAMPLES = 1 << 16, EVERY_MS = 10 };
static unsigned long samples[SAMPLES];
static volatile pid_t child;

static void
pass_on(int signal)
{
	if (child > 0)
		kill(child, signal);
}

/* Reads a file of /proc; the empty text when the process is gone. */
static const char *
read_proc(pid_t pid, const char *form, char *text, size_t size)
{
	char path[80];
	snprintf(path, sizeof path, form, pid, pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return text;
}

/* Resident pages of a process and its descendants. */
static unsigned long
resident(pid_t pid)
{
	char text[4096];
	unsigned long pages = 0;
	sscanf(read_proc(pid, "/proc/%d/statm", text, sizeof text), "%*u %lu", &pages);
	read_proc(pid, "/proc/%d/task/%d/children", text, sizeof text);
	char *rest;
	for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
		pages += resident(atoi(word));
	return pages;
}

static int
ascending(const void *a, const void *b)
{
	unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;
	return (x > y) - (x < y);
}

int
main(int argc, char **argv)
{
	if (argc < 3)
		return 125;
	signal(SIGTERM, pass_on);
	sigset_t ends, before;
	sigemptyset(&ends);
	sigaddset(&ends, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ends, &before);
	child = fork();
	if (child == 0) {
		sigprocmask(SIG_SETMASK, &before, NULL);
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
	size_t n = 0;
	for (pid_t ended; (ended = wait4(child, &status, WNOHANG, &use)) != child;) {
		if (ended < 0 && errno != EINTR)
			return 125;
		const struct timespec wait = { .tv_nsec = EVERY_MS * 1000000 };
		if (sigtimedwait(&ends, NULL, &wait) < 0 && errno == EAGAIN && n < SAMPLES)
			samples[n++] = resident(child);
	}
	qsort(samples, n, sizeof *samples, ascending);
	/* Over before the first sample: it was never anything but what it was at its peak. */
	long steady = n ? (long)samples[n / 2] * (sysconf(_SC_PAGESIZE) / 1024) : use.ru_maxrss;
	char text[200];
	int length = snprintf(text, sizeof text, "%d %ld %ld %ld %ld %ld\n", status,
	    use.ru_utime.tv_sec * 1000000 + use.ru_utime.tv_usec, use.ru_stime.tv_sec * 1000000 + use.ru_stime.tv_usec,
	    use.ru_maxrss, use.ru_minflt + use.ru_majflt, steady);
	int fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0600);
	if (fd < 0 || write(fd, text, (size_t)length) != length)
		return 125;
	return 0;
}
