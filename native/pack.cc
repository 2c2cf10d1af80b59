// The walk over panels; pack_formats.h has what is inside a block.
#include "pack.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "memory.h"
#include "pack_formats.h"

namespace stoker {
namespace {

using namespace packing;

static_assert(std::endian::native == std::endian::little, "GGUF words are read in place");

enum GgmlType : int {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8,
  kQ2_K = 10, kQ3_K = 11, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kIQ4_NL = 20, kBF16 = 30,
};

// ---- panels --------------------------------------------------------------------------------------------

// The first bad scale of a panel in row order; called only when there is one.
template <class Format>
PackResult find_bad_scale(const uint8_t* rows, int64_t row_bytes, int64_t first_row, int valid_rows) {
  for (int r = 0; r < valid_rows; ++r)
    for (int64_t u = 0; u < row_bytes / Format::kBytes; ++u)
      for (const int offset : Format::kHalves)
        if ((load16(rows + r * row_bytes + u * Format::kBytes + offset) & 0x7C00) == 0x7C00)
          return {false, first_row + r, u * Format::kColumns};
  return {};
}

// Rows of a panel that the matrix does not have: every byte of theirs becomes zero, as in the twin.
void clear_missing_rows(const PackedMatrix& m, uint8_t* panel, int valid_rows) {
  const Layout& layout = m.layout;
  const auto clear = [&](uint8_t* field, int row_bytes) {
    std::memset(field + valid_rows * row_bytes, 0, (kPanelRows - valid_rows) * row_bytes);
  };
  const int64_t unit_columns = layout.two_level ? kSuperColumns : kBlockColumns;
  const int parts = layout.has_min ? 2 : 1;
  for (int64_t u = 0; u < m.columns / unit_columns; ++u) {
    uint8_t* scales = panel + u * layout.scale_bytes(unit_columns);
    for (int i = 0; i < parts; ++i) clear(scales + 32 * i, 2);
    if (layout.two_level)
      for (int i = 0; i < parts * kSuperColumns / layout.group; ++i) clear(scales + 32 * parts + 16 * i, 1);
  }
  for (int64_t b = 0; b < m.columns / kBlockColumns; ++b) {
    uint8_t* block = panel + m.scale_section + b * layout.quant_block_bytes();
    uint8_t* vectors = block + (layout.bits == 5 ? kMaskBytes : 0);
    for (int v = 0; v < (layout.bits == 8 ? 8 : 4); ++v) clear(vectors + 64 * v, 4);
    if (layout.bits == 5)
      for (int s = 0; s < 8; ++s) {
        const uint64_t mask = load64(block + 8 * s) & ((uint64_t{1} << (4 * valid_rows)) - 1);
        std::memcpy(block + 8 * s, &mask, 8);
      }
  }
}

template <class Format>
PackResult pack_quantised(PackedMatrix& m, const uint8_t* raw, int64_t panel_begin, int64_t panel_end) {
  constexpr int kBlocks = Format::kColumns / kBlockColumns;
  constexpr bool kFifthBits = Format::layout.bits == 5;
  const int64_t units = m.columns / Format::kColumns, row_bytes = units * Format::kBytes;
  const int64_t scale_bytes = Format::layout.scale_bytes(Format::kColumns);
  const int64_t quant_bytes = kBlocks * Format::layout.quant_block_bytes();
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    uint8_t* panel = m.panel(p);
    const uint8_t* rows = raw + p * kPanelRows * row_bytes;
    const int valid_rows = static_cast<int>(std::min<int64_t>(kPanelRows, m.rows - p * kPanelRows));
    bool bad = false;
    uint32_t high[kBlocks][kPanelRows];
    for (int64_t u = 0; u < units; ++u) {
      uint8_t* scales = panel + u * scale_bytes;
      uint8_t* quants = panel + m.scale_section + u * quant_bytes;
      for (int r = 0; r < kPanelRows; r += kStepRows) {
        Rows blocks;
        for (int t = 0; t < kStepRows; ++t)  // a missing row reads the last one again and is cleared below
          blocks[t] = rows + std::min(r + t, valid_rows - 1) * row_bytes + u * Format::kBytes;
        bad |= Format::pack(blocks, r, scales, quants, high);
      }
      if constexpr (kFifthBits)
        for (int b = 0; b < kBlocks; ++b) store_masks(quants + b * Format::layout.quant_block_bytes(), high[b]);
    }
    std::memset(panel + units * scale_bytes, 0, m.scale_section - units * scale_bytes);
    if (valid_rows < kPanelRows) clear_missing_rows(m, panel, valid_rows);
    if (bad) return find_bad_scale<Format>(rows, row_bytes, p * kPanelRows, valid_rows);
  }
  return {};
}

template <class Element>
PackResult pack_float(PackedMatrix& m, const uint8_t* raw, int64_t panel_begin, int64_t panel_end) {
  constexpr int64_t kSize = sizeof(Element);
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    uint8_t* panel = m.panel(p);
    const uint8_t* rows = raw + p * kPanelRows * m.columns * kSize;
    const int valid_rows = static_cast<int>(std::min<int64_t>(kPanelRows, m.rows - p * kPanelRows));
    if (valid_rows < kPanelRows) std::memset(panel, 0, m.panel_bytes);
    for (int64_t k = 0; k < m.columns; ++k)
      for (int r = 0; r < valid_rows; ++r)
        std::memcpy(panel + (k * kPanelRows + r) * kSize, rows + (r * m.columns + k) * kSize, kSize);
    const int64_t used = m.columns * kPanelRows * kSize;
    std::memset(panel + used, 0, m.panel_bytes - used);
  }
  return {};
}

