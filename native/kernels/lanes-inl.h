// Sixteen lanes of 32 bits, whatever the machine has: one zmm, two ymm, four NEON registers, or an array.
// Every target performs the same IEEE operations in the same order, so kernels written on these types give
// the same bits everywhere. No include guard: each targets/*.cc includes this once, in its own namespace.
//
// Types: F32 (16 floats), I32 (16 ints), Mask (16 booleans), U8x64 (64 unsigned bytes, 4 to a lane).
// Semantics shared by all targets:
//   vmin/vmax(a, b)  a < b ? a : b and a > b ? a : b, which also settles NaN and the sign of zero
//   fma(a, b, c)     a * b + c rounded once
//   to_i32           round to nearest, ties to even; inputs are kept below 2^31 by the callers
//   reduce_add       pairs (i, i+8), then (i, i+4), (i, i+2), (0, 1): the one fixed tree
//   dot4             acc[lane] += sum of 4 products u8 * i8, exact; byte products never saturate
#if defined(STOKER_LANES_AVX512)
#include "lanes_avx512-inl.h"
#elif defined(STOKER_LANES_AVX2)
#include "lanes_avx2-inl.h"
#elif defined(STOKER_LANES_NEON)
#include "lanes_neon-inl.h"
#else
#include "lanes_scalar-inl.h"
#endif
