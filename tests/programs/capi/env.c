/* SPDX-License-Identifier: BSD-2-Clause */
/* What is the same in both environments. */
#include "env.h"

#include <memstat.h>

int failures;

struct env_zone
env_zone(const char *name)
{
	struct env_zone zone = { 0, 0, 0 };
	struct memory_type_list *list = memstat_mtl_alloc();
	struct memory_type *type;

	if (list == NULL || memstat_sysctl_uma(list, 0) != 0 ||
	    (type = memstat_mtl_find(list, ALLOCATOR_UMA, name)) == NULL) {
		printf("env_zone: there is no zone %s\n", name);
		COUNT(failures);
	} else {
		zone.ez_count = memstat_get_count(type);
		zone.ez_free = memstat_get_free(type);
		zone.ez_sleeps = memstat_get_sleeps(type);
	}
	memstat_mtl_free(list);
	return zone;
}

void
env_mutex_init(struct env_mutex *mutex)
{
	mutex->em_taken = 0;
}

void
env_mutex_destroy(struct env_mutex *mutex)
{
	CHECK(mutex->em_taken == 0);
}

int
env_mutex_trylock(struct env_mutex *mutex)
{
	return __atomic_exchange_n(&mutex->em_taken, 1, __ATOMIC_ACQUIRE) != 0;
}

void
env_mutex_lock(struct env_mutex *mutex)
{
	while (env_mutex_trylock(mutex) != 0)
		env_yield();
}

void
env_mutex_unlock(struct env_mutex *mutex)
{
	__atomic_store_n(&mutex->em_taken, 0, __ATOMIC_RELEASE);
}