// ---- back to float32 -----------------------------------------------------------------------------------

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31, fraction = h & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t bits = exponent == 31 ? 0x7F800000u : (exponent + 112) << 23;
  return std::bit_cast<float>(sign | bits | fraction << 13);
}

struct ScaleAndMinimum { float scale, minimum; };

// Of the group that starts at `column`, for one row of a panel.
ScaleAndMinimum read_scale(const Layout& layout, const uint8_t* scales, int row, int64_t column) {
  const int parts = layout.has_min ? 2 : 1;
  if (!layout.two_level) {
    const uint8_t* block = scales + column / kBlockColumns * 32 * parts;
    return {half_to_float(load16(block + 2 * row)),
            layout.has_min ? half_to_float(load16(block + 32 + 2 * row)) : 0.0f};
  }
  const uint8_t* super = scales + column / kSuperColumns * layout.scale_bytes(kSuperColumns);
  const uint8_t* group = super + 32 * parts + column % kSuperColumns / layout.group * 16 * parts;
  const int sc = layout.signed_scale ? static_cast<int8_t>(group[row]) : group[row];
  const float scale = half_to_float(load16(super + 2 * row)) * static_cast<float>(sc);
  if (!layout.has_min) return {scale, 0.0f};
  return {scale, -(half_to_float(load16(super + 32 + 2 * row)) * static_cast<float>(group[16 + row]))};
}

// Quants of one row and one block of 32 columns.
void read_quants(const Layout& layout, const uint8_t* block, int row, uint8_t* out) {
  if (layout.bits == 8) {
    for (int s = 0; s < 8; ++s) std::memcpy(out + 4 * s, block + 64 * s + 4 * row, 4);
    return;
  }
  const uint8_t* nibbles = block + (layout.bits == 5 ? kMaskBytes : 0);
  for (int v = 0; v < 4; ++v) {
    const uint32_t word = load32(nibbles + 64 * v + 4 * row);
    store32(out + 4 * v, word & 0x0F0F0F0Fu);
    store32(out + 16 + 4 * v, (word >> 4) & 0x0F0F0F0Fu);
  }
  if (layout.bits == 5)
    for (int s = 0; s < 8; ++s) {
      const uint64_t bits = load64(block + 8 * s) >> (4 * row);
      for (int j = 0; j < 4; ++j) out[4 * s + j] |= static_cast<uint8_t>(((bits >> j) & 1) << 4);
    }
}

