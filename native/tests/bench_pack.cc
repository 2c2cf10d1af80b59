// Packing speed per type on one thread, in GB/s of file bytes: first into fresh memory (as at a cold start,
// page faults included), then again into the same memory.
//   c++ -std=c++20 -O3 -Inative native/pack.cc native/tests/bench_pack.cc -o bench_pack
#include <chrono>
#include <cstdio>
#include <vector>

#include "pack.h"

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void measure(const char* name, int type, int64_t rows, int64_t columns) {
  const int64_t bytes = rows * stoker::ggml_row_bytes(type, columns);
  // Any byte below 0x7C gives finite f16 values.
  std::vector<uint8_t> raw(bytes);
  uint32_t state = 1;
  for (uint8_t& byte : raw) byte = (state = state * 1664525u + 1013904223u) >> 24 & 0x3B;
  double cold = 1e9, warm = 1e9;
  bool ok = true;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double t0 = seconds();
    stoker::PackedMatrix m = stoker::allocate_packed(type, rows, columns);
    ok &= stoker::pack_panels(m, type, raw.data(), 0, m.panels).ok;
    const double t1 = seconds();
    ok &= stoker::pack_panels(m, type, raw.data(), 0, m.panels).ok;
    const double t2 = seconds();
    cold = std::min(cold, t1 - t0);
    warm = std::min(warm, t2 - t1);
  }
  std::printf("%-7s %6.1f MB  fresh %6.2f GB/s  again %6.2f GB/s  %s\n", name, bytes / 1e6, bytes / cold / 1e9,
              bytes / warm / 1e9, ok ? "" : "BAD SCALE");
}

}  // namespace

int main() {
  const struct { const char* name; int type; } types[] = {
      {"F32", 0}, {"F16", 1}, {"BF16", 30}, {"Q4_0", 2}, {"Q4_1", 3}, {"Q5_0", 6}, {"Q5_1", 7}, {"Q8_0", 8},
      {"Q2_K", 10}, {"Q3_K", 11}, {"Q4_K", 12}, {"Q5_K", 13}, {"Q6_K", 14}, {"IQ4_NL", 20}};
  for (const auto& [name, type] : types) measure(name, type, 16384, 1536);
  return 0;
}
