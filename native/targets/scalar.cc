// The scalar target: choose the lanes, include the kernels, fill the table.
#include <cmath>
#include <cstring>
#include <algorithm>
#include <bit>
#include <limits>

#include "../kernel_table.h"

#define STOKER_LANES_SCALAR
namespace stoker {
namespace scalar {
namespace {
#include "table-inl.h"
}  // namespace
}  // namespace scalar

const KernelTable* scalar_table() {
  static const KernelTable table = scalar::make_table("scalar");
  return &table;
}
}  // namespace stoker
