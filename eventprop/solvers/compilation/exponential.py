"""exp and expm1 for the kernels, written so that a loop over them becomes vector instructions.

The library's exp is a call per number. Here x = n ln 2 + r with |r| <= ln(2)/2, so that exp(x) = 2^n (1 + expm1(r)); the
Taylor series of expm1(r) to degree 13 leaves out less than 2e-17 of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

LOG2_E = math.log2(math.e)
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # the leading 32 bits of ln 2: its product with n is exact
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")  # ln 2 - LN2_HIGH
SMALLEST = -708.0  # below, 2^n is subnormal: exp is taken as 0
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1.0 / math.factorial(k) for k in range(2, 14))

# no reordered sums: r would lose the digits that LN2_LOW gives it
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}


@register_jitable(**OPTIONS)
def parts(x):
    """(2^n, expm1(r))."""
    bounded = SMALLEST if x < SMALLEST else x  # NaN stays NaN
    n = np.rint(bounded * LOG2_E)
    r = bounded - n * LN2_HIGH - n * LN2_LOW
    bits = np.int64((np.int64(np.int32(n)) + 1023) << 52)
    scale = 0.0 if x < SMALLEST else bits.view(np.float64)
    r2 = r * r
    r4 = r2 * r2
    low = (C2 + r * C3) + r2 * (C4 + r * C5)
    middle = (C6 + r * C7) + r2 * (C8 + r * C9)
    high = (C10 + r * C11) + r2 * (C12 + r * C13)
    return scale, r + r2 * (low + r4 * (middle + r4 * high))


@register_jitable(**OPTIONS)
def exp(x):
    """e^x for x <= 0, to one unit in the last place."""
    scale, rest = parts(x)
    return scale + scale * rest


@register_jitable(**OPTIONS)
def expm1(x):
    """e^x - 1 for x <= 0, to one unit in the last place."""
    scale, rest = parts(x)
    return (scale - 1.0) + scale * rest
