#include "kv_cache.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace stoker {

KvCache::KvCache(KvType type, std::vector<KvLayerShape> layers, int64_t blocks) : type_(type), blocks_(blocks) {
  for (const KvLayerShape& shape : layers) {
    const int64_t head_bytes = head_block_bytes(type, shape.head_size);
    layers_.push_back({shape, head_bytes, block_bytes_ * blocks});
    block_bytes_ += head_bytes * shape.kv_heads;
  }
  mapped_bytes_ = block_bytes_ * blocks;
  if (mapped_bytes_ == 0) return;
  void* p = mmap(nullptr, (size_t)mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = (uint8_t*)p;
}

KvCache::~KvCache() {
  if (base_) munmap(base_, (size_t)mapped_bytes_);
}

void KvCache::copy_block(int64_t source, int64_t destination) {
  for (int l = 0; l < (int)layers_.size(); ++l)
    for (int h = 0; h < layers_[(size_t)l].shape.kv_heads; ++h)
      std::memcpy(head(l, destination, h), head(l, source, h), (size_t)layers_[(size_t)l].head_bytes);
}

void KvCache::read_block(int64_t block, uint8_t* out) const {
  for (int l = 0; l < (int)layers_.size(); ++l)
    for (int h = 0; h < layers_[(size_t)l].shape.kv_heads; ++h, out += head_bytes(l))
      std::memcpy(out, head(l, block, h), (size_t)head_bytes(l));
}

void KvCache::write_block(int64_t block, const uint8_t* bytes) {
  for (int l = 0; l < (int)layers_.size(); ++l)
    for (int h = 0; h < layers_[(size_t)l].shape.kv_heads; ++h, bytes += head_bytes(l))
      std::memcpy(head(l, block, h), bytes, (size_t)head_bytes(l));
}

}  // namespace stoker
