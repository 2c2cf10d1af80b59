// Which kernel table this CPU gets.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1 << 20)
#endif
#endif

#include "kernel_table.h"

namespace stoker {
namespace {

std::vector<const KernelTable*> runnable_tables() {  // best first
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    tables.push_back(avx512_table());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    tables.push_back(avx2_table());
#elif defined(__aarch64__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) tables.push_back(neon_table());
#endif
  tables.push_back(scalar_table());
  return tables;
}

}  // namespace

const char* available_targets() {
  static const std::string names = [] {
    std::string all;
    for (const KernelTable* t : runnable_tables()) all += (all.empty() ? "" : ", ") + std::string(t->name);
    return all;
  }();
  return names.c_str();
}

const KernelTable* choose_table() {
  const std::vector<const KernelTable*> tables = runnable_tables();
  const char* wanted = std::getenv("STOKER_TARGET");
  if (!wanted || !*wanted) return tables.front();
  for (const KernelTable* t : tables)
    if (std::string(t->name) == wanted) return t;
  throw std::invalid_argument("STOKER_TARGET is '" + std::string(wanted) + "'; this CPU and build offer: " + available_targets());
}

}  // namespace stoker
