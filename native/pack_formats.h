// How each GGUF type's blocks become the bytes of a panel. Included by pack.cc only.
//
// Packing is a transpose of 4-byte words: each row of a block gives 4 consecutive columns to each 64-byte
// vector. It is done for 4 rows x 16 columns at a time in 16-byte lanes, which every target has (SSE2, NEON)
// and the compiler's vector types reach without intrinsics; the same in plain 64-bit words was 1.5 to 2 times
// slower. Only shifts, masks and moves: the result does not depend on the machine.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>

#include "packed.h"

namespace stoker::packing {

constexpr Layout kFloat32{Kind::f32, 0, 0, 0, false, false, false};
constexpr Layout kFloat16{Kind::f16, 0, 0, 0, false, false, false};
constexpr Layout kBfloat16{Kind::bf16, 0, 0, 0, false, false, false};
//                                   bits group offset  min   two-level signed
constexpr Layout kLayoutQ4_0{Kind::quantised, 4, 32, 8, false, false, false};
constexpr Layout kLayoutQ4_1{Kind::quantised, 4, 32, 0, true, false, false};
constexpr Layout kLayoutQ5_0{Kind::quantised, 5, 32, 16, false, false, false};
constexpr Layout kLayoutQ5_1{Kind::quantised, 5, 32, 0, true, false, false};
constexpr Layout kLayoutQ8_0{Kind::quantised, 8, 32, 128, false, false, false};
constexpr Layout kLayoutQ2_K{Kind::quantised, 4, 16, 0, true, true, false};
constexpr Layout kLayoutQ3_K{Kind::quantised, 4, 16, 4, false, true, true};
constexpr Layout kLayoutQ4_K{Kind::quantised, 4, 32, 0, true, true, false};
constexpr Layout kLayoutQ5_K{Kind::quantised, 5, 32, 0, true, true, false};
constexpr Layout kLayoutQ6_K{Kind::quantised, 8, 16, 32, false, true, true};

constexpr int kMaskBytes = 64;  // of fifth bits, before the nibbles of a 5-bit block
constexpr int kStepRows = 4;    // rows packed together

// ---- words ---------------------------------------------------------------------------------------------

inline uint16_t load16(const uint8_t* p) { uint16_t v; std::memcpy(&v, p, 2); return v; }
inline uint32_t load32(const uint8_t* p) { uint32_t v; std::memcpy(&v, p, 4); return v; }
inline uint64_t load64(const uint8_t* p) { uint64_t v; std::memcpy(&v, p, 8); return v; }
inline void store32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, 4); }

using Lane = uint64_t __attribute__((vector_size(16)));
using Lane8 = uint8_t __attribute__((vector_size(16)));
using Lane16 = uint16_t __attribute__((vector_size(16)));
using Lane32 = uint32_t __attribute__((vector_size(16)));

constexpr uint64_t kLowNibbles = 0x0F0F0F0F0F0F0F0Full;
constexpr uint64_t kLowPairs = 0x0303030303030303ull;
constexpr uint64_t kLowBits = 0x0101010101010101ull;
constexpr uint64_t kSignBits = 0x8080808080808080ull;

inline Lane load_lane(const uint8_t* p) { Lane v; std::memcpy(&v, p, 16); return v; }
inline void store_lane(uint8_t* p, Lane v) { std::memcpy(p, &v, 16); }

// The same block of four rows that follow each other in the panel.
using Rows = const uint8_t* [kStepRows];

