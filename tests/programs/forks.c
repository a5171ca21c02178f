/*
 * Fork and its relatives in a program whose other threads are inside malloc all the time.
 *
 * usage: forks fork COUNT | vfork COUNT | spawn COUNT | clone COUNT
 *
 * fork: the child allocates, starts a thread, forks a grandchild that allocates too, and frees what the parent
 * allocated. clone: through the bare system call, so that no atfork handler ran; the child allocates all the same.
 * A child that hangs is killed by its alarm, and that is a failure.
 */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

static atomic_bool stop;
static _Atomic unsigned long churned;
static void *from_parent[256];

static void *
churn(void *arg)
{
	uint64_t rng = seed_of((uintptr_t)arg);
	static _Thread_local void *live[128];
	while (!stop) {
		uint64_t r = next_random(&rng);
		void **slot = &live[r % 128];
		free(*slot);
		size_t n = (r >> 8) % 64 ? (r >> 16) % 2000 : (r >> 16) % 300000;
		*slot = malloc(n);
		CHECK(*slot);
		memset(*slot, 1, n < 64 ? n : 64);
		churned++;
	}
	for (int i = 0; i < 128; i++)
		free(live[i]);
	return NULL;
}

static void
use_the_heap(uint64_t salt)
{
	void *p[300];
	uint64_t rng = seed_of(salt);
	size_t sizes[300];
	for (int i = 0; i < 300; i++) {
		sizes[i] = i % 50 ? next_random(&rng) % 3000 : next_random(&rng) % 400000;
		p[i] = malloc(sizes[i]);
		CHECK(p[i]);
		fill(p[i], sizes[i], salt + (uint64_t)i);
	}
	for (int i = 0; i < 300; i += 3) {
		p[i] = realloc(p[i], sizes[i] + 1000);
		CHECK(p[i]);
	}
	for (int i = 0; i < 300; i++) {
		CHECK(mismatch(p[i], sizes[i], salt + (uint64_t)i) == sizes[i]);
		free(p[i]);
	}
}

static void *
use_the_heap_in_thread(void *arg)
{
	use_the_heap((uintptr_t)arg);
	return NULL;
}

static void
reap(pid_t pid, const char *who)
{
	int status = 0;
	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s ended with status %#x%s", who, (unsigned)status,
	    WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? " (it hung)" : "");
}

static void
child_of_fork(int i)
{
	alarm(30);
	use_the_heap((uint64_t)i);
	for (int k = 0; k < 256; k++) {
		CHECK(mismatch(from_parent[k], 100, (uint64_t)k) == 100, "the child sees other contents");
		free(from_parent[k]);
	}
	pthread_t t;
	CHECK(pthread_create(&t, NULL, use_the_heap_in_thread, (void *)(uintptr_t)(i + 7)) == 0);
	pid_t grandchild = fork();
	CHECK(grandchild >= 0);
	if (grandchild == 0) {
		alarm(30);
		use_the_heap((uint64_t)i + 1000);
		/* Through the exit handlers, as programs do. */
		exit(0);
	}
	reap(grandchild, "the grandchild");
	pthread_join(t, NULL);
	use_the_heap((uint64_t)i + 2000);
	exit(0);
}

int
main(int argc, char **argv)
{
	CHECK(argc >= 3);
	const char *how = argv[1];
	int count = atoi(argv[2]);
	if (strcmp(how, "exec-target") == 0) {
		use_the_heap((uint64_t)count);
		return 0;
	}
	for (int k = 0; k < 256; k++) {
		from_parent[k] = malloc(100);
		fill(from_parent[k], 100, (uint64_t)k);
	}
	/* A child of a bare clone inherits whatever other threads hold for ever, with any malloc: it is tried without them. */
	int nthreads = strcmp(how, "clone") == 0 ? 0 : 4;
	pthread_t threads[4];
	for (uintptr_t i = 0; i < (uintptr_t)nthreads; i++)
		CHECK(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
	char number[16];
	snprintf(number, sizeof number, "%d", count);
	char *const target[] = { "/proc/self/exe", "exec-target", number, NULL };
	for (int i = 0; i < count; i++) {
		pid_t pid = -1;
		if (strcmp(how, "fork") == 0) {
			pid = fork();
			if (pid == 0)
				child_of_fork(i);
		} else if (strcmp(how, "vfork") == 0) {
			pid = vfork();
			if (pid == 0) {
				execve(target[0], target, environ);
				_exit(127);
			}
			use_the_heap((uint64_t)i);
		} else if (strcmp(how, "spawn") == 0) {
			int error = posix_spawn(&pid, target[0], NULL, NULL, target, environ);
			CHECK(error == 0, "posix_spawn: %s", strerror(error));
		} else if (strcmp(how, "clone") == 0) {
			pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
			if (pid == 0) {
				alarm(30);
				use_the_heap((uint64_t)i);
				_exit(0);
			}
		} else {
			CHECK(0, "no way named %s", how);
		}
		CHECK(pid > 0, "%s: %s", how, strerror(errno));
		reap(pid, how);
	}
	stop = 1;
	for (int i = 0; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	use_the_heap(3);
	for (int k = 0; k < 256; k++) {
		CHECK(mismatch(from_parent[k], 100, (uint64_t)k) == 100, "a child changed the parent's block");
		free(from_parent[k]);
	}
	CHECK(nthreads == 0 || churned > 1000, "the other threads did %lu operations", churned);
	printf("%d of %s\n", count, how);
	return 0;
}