// One quant: column k (0..31) of one row of a block.
int read_quant(const Layout& layout, const uint8_t* block, int row, int k) {
  const int step = k / 4, byte = 4 * row + k % 4;
  if (layout.bits == 8) return block[64 * step + byte];
  const uint8_t* nibbles = block + (layout.bits == 5 ? kMaskBytes : 0);
  const uint8_t both = nibbles[64 * (step % 4) + byte];
  const int low = step < 4 ? both & 15 : both >> 4;
  return layout.bits == 4 ? low : low | static_cast<int>(load64(block + 8 * step) >> byte & 1) << 4;
}

// Exact whether or not the compiler contracts a * b + c: with a minimum, scale (<= 17 bits) times quant
// (<= 5 bits) has no rounding, so there is only that of the sum; without one there is no sum.
void unpack_quantised_row(const PackedMatrix& m, const uint8_t* panel, int row, float* out) {
  const Layout& layout = m.layout;
  std::array<uint8_t, kBlockColumns> quants;
  for (int64_t b = 0; b < m.columns / kBlockColumns; ++b) {
    read_quants(layout, panel + m.scale_section + b * layout.quant_block_bytes(), row, quants.data());
    for (int first = 0; first < kBlockColumns; first += layout.group) {
      const int64_t column = b * kBlockColumns + first;
      const auto [scale, minimum] = read_scale(layout, panel, row, column);
      for (int k = 0; k < layout.group; ++k) {
        const float value = scale * static_cast<float>(quants[first + k] - layout.offset);
        // No "+ 0" without a minimum: it would turn -0 into +0.
        out[column + k] = layout.has_min ? value + minimum : value;
      }
    }
  }
}

void unpack_float_row(const PackedMatrix& m, const uint8_t* panel, int row, float* out) {
  const int size = m.layout.element_bytes();
  for (int64_t k = 0; k < m.columns; ++k) {
    const uint8_t* element = panel + (k * kPanelRows + row) * size;
    if (m.layout.kind == Kind::f32) out[k] = std::bit_cast<float>(load32(element));
    else if (m.layout.kind == Kind::f16) out[k] = half_to_float(load16(element));
    else out[k] = std::bit_cast<float>(static_cast<uint32_t>(load16(element)) << 16);
  }
}

// ---- geometry ------------------------------------------------------------------------------------------

struct BlockSize { int columns, bytes; };

BlockSize block_size(int ggml_type) {
  switch (ggml_type) {
    case kF32: return {1, 4};
    case kF16: case kBF16: return {1, 2};
    case kQ4_0: case kIQ4_NL: return {32, 18};
    case kQ4_1: return {32, 20};
    case kQ5_0: return {32, 22};
    case kQ5_1: return {32, 24};
    case kQ8_0: return {32, 34};
    case kQ2_K: return {256, 84};
    case kQ3_K: return {256, 110};
    case kQ4_K: return {256, 144};
    case kQ5_K: return {256, 176};
    case kQ6_K: return {256, 210};
    default:
      throw std::invalid_argument("ggml type " + std::to_string(ggml_type) +
                                  " is not supported; supported: F32 0, F16 1, Q4_0 2, Q4_1 3, Q5_0 6, Q5_1 7, "
                                  "Q8_0 8, Q2_K 10, Q3_K 11, Q4_K 12, Q5_K 13, Q6_K 14, IQ4_NL 20, BF16 30");
  }
}

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// ---- memory --------------------------------------------------------------------------------------------

