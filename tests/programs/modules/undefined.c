/* SPDX-License-Identifier: BSD-2-Clause */
/* Wants what no kernel exports. */
int no_such_function(int);
int undefined_call(void);

int
undefined_call(void)
{
	return no_such_function(1);
}
