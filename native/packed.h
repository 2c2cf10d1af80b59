// Packed weight panels: the only layouts the kernels read. docs/concepts/packed-weights.md draws them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace stoker {

constexpr int kPanelRows = 16;     // one 512-bit register of 32-bit sums
constexpr int kBlockColumns = 32;  // one group of activations; one scale in GGUF's simple types
constexpr int kSuperColumns = 256; // K-quants' superblock

enum class Kind : uint8_t { quantised, f32, f16, bf16 };

// How a format's panels read; a frozen value chosen by ggml type.
struct Layout {
  Kind kind;
  uint8_t bits;      // 4, 5 or 8 (quantised only)
  uint8_t group;     // columns per scale: 16 or 32
  uint8_t offset;    // value = scale * (q - offset) + minimum
  bool has_min;
  bool two_level;    // scale = d * sc, minimum = -(dmin * mn), d and dmin per 256 columns
  bool signed_scale; // sc is int8 rather than uint8

  bool operator==(const Layout&) const = default;

  int quant_block_bytes() const { return bits == 4 ? 256 : bits == 5 ? 320 : 512; }
  // Bytes of the scale section for `columns` columns, before rounding up to 64.
  int64_t scale_bytes(int64_t columns) const {
    if (!two_level) return columns / kBlockColumns * (has_min ? 64 : 32);
    const int64_t per_group = kPanelRows * (has_min ? 2 : 1);
    return columns / kSuperColumns * (kPanelRows * 2 * (has_min ? 2 : 1) + per_group * (kSuperColumns / group));
  }
  int element_bytes() const { return kind == Kind::f32 ? 4 : 2; }  // float kinds only
};

// Layout of a ggml tensor type, or nullptr when the type is not supported.
const Layout* layout_of(int ggml_type);

// A weight matrix [rows, columns] as panels of 16 rows, 64-byte aligned. Shares the ownership of its memory:
// small matrices made one after the other lie in one chunk of huge pages.
struct PackedMatrix {
  Layout layout;
  int64_t rows = 0, columns = 0;
  int64_t panels = 0;         // ceil(rows / 16)
  int64_t scale_section = 0;  // bytes, multiple of 64; 0 for float kinds
  int64_t panel_bytes = 0;
  std::shared_ptr<uint8_t> data;

  int64_t bytes() const { return panels * panel_bytes; }
  const uint8_t* panel(int64_t p) const { return data.get() + p * panel_bytes; }
  uint8_t* panel(int64_t p) { return data.get() + p * panel_bytes; }
};

}  // namespace stoker
