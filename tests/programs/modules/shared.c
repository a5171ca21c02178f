/* SPDX-License-Identifier: BSD-2-Clause */
/* Compiled as for a shared library, it goes through a table of addresses that modules do not have. */
extern int elsewhere;
int elsewhere = 3;
int shared_get(void);

int
shared_get(void)
{
	return elsewhere;
}
