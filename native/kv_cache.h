// The memory behind the block ids: keys and values of every layer, in blocks of 16 tokens.
// Python's BlockPool decides who owns which block; this only stores. Pages are touched when first written.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace stoker {

constexpr int kBlockTokens = 16;   // keys of a block fill the 16 lanes of one score vector
constexpr int kChunkTokens = 64;   // positions that share one softmax step (and one scale of probabilities)
constexpr int kSplitTokens = 512;  // positions a thread takes at a time in long contexts; fixed, so that E1 holds

enum class KvType : uint8_t { f16, int8 };

struct KvLayerShape {
  int kv_heads, head_size;
};

// Bytes of one head's part of one block.
//   int8: keys u8 (k + 128) [head_size/4][16 tokens][4] | values i8 [4 quads][head_size][4 tokens]
//         | key scales f32 [16] | value scales f32 [16]; keys and values are Hadamard-rotated
//   f16:  keys [head_size][16 tokens] | values [16 tokens][head_size]
inline int64_t head_block_bytes(KvType type, int head_size) {
  if (type == KvType::f16) return 64LL * head_size;
  return 32LL * head_size + 128;
}

class KvCache {
 public:
  // Reserves address space for `blocks` blocks; throws std::bad_alloc when even that is refused.
  KvCache(KvType type, std::vector<KvLayerShape> layers, int64_t blocks);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Head-major: consecutive blocks of one head lie side by side, so that attention streams through them.
  uint8_t* head(int layer, int64_t block, int kv_head) const {
    const Layer& l = layers_[(size_t)layer];
    return base_ + l.offset + (kv_head * blocks_ + block) * l.head_bytes;
  }
  int64_t head_bytes(int layer) const { return layers_[(size_t)layer].head_bytes; }
  void copy_block(int64_t source, int64_t destination);

  // One block as block_bytes() contiguous bytes: layer by layer, and in a layer head by head, each as it lies in memory.
  void read_block(int64_t block, uint8_t* out) const;
  void write_block(int64_t block, const uint8_t* bytes);

  KvType type() const { return type_; }
  int64_t blocks() const { return blocks_; }
  int64_t block_bytes() const { return block_bytes_; }

 private:
  struct Layer {
    KvLayerShape shape;
    int64_t head_bytes, offset;
  };
  KvType type_;
  std::vector<Layer> layers_;
  int64_t blocks_, block_bytes_ = 0, mapped_bytes_ = 0;
  uint8_t* base_ = nullptr;
};

}  // namespace stoker