// Takes 16 columns of each of four rows, lane(row), to four vectors: `vectors` is the first one, at the
// first of the four rows; the others follow 64 bytes apart.
template <class LaneOfRow>
inline void store_columns(uint8_t* vectors, const Rows& rows, LaneOfRow lane) {
  const auto a = (Lane32)lane(rows[0]), b = (Lane32)lane(rows[1]);
  const auto c = (Lane32)lane(rows[2]), d = (Lane32)lane(rows[3]);
  const auto ab_low = (Lane)__builtin_shufflevector(a, b, 0, 4, 1, 5);   // a0 b0 | a1 b1
  const auto ab_high = (Lane)__builtin_shufflevector(a, b, 2, 6, 3, 7);  // a2 b2 | a3 b3
  const auto cd_low = (Lane)__builtin_shufflevector(c, d, 0, 4, 1, 5);
  const auto cd_high = (Lane)__builtin_shufflevector(c, d, 2, 6, 3, 7);
  store_lane(vectors, __builtin_shufflevector(ab_low, cd_low, 0, 2));
  store_lane(vectors + 64, __builtin_shufflevector(ab_low, cd_low, 1, 3));
  store_lane(vectors + 128, __builtin_shufflevector(ab_high, cd_high, 0, 2));
  store_lane(vectors + 192, __builtin_shufflevector(ab_high, cd_high, 1, 3));
}

// Takes 16 bytes of each of four rows, lane(row), to sixteen runs of 4 bytes; run i goes to place(i).
template <class LaneOfRow, class Place>
inline void store_scales(const Rows& rows, LaneOfRow lane, Place place) {
  const auto a = (Lane8)lane(rows[0]), b = (Lane8)lane(rows[1]);
  const auto c = (Lane8)lane(rows[2]), d = (Lane8)lane(rows[3]);
  const auto low = [](Lane8 x, Lane8 y) {
    return __builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  };
  const auto high = [](Lane8 x, Lane8 y) {
    return __builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  };
  const auto low16 = [](Lane8 x, Lane8 y) {
    return (Lane8)__builtin_shufflevector((Lane16)x, (Lane16)y, 0, 8, 1, 9, 2, 10, 3, 11);
  };
  const auto high16 = [](Lane8 x, Lane8 y) {
    return (Lane8)__builtin_shufflevector((Lane16)x, (Lane16)y, 4, 12, 5, 13, 6, 14, 7, 15);
  };
  const Lane8 quarters[4] = {low16(low(a, b), low(c, d)), high16(low(a, b), low(c, d)),
                             low16(high(a, b), high(c, d)), high16(high(a, b), high(c, d))};
  uint8_t bytes[64];
  std::memcpy(bytes, quarters, 64);
  for (int i = 0; i < 16; ++i) std::memcpy(place(i), bytes + 4 * i, 4);
}

// Copies the f16 at `offset` of each block; tells whether one is NaN or infinite.
inline bool copy_halves(uint8_t* to, const Rows& rows, int offset) {
  bool bad = false;
  for (int t = 0; t < kStepRows; ++t) {
    const uint16_t h = load16(rows[t] + offset);
    std::memcpy(to + 2 * t, &h, 2);
    bad |= (h & 0x7C00) == 0x7C00;
  }
  return bad;
}

// 8 rows of 8 bits, transposed: bit c of byte r becomes bit r of byte c.
inline uint64_t transpose_bits(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ull;
  return x ^ t ^ (t << 28);
}

// Fifth bits: high[r] holds bit 4 of the 32 columns of row r; mask s gets nibble s of every row, row r at 4r.
inline void store_masks(uint8_t* masks, const uint32_t* high) {
  for (int pair = 0; pair < kPanelRows / 2; ++pair) {
    const uint32_t a = high[2 * pair], b = high[2 * pair + 1];
    const uint32_t even = (a & 0x0F0F0F0Fu) | ((b & 0x0F0F0F0Fu) << 4);
    const uint32_t odd = ((a >> 4) & 0x0F0F0F0Fu) | (b & 0xF0F0F0F0u);
    for (int t = 0; t < 4; ++t) {
      masks[16 * t + pair] = static_cast<uint8_t>(even >> (8 * t));
      masks[16 * t + 8 + pair] = static_cast<uint8_t>(odd >> (8 * t));
    }
  }
}

// ---- formats -------------------------------------------------------------------------------------------
// Each format packs one unit (its own block of 32 or 256 columns) of four rows:
//   pack(blocks of the rows, first row in the panel, scales and quants of the unit, fifth bits) -> bad scale?
// kHalves are the offsets of the f16 values in the unit.

