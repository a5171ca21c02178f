/* One block of one size, allocated and freed at once. The lower bound of every allocator. usage: pair SIZE COUNT */
#include "bench.h"

int
main(int argc, char **argv)
{
	size_t size = argument(argc, argv, 1);
	uint64_t count = argument(argc, argv, 2);
	for (uint64_t i = 0; i < count; i++)
		free(allocate(size));
	finish(2 * count);
}
