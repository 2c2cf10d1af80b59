// The avx512 target: choose the lanes, include the kernels, fill the table.
#include <cmath>
#include <cstring>
#include <algorithm>
#include <bit>
#include <limits>
#include <immintrin.h>

#include "../kernel_table.h"

#define STOKER_LANES_AVX512
namespace stoker {
namespace avx512 {
namespace {
#include "table-inl.h"
}  // namespace
}  // namespace avx512

const KernelTable* avx512_table() {
  static const KernelTable table = avx512::make_table("avx512");
  return &table;
}
}  // namespace stoker
