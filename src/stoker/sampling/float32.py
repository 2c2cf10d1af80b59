"""Float32 functions whose every bit is fixed: IEEE additions, multiplications and fused multiply-adds only.

The native kernels (`vexp`, `vlog`) perform the same operations in the same order, so numpy and every
instruction set agree. The C library's exp and log differ between machines and are not used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: n * high is exact for |n| < 2^15
_LN2_LOW = np.float32(-2.12194440e-4)  # ln 2 = high + low
_EXP_COEFFICIENTS = tuple(np.float32(1.0) / np.float32(k) for k in (720, 120, 24, 6, 2, 1, 1))
# Least-squares fit, reweighted towards minimax, of (log(1+f) - f + f^2/2) / f^3 on [sqrt(1/2)-1, sqrt(2)-1];
# what is left out is below 6e-9 * f^2.
LOG_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (
        -0.07860800623893738,
        0.12883442640304565,
        -0.13129128515720367,
        0.14180965721607208,
        -0.1662449687719345,
        0.20002295076847076,
        -0.25000810623168945,
        0.33333316445350647,
    )
)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)


def fma(a: Float32 | np.float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """a * b + c rounded once to float32; arrays of one shape, or scalars; values must be finite.

    In float64 the product is exact; the sum is rounded to odd, after which rounding to float32 is correct
    (Boldo & Melquiond 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    from_addend = total - product
    error = np.atleast_1d((product - (total - from_addend)) + (addend - from_addend))
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return odd.astype(np.float32).reshape(np.shape(product + addend))


def exp(x: Float32) -> Float32:
    """e^x for x <= 88, any shape; 0 below -87; within 2e-7 relative. -inf gives 0."""
    x = np.asarray(x, np.float32)
    clamped = np.clip(x, np.float32(-87), np.float32(88))
    whole = np.rint(clamped * _LOG2_E)
    r = fma(whole, -_LN2_HIGH, clamped)
    r = fma(whole, -_LN2_LOW, r)
    p = np.full_like(r, _EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        p = fma(p, r, coefficient)
    power = ((whole.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < np.float32(-87), np.float32(0), p * power)


def split(x: Float32) -> tuple[Float32, Float32]:
    """(e, f), x = 2^e * (1 + f), 1 + f in [sqrt(1/2), sqrt(2)); x positive, normal, finite. f is exact."""
    bits = np.asarray(x, np.float32).view(np.int32)
    e = (bits - _SQRT_HALF_BITS) >> 23
    m = (bits - (e << 23)).view(np.float32)
    return e.astype(np.float32), m - np.float32(1)


def log_of_split(e: Float32, f: Float32) -> Float32:
    """e * ln 2 + log(1 + f), arrays of one shape; relative error below 3e-7 even near 1 (when e = 0)."""
    p = np.full_like(f, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        p = fma(p, f, coefficient)
    square = f * f
    p = (p * f) * square
    p = fma(e, _LN2_LOW, p)
    p = fma(square, np.float32(-0.5), p)
    return fma(e, _LN2_HIGH, f + p)


def log(x: Float32) -> Float32:
    """Natural logarithm of positive, normal, finite numbers, any shape."""
    x = np.atleast_1d(np.asarray(x, np.float32))
    return log_of_split(*split(x))