using FifthBits = uint32_t (*)[kPanelRows];  // [block of the unit][row in the panel]: bit k is column k's

template <int kHeader>
inline void pack_nibbles_32(const Rows& rows, int row, uint8_t* block) {
  // Byte e holds columns e and e + 16: already the pairing of the panel.
  store_columns(block + 4 * row, rows, [](const uint8_t* s) { return load_lane(s + kHeader); });
}

struct FormatQ4_0 {
  static constexpr const Layout& layout = kLayoutQ4_0;
  static constexpr int kColumns = 32, kBytes = 18;
  static constexpr std::array kHalves{0};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    pack_nibbles_32<2>(rows, row, quants);
    return copy_halves(scales + 2 * row, rows, 0);
  }
};

struct FormatQ4_1 {
  static constexpr const Layout& layout = kLayoutQ4_1;
  static constexpr int kColumns = 32, kBytes = 20;
  static constexpr std::array kHalves{0, 2};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    pack_nibbles_32<4>(rows, row, quants);
    return copy_halves(scales + 2 * row, rows, 0) | copy_halves(scales + 32 + 2 * row, rows, 2);
  }
};

struct FormatQ5_0 {
  static constexpr const Layout& layout = kLayoutQ5_0;
  static constexpr int kColumns = 32, kBytes = 22;
  static constexpr std::array kHalves{0};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits high) {
    for (int t = 0; t < kStepRows; ++t) high[0][row + t] = load32(rows[t] + 2);
    pack_nibbles_32<6>(rows, row, quants + kMaskBytes);
    return copy_halves(scales + 2 * row, rows, 0);
  }
};

struct FormatQ5_1 {
  static constexpr const Layout& layout = kLayoutQ5_1;
  static constexpr int kColumns = 32, kBytes = 24;
  static constexpr std::array kHalves{0, 2};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits high) {
    for (int t = 0; t < kStepRows; ++t) high[0][row + t] = load32(rows[t] + 4);
    pack_nibbles_32<8>(rows, row, quants + kMaskBytes);
    return copy_halves(scales + 2 * row, rows, 0) | copy_halves(scales + 32 + 2 * row, rows, 2);
  }
};

struct FormatQ8_0 {
  static constexpr const Layout& layout = kLayoutQ8_0;
  static constexpr int kColumns = 32, kBytes = 34;
  static constexpr std::array kHalves{0};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    for (int half = 0; half < 2; ++half)
      store_columns(quants + 256 * half + 4 * row, rows, [&](const uint8_t* s) {
        return load_lane(s + 2 + 16 * half) ^ kSignBits;  // flipping the sign bit adds 128
      });
    return copy_halves(scales + 2 * row, rows, 0);
  }
};

struct FormatIQ4_NL {
  static constexpr const Layout& layout = kLayoutQ8_0;
  static constexpr int kColumns = 32, kBytes = 18;
  static constexpr std::array kHalves{0};
  // The format's 16 values, plus 128.
  static constexpr uint8_t kValues[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                          129, 141, 153, 166, 181, 197, 217, 241};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    for (int t = 0; t < kStepRows; ++t) {
      for (int e = 0; e < 16; ++e) {
        const uint8_t pair = rows[t][2 + e];
        uint8_t* to = quants + 64 * (e / 4) + 4 * (row + t) + e % 4;
        to[0] = kValues[pair & 15];
        to[256] = kValues[pair >> 4];
      }
    }
    return copy_halves(scales + 2 * row, rows, 0);
  }
};

