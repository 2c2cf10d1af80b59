// Memory the kernels like: on cache lines, and on huge pages where there is enough of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace stoker {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// `bytes` of memory on a boundary of 2 MiB, on huge pages where the kernel grants them; not touched yet.
// Throws std::bad_alloc.
std::shared_ptr<uint8_t> allocate_huge(int64_t bytes);

// The same on a boundary of 64 bytes; on huge pages when it fills one.
std::shared_ptr<uint8_t> allocate_aligned(int64_t bytes);

// A buffer that only grows and whose contents do not outlive growing. Starts on a cache line: a row of 16 floats
// that lies across two lines costs two accesses, and streaming stores need whole lines.
template <class T>
class GrowingArray {
 public:
  T* data() const { return reinterpret_cast<T*>(memory_.get()); }
  size_t size() const { return size_; }

  // The old memory goes first: two sizes at once could be 96 MB of logits. New elements are zero.
  void grow(size_t size) {
    if (size <= size_) return;
    memory_.reset(), size_ = 0;
    memory_ = allocate_aligned(static_cast<int64_t>(size * sizeof(T)));
    __builtin_memset(memory_.get(), 0, size * sizeof(T));
    size_ = size;
  }

 private:
  std::shared_ptr<uint8_t> memory_;
  size_t size_ = 0;
};

}  // namespace stoker
