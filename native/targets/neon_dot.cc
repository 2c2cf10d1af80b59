// The neon target: choose the lanes, include the kernels, fill the table.
#include <cmath>
#include <cstring>
#include <algorithm>
#include <bit>
#include <limits>
#include <arm_neon.h>

#include "../kernel_table.h"

#define STOKER_LANES_NEON
namespace stoker {
namespace neon {
namespace {
#include "table-inl.h"
}  // namespace
}  // namespace neon

const KernelTable* neon_table() {
  static const KernelTable table = neon::make_table("neon");
  return &table;
}
}  // namespace stoker
