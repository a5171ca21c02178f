/*
 * A process alone with its allocator, and then not: what its only thread had to itself is taken by a second one, at any moment.
 *
 * usage: lease COUNT
 *
 * COUNT children, one after the other. In each the first thread allocates and frees small blocks of one size all the time; a second
 * starts meanwhile, every other time on the same CPU and no other, and does the same. A block that both were given is noticed by its
 * contents. The last children fork once more from the second thread.
 */
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define LIVE 48
#define TURNS 4000

static atomic_int begun;

struct block {
	uint64_t stamp, copy;
	char rest[40];
};

static void
churn(uint64_t who, unsigned turns)
{
	struct block *live[LIVE] = { 0 };
	for (unsigned i = 0; i < turns + LIVE; i++) {
		struct block **at = &live[i % LIVE], *old = *at;
		if (old) {
			CHECK((old->stamp ^ old->copy) == who, "block %p is of two threads", (void *)old);
			free(old);
		}
		*at = NULL;
		if (i >= turns)
			continue;
		*at = malloc(sizeof **at);
		CHECK(*at);
		(*at)->stamp = i;
		(*at)->copy = i ^ who;
	}
}

static void *
second(void *arg)
{
	begun = 1;
	churn(0x5ec0de << 8, TURNS);
	if (arg) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			churn(0xf0 << 8, TURNS);
			_exit(0);
		}
		int status;
		CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	}
	churn(0x5ec0de << 8, TURNS);
	return NULL;
}

static void
child(int n, int last)
{
	if (n % 2) {
		int cpu = sched_getcpu();
		cpu_set_t one;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
	}
	churn(0xf1 << 8, TURNS);
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, second, last ? &begun : NULL) == 0);
	/* Not before the second has begun, and from then on as long as it may take. */
	while (!begun)
		churn(0xf1 << 8, 100);
	churn(0xf1 << 8, 10 * TURNS);
	CHECK(pthread_join(thread, NULL) == 0);
	churn(0xf1 << 8, TURNS);
}

int
main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 10;
	for (int n = 0; n < count; n++) {
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0) {
			alarm(60);
			child(n, n >= count - count / 4);
			_exit(0);
		}
		int status;
		CHECK(waitpid(pid, &status, 0) == pid && status == 0, "child %d: status %x", n, status);
	}
	printf("%d leases\n", count);
	return 0;
}
