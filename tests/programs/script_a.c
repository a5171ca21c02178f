/* First library of script.c. */
#include "script.h"
TEN_SITES(a, 0)
TEN_SITES(a, 1)
TEN_SITES(a, 2)
TEN_SITES(a, 3)
