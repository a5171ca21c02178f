/* An array that doubles as it is pushed to, as Vec and std::vector do. One operation is a push. usage: grow LENGTH ROUNDS */
#include "bench.h"

int
main(int argc, char **argv)
{
	size_t length = argument(argc, argv, 1);
	uint64_t rounds = argument(argc, argv, 2);
	for (uint64_t r = 0; r < rounds; r++) {
		size_t capacity = 4;
		uint64_t *v = allocate(capacity * sizeof *v);
		for (size_t i = 0; i < length; i++) {
			if (i == capacity) {
				capacity *= 2;
				v = realloc(v, capacity * sizeof *v);
				if (!v)
					exit(1);
			}
			v[i] = i;
		}
		OPAQUE(v);
		free(v);
	}
	finish(rounds * length);
}
