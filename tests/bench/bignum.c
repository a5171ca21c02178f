/*
 * In the manner of cfrac: arithmetic on numbers of a few words, each in a tiny block of its own that lives for one
 * or two operations. Computes Fibonacci numbers modulo a prime power. usage: bignum COUNT
 */
#include "bench.h"

struct number {
	unsigned length;
	uint32_t digit[];
};

static struct number *
make(unsigned length)
{
	struct number *n = malloc(sizeof *n + length * sizeof n->digit[0]);
	if (!n)
		exit(1);
	n->length = length;
	return n;
}

static struct number *
add(const struct number *a, const struct number *b)
{
	unsigned most = a->length > b->length ? a->length : b->length;
	struct number *sum = make(most + 1);
	uint64_t carry = 0;
	for (unsigned i = 0; i < most; i++) {
		carry += (i < a->length ? (uint64_t)a->digit[i] : 0) + (i < b->length ? b->digit[i] : 0);
		sum->digit[i] = (uint32_t)carry;
		carry >>= 32;
	}
	sum->digit[most] = (uint32_t)carry;
	sum->length = most + (carry != 0);
	return sum;
}

/* Of the lowest words only: the numbers stay small. */
static struct number *
shorten(const struct number *a, unsigned words)
{
	struct number *n = make(a->length < words ? a->length : words);
	memcpy(n->digit, a->digit, n->length * sizeof n->digit[0]);
	return n;
}

int
main(int argc, char **argv)
{
	uint64_t count = argument(argc, argv, 1);
	struct number *a = make(1), *b = make(1);
	a->digit[0] = 0;
	b->digit[0] = 1;
	for (uint64_t i = 0; i < count; i++) {
		struct number *sum = add(a, b);
		struct number *low = shorten(sum, 1 + (unsigned)(i % 5));
		free(sum);
		free(a);
		a = b;
		b = low;
	}
	uint32_t last = b->digit[0];
	OPAQUE(last);
	free(a);
	free(b);
	finish(4 * count);
}
