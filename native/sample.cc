#include "sample.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace stoker {

SampleMemory::~SampleMemory() { std::free(bytes_); }

SampleScratch& SampleMemory::reserve(int64_t vocabulary) {
  if (vocabulary <= scratch_.vocabulary) return scratch_;
  const int64_t padded = (vocabulary + 63) / 64 * 64 + 64;  // a block past the end for padding
  const int64_t blocks = padded / kSampleBlock + 16;
  const int64_t bytes = padded * (4 * 4 + 8 + 4) + blocks * 4 + kSampleDigits * 8;
  // calloc: `count` must start at zero, and untouched pages of a large allocation cost nothing.
  auto* p = static_cast<unsigned char*>(std::calloc(1, (size_t)bytes));
  if (!p) throw std::bad_alloc();
  std::free(bytes_);
  bytes_ = p;
  auto take = [&p](int64_t n) { auto* at = p; p += n; return at; };
  scratch_.mass = reinterpret_cast<uint64_t*>(take(padded * 8));
  scratch_.digit = reinterpret_cast<uint64_t*>(take(kSampleDigits * 8));
  scratch_.row = reinterpret_cast<float*>(take(padded * 4));
  scratch_.depth = reinterpret_cast<float*>(take(padded * 4));
  scratch_.distance = reinterpret_cast<float*>(take(padded * 4));
  scratch_.ids = reinterpret_cast<int32_t*>(take(padded * 4));
  scratch_.count = reinterpret_cast<uint32_t*>(take(padded * 4));
  scratch_.block_top = reinterpret_cast<float*>(take(blocks * 4));
  scratch_.vocabulary = vocabulary;
  return scratch_;
}

}  // namespace stoker