// Superblock with minimums in groups of 32: f16 d[16], f16 dmin[16], then per group sc[16], mn[16].
// The file has eight 6-bit scales and eight 6-bit minimums in 12 bytes (Q4_K, Q5_K).
inline void pack_scales_12(const Rows& rows, int row, uint8_t* scales) {
  const auto split = [](const uint8_t* block) {
    const uint32_t a = load32(block + 4), b = load32(block + 8), c = load32(block + 12);
    const uint32_t sc_high = (c & 0x0F0F0F0Fu) | ((a >> 2) & 0x30303030u);
    const uint32_t mn_high = ((c >> 4) & 0x0F0F0F0Fu) | ((b >> 2) & 0x30303030u);
    return Lane{(a & 0x3F3F3F3Fu) | static_cast<uint64_t>(sc_high) << 32,
                (b & 0x3F3F3F3Fu) | static_cast<uint64_t>(mn_high) << 32};
  };
  store_scales(rows, split, [&](int i) { return scales + 64 + 32 * (i % 8) + 16 * (i / 8) + row; });
}

// Bytes 32c .. 32c + 31 hold block 2c in the low and block 2c + 1 in the high nibbles.
template <int kHeader>
inline void pack_nibbles_256(const Rows& rows, int row, uint8_t* quants, int block_bytes) {
  for (int c = 0; c < 4; ++c) {
    uint8_t* to = quants + 2 * c * block_bytes + 4 * row;
    store_columns(to, rows, [&](const uint8_t* s) {
      return (load_lane(s + kHeader + 32 * c) & kLowNibbles) |
             ((load_lane(s + kHeader + 32 * c + 16) & kLowNibbles) << 4);
    });
    store_columns(to + block_bytes, rows, [&](const uint8_t* s) {
      return ((load_lane(s + kHeader + 32 * c) >> 4) & kLowNibbles) |
             (load_lane(s + kHeader + 32 * c + 16) & ~kLowNibbles);
    });
  }
}

struct FormatQ4_K {
  static constexpr const Layout& layout = kLayoutQ4_K;
  static constexpr int kColumns = 256, kBytes = 144;
  static constexpr std::array kHalves{0, 2};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    pack_nibbles_256<16>(rows, row, quants, layout.quant_block_bytes());
    pack_scales_12(rows, row, scales);
    return copy_halves(scales + 2 * row, rows, 0) | copy_halves(scales + 32 + 2 * row, rows, 2);
  }
};

struct FormatQ5_K {
  static constexpr const Layout& layout = kLayoutQ5_K;
  static constexpr int kColumns = 256, kBytes = 176;
  static constexpr std::array kHalves{0, 2};
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits high) {
    // Bit b of byte l is the fifth bit of column l of block b.
    for (int t = 0; t < kStepRows; ++t) {
      std::array<uint32_t, 8> bits{};
      for (int i = 0; i < 4; ++i) {
        const uint64_t columns = transpose_bits(load64(rows[t] + 16 + 8 * i));
        for (int b = 0; b < 8; ++b) bits[b] |= static_cast<uint32_t>((columns >> (8 * b)) & 0xFF) << (8 * i);
      }
      for (int b = 0; b < 8; ++b) high[b][row + t] = bits[b];
    }
    pack_nibbles_256<48>(rows, row, quants + kMaskBytes, layout.quant_block_bytes());
    pack_scales_12(rows, row, scales);
    return copy_halves(scales + 2 * row, rows, 0) | copy_halves(scales + 32 + 2 * row, rows, 2);
  }
};

struct FormatQ6_K {
  static constexpr const Layout& layout = kLayoutQ6_K;
  static constexpr int kColumns = 256, kBytes = 210;
  static constexpr std::array kHalves{208};
  // Block 4n + g, columns 16 * half ..: low nibbles (g < 2) or high ones of bytes 64n + 32 (g % 2), and two
  // more bits from field g of bytes 128 + 32n.
  template <int kGroup>
  static void pack_group(const Rows& rows, int row, int n, int half, uint8_t* quants) {
    constexpr int kNibbleShift = kGroup < 2 ? 0 : 4;
    store_columns(quants + (4 * n + kGroup) * 512 + 256 * half + 4 * row, rows, [&](const uint8_t* s) {
      const Lane low = load_lane(s + 64 * n + 32 * (kGroup % 2) + 16 * half) >> kNibbleShift;
      const Lane high = load_lane(s + 128 + 32 * n + 16 * half) >> (2 * kGroup);
      return (low & kLowNibbles) | ((high & kLowPairs) << 4);
    });
  }
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    for (int n = 0; n < 2; ++n) {
      for (int half = 0; half < 2; ++half) {
        pack_group<0>(rows, row, n, half, quants);
        pack_group<1>(rows, row, n, half, quants);
        pack_group<2>(rows, row, n, half, quants);
        pack_group<3>(rows, row, n, half, quants);
      }
    }
    store_scales(rows, [](const uint8_t* s) { return load_lane(s + 192); },
                 [&](int i) { return scales + 32 + 16 * i + row; });
    return copy_halves(scales + 2 * row, rows, 208);
  }
};

