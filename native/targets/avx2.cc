// The avx2 target: choose the lanes, include the kernels, fill the table.
#include <cmath>
#include <cstring>
#include <algorithm>
#include <bit>
#include <limits>
#include <immintrin.h>

#include "../kernel_table.h"

#define STOKER_LANES_AVX2
namespace stoker {
namespace avx2 {
namespace {
#include "table-inl.h"
}  // namespace
}  // namespace avx2

const KernelTable* avx2_table() {
  static const KernelTable table = avx2::make_table("avx2");
  return &table;
}
}  // namespace stoker