// Most matrices of a small model are below 2 MiB and would get no huge page of their own, so those that are
// made one after the other share chunks. A chunk lives as long as any matrix in it: a model is freed whole.
// What a chunk has not handed out is never touched and costs address space only.
class ChunkedMemory {
 public:
  std::shared_ptr<uint8_t> allocate(int64_t bytes) {
    if (bytes > kChunk / 4) return allocate_huge(bytes);
    const std::lock_guard lock(mutex_);
    std::shared_ptr<uint8_t> chunk = current_.lock();
    if (chunk == nullptr || used_ + bytes > kChunk) {
      chunk = allocate_huge(kChunk);
      current_ = chunk;
      used_ = 0;
    }
    uint8_t* start = chunk.get() + used_;
    used_ += bytes;  // panels are multiples of 64 bytes, so the next matrix is aligned as well
    return {std::move(chunk), start};
  }

 private:
  static constexpr int64_t kChunk = 16 * kHugePageBytes;
  std::mutex mutex_;
  std::weak_ptr<uint8_t> current_;
  int64_t used_ = 0;  // bytes of current_ handed out
};

}  // namespace

// ---- public --------------------------------------------------------------------------------------------

const Layout* layout_of(int ggml_type) {
  switch (ggml_type) {
    case kF32: return &kFloat32;
    case kF16: return &kFloat16;
    case kBF16: return &kBfloat16;
    case kQ4_0: return &kLayoutQ4_0;
    case kQ4_1: return &kLayoutQ4_1;
    case kQ5_0: return &kLayoutQ5_0;
    case kQ5_1: return &kLayoutQ5_1;
    case kQ8_0: case kIQ4_NL: return &kLayoutQ8_0;
    case kQ2_K: return &kLayoutQ2_K;
    case kQ3_K: return &kLayoutQ3_K;
    case kQ4_K: return &kLayoutQ4_K;
    case kQ5_K: return &kLayoutQ5_K;
    case kQ6_K: return &kLayoutQ6_K;
    default: return nullptr;
  }
}

int64_t ggml_row_bytes(int ggml_type, int64_t columns) {
  const BlockSize block = block_size(ggml_type);
  int64_t bytes = 0;
  if (columns < 1 || columns % block.columns != 0 ||
      __builtin_mul_overflow(columns / block.columns, int64_t{block.bytes}, &bytes))
    throw std::invalid_argument("a row of ggml type " + std::to_string(ggml_type) + " has " +
                                std::to_string(columns) + " columns; it needs a positive multiple of " +
                                std::to_string(block.columns));
  return bytes;
}

int64_t ggml_tensor_bytes(int ggml_type, int64_t rows, int64_t columns) {
  // Far above any real matrix, and low enough that no size of a single panel overflows.
  constexpr int64_t kLargest = int64_t{1} << 31;
  const int64_t row_bytes = ggml_row_bytes(ggml_type, columns);
  int64_t bytes = 0;
  if (rows < 1 || rows > kLargest || columns > kLargest || __builtin_mul_overflow(rows, row_bytes, &bytes))
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) +
                                " cannot be packed; rows and columns must be 1 .. 2147483648");
  return bytes;
}

PackedMatrix allocate_packed(int ggml_type, int64_t rows, int64_t columns) {
  (void)ggml_tensor_bytes(ggml_type, rows, columns);
  PackedMatrix m;
  m.layout = *layout_of(ggml_type);
  m.rows = rows;
  m.columns = columns;
  m.panels = (rows + kPanelRows - 1) / kPanelRows;
  if (m.layout.kind == Kind::quantised) {
    m.scale_section = align64(m.layout.scale_bytes(columns));
    m.panel_bytes = m.scale_section + columns / kBlockColumns * m.layout.quant_block_bytes();
  } else {
    m.panel_bytes = align64(columns * kPanelRows * m.layout.element_bytes());
  }
  int64_t total = 0;
  if (__builtin_mul_overflow(m.panels, m.panel_bytes, &total)) throw std::bad_alloc();
  static ChunkedMemory memory;
  m.data = memory.allocate(total);
  return m;
}