struct FormatQ2_K {
  static constexpr const Layout& layout = kLayoutQ2_K;
  static constexpr int kColumns = 256, kBytes = 84;
  static constexpr std::array kHalves{80, 82};
  // Bytes 16 + 32n .. hold blocks 4n .. 4n + 3, two bits each.
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    for (int n = 0; n < 2; ++n)
      for (int j = 0; j < 4; ++j)
        store_columns(quants + (4 * n + j) * 256 + 4 * row, rows, [&](const uint8_t* s) {
          return ((load_lane(s + 16 + 32 * n) >> (2 * j)) & kLowPairs) |
                 (((load_lane(s + 32 + 32 * n) >> (2 * j)) & kLowPairs) << 4);
        });
    store_scales(rows, [](const uint8_t* s) { return load_lane(s) & kLowNibbles; },
                 [&](int i) { return scales + 64 + 32 * i + row; });
    store_scales(rows, [](const uint8_t* s) { return (load_lane(s) >> 4) & kLowNibbles; },
                 [&](int i) { return scales + 64 + 32 * i + 16 + row; });
    return copy_halves(scales + 2 * row, rows, 80) | copy_halves(scales + 32 + 2 * row, rows, 82);
  }
};

struct FormatQ3_K {
  static constexpr const Layout& layout = kLayoutQ3_K;
  static constexpr int kColumns = 256, kBytes = 110;
  static constexpr std::array kHalves{108};

  // Sixteen 6-bit scales: 4 low bits in bytes 96 .., 2 high bits in bytes 104 ..; int8 after taking 32 off.
  static Lane scales_of(const uint8_t* block) {
    const uint64_t low = load64(block + 96);
    const uint64_t high = load32(block + 104);
    const auto fields = [&](int i) { return (high >> (2 * i)) & 0x03030303u; };
    const Lane sc = Lane{low & kLowNibbles, (low >> 4) & kLowNibbles} |
                    (Lane{fields(0) | fields(1) << 32, fields(2) | fields(3) << 32} << 4);
    // v - 32 for v < 64: bit 5 flips and then is the sign, so it fills bits 6 and 7.
    const Lane sign = (sc & 0x2020202020202020ull) ^ 0x2020202020202020ull;
    return (sc & 0x1F1F1F1F1F1F1F1Full) | sign | (sign << 1) | (sign << 2);
  }

  // As Q2_K, with bit 4n + j of bytes 0 .. 31 as the third bit of block 4n + j.
  static bool pack(const Rows& rows, int row, uint8_t* scales, uint8_t* quants, FifthBits) {
    for (int n = 0; n < 2; ++n) {
      for (int j = 0; j < 4; ++j) {
        const auto columns = [&](const uint8_t* s, int half) {
          return ((load_lane(s + 32 + 32 * n + 16 * half) >> (2 * j)) & kLowPairs) |
                 (((load_lane(s + 16 * half) >> (4 * n + j)) & kLowBits) << 2);
        };
        store_columns(quants + (4 * n + j) * 256 + 4 * row, rows,
                      [&](const uint8_t* s) { return columns(s, 0) | (columns(s, 1) << 4); });
      }
    }
    store_scales(rows, scales_of, [&](int i) { return scales + 32 + 16 * i + row; });
    return copy_halves(scales + 2 * row, rows, 108);
  }
};

}  // namespace stoker::packing
