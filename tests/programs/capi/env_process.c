/* SPDX-License-Identifier: BSD-2-Clause */
#include "env.h"

#include <pthread.h>
#include <sched.h>

int
main(void)
{
	return program();
}

int
env_effort(void)
{
	return 100;
}

static void *
start(void *arg)
{
	struct env_thread *thread = arg;

	thread->et_result = thread->et_entry(thread->et_arg);
	return NULL;
}

int
env_thread_start(struct env_thread *thread, void *(*entry)(void *), void *arg)
{
	pthread_t number;
	int error;

	thread->et_entry = entry;
	thread->et_arg = arg;
	error = pthread_create(&number, NULL, start, thread);
	thread->et_number = (unsigned long)number;
	return error;
}

void *
env_thread_join(struct env_thread *thread)
{
	CHECK(pthread_join((pthread_t)thread->et_number, NULL) == 0);
	return thread->et_result;
}

void
env_yield(void)
{
	sched_yield();
}

struct interrupts {
	void (*handler)(void *);
	void *arg;
	int stop;
};

static void *
interrupt(void *arg)
{
	struct interrupts *source = arg;

	while (!NOW(source->stop)) {
		source->handler(source->arg);
		env_yield();
	}
	return NULL;
}

void
env_interrupted(void (*handler)(void *), void (*body)(void *), void *arg)
{
	struct interrupts source = { handler, arg, 0 };
	struct env_thread thread[2];

	for (int i = 0; i < 2; i++)
		CHECK(env_thread_start(&thread[i], interrupt, &source) == 0);
	body(arg);
	COUNT(source.stop);
	for (int i = 0; i < 2; i++)
		env_thread_join(&thread[i]);
}
