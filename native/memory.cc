#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace stoker {
namespace {

std::shared_ptr<uint8_t> allocate_on(int64_t boundary, int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, static_cast<size_t>(boundary), static_cast<size_t>(bytes)) != 0) throw std::bad_alloc();
  return {static_cast<uint8_t*>(memory), [](uint8_t* p) { std::free(p); }};
}

}  // namespace

// Kernels read weights front to back at memory speed: measured 25 GB/s on huge pages against 20 on 4 kB ones, and a
// first touch of 98 MB 9 ms against 40.
std::shared_ptr<uint8_t> allocate_huge(int64_t bytes) {
  std::shared_ptr<uint8_t> memory = allocate_on(kHugePageBytes, bytes);
#ifdef MADV_HUGEPAGE
  // Advice only: a kernel without huge pages refuses it and the memory is as good, so the answer is not read.
  // A last, partial page stays small so that it costs no more than it holds.
  (void)madvise(memory.get(), static_cast<size_t>(bytes / kHugePageBytes * kHugePageBytes), MADV_HUGEPAGE);
#endif
  return memory;
}

std::shared_ptr<uint8_t> allocate_aligned(int64_t bytes) {
  return bytes >= kHugePageBytes ? allocate_huge(bytes) : allocate_on(64, bytes);
}

}  // namespace stoker
