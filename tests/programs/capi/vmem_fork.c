/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * fork(2) while threads sleep in one arena and use another: the child finds both as if it had always been alone.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/vmem.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLEEPERS 3
#define FORKS 100
#define SIZE 4

static vmem_t *full, *busy;
static char seen[1000];
static atomic_int tid[SLEEPERS], stop;

#define CHECK(what) do { \
	if (!(what)) { \
		fprintf(stderr, "%d: %s\n", __LINE__, #what); \
		_exit(1); \
	} \
} while (0)

static void *
sleeper(void *arg)
{
	vmem_addr_t addr;

	atomic_store((atomic_int *)arg, (int)syscall(SYS_gettid));
	CHECK(vmem_alloc(full, SIZE, VM_SLEEP | VM_INSTANTFIT, &addr) == 0);
	vmem_free(full, addr, SIZE);
	return NULL;
}

static void *
user(void *arg)
{
	vmem_addr_t addr;

	(void)arg;
	while (!atomic_load(&stop))
		if (vmem_alloc(busy, 3, VM_NOSLEEP | VM_BESTFIT, &addr) == 0)
			vmem_free(busy, addr, 3);
	return NULL;
}

/* Whether a thread that does nothing else sleeps: it is in the arena's queue then. */
static int
asleep(int id)
{
	char path[64], state = 0;
	FILE *file;

	if (id == 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", id);
	file = fopen(path, "r");
	CHECK(file != NULL);
	CHECK(fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
	fclose(file);
	return state == 'S';
}

static void
child(vmem_addr_t held)
{
	vmem_addr_t addr, other;
	vmem_t *own;

	/* What hangs ends by this. */
	alarm(30);
	vmem_free(full, held, SIZE);
	/* Nobody stands in line before us. */
	CHECK(vmem_alloc(full, SIZE, VM_SLEEP | VM_INSTANTFIT, &addr) == 0 && addr == held);
	CHECK(vmem_alloc(full, SIZE, VM_NOSLEEP | VM_INSTANTFIT, &other) != 0);
	CHECK(vmem_alloc(busy, 3, VM_SLEEP | VM_INSTANTFIT, &other) == 0);
	vmem_free(busy, other, 3);
	own = vmem_create("child", 0, 100, 1, 1000, VM_SLEEP);
	CHECK(own != NULL && vmem_alloc(own, 16, VM_SLEEP | VM_INSTANTFIT, &addr) == 0);
	vmem_free(own, addr, 16);
	/* What was freed is cached, and found by who needs it. */
	CHECK(vmem_alloc(own, 100, VM_SLEEP | VM_INSTANTFIT, &addr) == 0);
	vmem_free(own, addr, 100);
	vmem_destroy(own);
	vmem_free(full, held, SIZE);
	_exit(0);
}

/* Small ranges come from a cache: as many as there are, all different, and all of them can be had as one. */
static void
cached(void)
{
	vmem_t *ids = vmem_create("ids", 0, 1000, 1, 8, VM_SLEEP);
	vmem_addr_t addr;
	int n;

	CHECK(ids != NULL);
	for (n = 0; n < 1000; n++) {
		CHECK(vmem_alloc(ids, 1, VM_NOSLEEP | VM_INSTANTFIT, &addr) == 0);
		CHECK(addr < 1000 && !seen[addr]++);
	}
	CHECK(vmem_alloc(ids, 1, VM_NOSLEEP | VM_INSTANTFIT, &addr) != 0 && vmem_size(ids, VMEM_FREE) == 0);
	for (n = 0; n < 1000; n++)
		vmem_free(ids, (vmem_addr_t)n, 1);
	CHECK(vmem_size(ids, VMEM_ALLOC) != 0);
	CHECK(vmem_alloc(ids, 1000, VM_NOSLEEP | VM_INSTANTFIT, &addr) == 0);
	vmem_free(ids, addr, 1000);
	vmem_destroy(ids);
}

int
main(void)
{
	pthread_t sleepers[SLEEPERS], users[2];
	vmem_addr_t held;
	int n, status;
	pid_t pid;

	full = vmem_create("full", 1, SIZE, 1, 0, VM_SLEEP);
	busy = vmem_create("busy", 0, 1000, 1, 0, VM_SLEEP);
	CHECK(full != NULL && busy != NULL);
	CHECK(vmem_alloc(full, SIZE, VM_SLEEP | VM_INSTANTFIT, &held) == 0);
	for (n = 0; n < SLEEPERS; n++)
		CHECK(pthread_create(&sleepers[n], NULL, sleeper, &tid[n]) == 0);
	for (n = 0; n < 2; n++)
		CHECK(pthread_create(&users[n], NULL, user, NULL) == 0);
	for (n = 0; n < SLEEPERS; n++)
		while (!asleep(atomic_load(&tid[n])))
			usleep(1000);
	for (n = 0; n < FORKS; n++) {
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			child(held);
		CHECK(waitpid(pid, &status, 0) == pid);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	/* Those who sleep here were not forgotten. */
	vmem_free(full, held, SIZE);
	for (n = 0; n < SLEEPERS; n++)
		CHECK(pthread_join(sleepers[n], NULL) == 0);
	atomic_store(&stop, 1);
	for (n = 0; n < 2; n++)
		CHECK(pthread_join(users[n], NULL) == 0);
	CHECK(vmem_size(full, VMEM_FREE) == SIZE && vmem_size(busy, VMEM_ALLOC) == 0);
	vmem_destroy(full);
	vmem_destroy(busy);
	cached();
	printf("%d children\n", FORKS);
	return 0;
}
