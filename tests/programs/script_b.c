/* Second library of script.c. */
#include "script.h"
TEN_SITES(b, 0)
TEN_SITES(b, 1)
TEN_SITES(b, 2)
TEN_SITES(b, 3)