PackResult pack_panels(PackedMatrix& m, int ggml_type, const uint8_t* raw, int64_t panel_begin,
                       int64_t panel_end) {
  const Layout* layout = layout_of(ggml_type);
  if (layout == nullptr || *layout != m.layout)
    throw std::invalid_argument("the matrix was not allocated for ggml type " + std::to_string(ggml_type));
  if (panel_begin < 0 || panel_end < panel_begin || panel_end > m.panels)
    throw std::invalid_argument("panels " + std::to_string(panel_begin) + " .. " + std::to_string(panel_end) +
                                " lie outside the matrix's " + std::to_string(m.panels));
  switch (ggml_type) {
    case kF32: return pack_float<uint32_t>(m, raw, panel_begin, panel_end);
    case kF16: case kBF16: return pack_float<uint16_t>(m, raw, panel_begin, panel_end);
    case kQ4_0: return pack_quantised<FormatQ4_0>(m, raw, panel_begin, panel_end);
    case kQ4_1: return pack_quantised<FormatQ4_1>(m, raw, panel_begin, panel_end);
    case kQ5_0: return pack_quantised<FormatQ5_0>(m, raw, panel_begin, panel_end);
    case kQ5_1: return pack_quantised<FormatQ5_1>(m, raw, panel_begin, panel_end);
    case kQ8_0: return pack_quantised<FormatQ8_0>(m, raw, panel_begin, panel_end);
    case kIQ4_NL: return pack_quantised<FormatIQ4_NL>(m, raw, panel_begin, panel_end);
    case kQ2_K: return pack_quantised<FormatQ2_K>(m, raw, panel_begin, panel_end);
    case kQ3_K: return pack_quantised<FormatQ3_K>(m, raw, panel_begin, panel_end);
    case kQ4_K: return pack_quantised<FormatQ4_K>(m, raw, panel_begin, panel_end);
    case kQ5_K: return pack_quantised<FormatQ5_K>(m, raw, panel_begin, panel_end);
    default: return pack_quantised<FormatQ6_K>(m, raw, panel_begin, panel_end);
  }
}

void unpack_rows(const PackedMatrix& m, int64_t row_begin, int64_t row_end, float* out) {
  if (row_begin < 0 || row_end < row_begin || row_end > m.rows)
    throw std::invalid_argument("rows " + std::to_string(row_begin) + " .. " + std::to_string(row_end) +
                                " lie outside the matrix's " + std::to_string(m.rows));
  for (int64_t row = row_begin; row < row_end; ++row, out += m.columns) {
    const uint8_t* panel = m.panel(row / kPanelRows);
    const int in_panel = static_cast<int>(row % kPanelRows);
    if (m.layout.kind == Kind::quantised) unpack_quantised_row(m, panel, in_panel, out);
    else unpack_float_row(m, panel, in_panel, out);
  }
}

float packed_element(const PackedMatrix& m, int64_t row, int64_t column) {
  const uint8_t* panel = m.panel(row / kPanelRows);
  const int in_panel = static_cast<int>(row % kPanelRows);
  const Layout& layout = m.layout;
  if (layout.kind != Kind::quantised) {
    const uint8_t* element = panel + (column * kPanelRows + in_panel) * layout.element_bytes();
    if (layout.kind == Kind::f32) return std::bit_cast<float>(load32(element));
    if (layout.kind == Kind::f16) return half_to_float(load16(element));
    return std::bit_cast<float>(static_cast<uint32_t>(load16(element)) << 16);
  }
  const int quant = read_quant(layout, panel + m.scale_section + column / kBlockColumns * layout.quant_block_bytes(),
                               in_panel, static_cast<int>(column % kBlockColumns));
  const auto [scale, minimum] = read_scale(layout, panel, in_panel, column / layout.group * layout.group);
  const float value = scale * static_cast<float>(quant - layout.offset);
  return layout.has_min ? value + minimum : value;
}

}  // namespace stoker
