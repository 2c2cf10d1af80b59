// Linear layers on packed panels (docs/concepts/packed-weights.md). One tile = 16 rows x up to kTokenTile
// tokens whose float sums stay in registers; per block of 32 columns the panel is unpacked once, each token
// takes 8 byte dots, and one multiply-add puts the exact integer sum on the float sum:
//   acc = fma(float(sum), scale_w * scale_x, acc); with a minimum also acc = fma(minimum, scaled_sum_x, acc)
// in block order. A token's bits depend on its own activations and the panel only.

template <int BITS, int GROUP, bool MIN, bool TWO>
struct PanelReader {
  static constexpr int kGroups = 32 / GROUP;  // scale groups per block of 32 columns
  static constexpr int kBlockBytes = BITS == 4 ? 256 : BITS == 5 ? 320 : 512;
  static constexpr int kScaleStep = TWO ? kGroups * 16 * (MIN ? 2 : 1) : (MIN ? 64 : 32);
  static constexpr int kHeader = TWO ? (MIN ? 64 : 32) : 0;

  const uint8_t* scales;
  const uint8_t* quants;
  F32 d{}, dmin{};                      // two-level: the superblock's
  F32 scale[kGroups], minimum[kGroups]; // of the current block
  U8x64 w[8];                           // of the current block: 4 columns of 16 rows each

  PanelReader(const PackedMatrix& m, int64_t panel)
      : scales(m.panel(panel)), quants(m.panel(panel) + m.scale_section) {}

  inline void next(int64_t block) {
    if constexpr (TWO) {
      if (block % 8 == 0) {
        d = load_f16((const uint16_t*)scales);
        if constexpr (MIN) dmin = load_f16((const uint16_t*)(scales + 32));
        scales += kHeader;
      }
      for (int g = 0; g < kGroups; ++g) {
        const uint8_t* p = scales + g * (MIN ? 32 : 16);
        if constexpr (MIN) {
          scale[g] = d * to_f32(load_u8(p));
          minimum[g] = zero_f32() - dmin * to_f32(load_u8(p + 16));
        } else {
          scale[g] = d * to_f32(load_i8((const int8_t*)p));
        }
      }
    } else {
      scale[0] = load_f16((const uint16_t*)scales);
      if constexpr (MIN) minimum[0] = load_f16((const uint16_t*)(scales + 32));
    }
    scales += kScaleStep;
    const uint8_t* nibbles = BITS == 5 ? quants + 64 : quants;
    if constexpr (BITS == 8) {
      for (int s = 0; s < 8; ++s) w[s] = load_bytes(quants + 64 * s);
    } else {
      for (int v = 0; v < 4; ++v) {
        const U8x64 both = load_bytes(nibbles + 64 * v);
        w[v] = low_nibbles(both);
        w[v + 4] = high_nibbles(both);
      }
      if constexpr (BITS == 5) {
        for (int s = 0; s < 8; ++s) {
          uint64_t set;
          __builtin_memcpy(&set, quants + 8 * s, 8);
          w[s] = with_bit4(w[s], set);
        }
      }
    }
    quants += kBlockBytes;
  }
};

// What a panel's sums start from: 0, or the outlier columns in float32, in column order.
struct Outliers {
  int count;
  const float* weights;  // [count][16], this panel's
  const float* values;   // [tokens of the tile][count]
  inline F32 start(int token) const {
    F32 sum = zero_f32();
    for (int i = 0; i < count; ++i) sum = fma(load(weights + 16 * i), set1(values[token * count + i]), sum);
    return sum;
  }
};

constexpr int64_t kAheadBytes = 10240;  // 5 and 20 KB are as good on Zen 4, 2.5 KB is not

// Sums of `tokens` (<= NT; the rest computes on stale slots) tile-local tokens from `first` into acc[NT].
template <int BITS, int GROUP, bool MIN, bool TWO, int NT>
inline void tile_sums(const PackedMatrix& m, int64_t panel, const QuantisedTile& x, int first, int tokens, const uint8_t* cold_end, const Outliers& outliers, F32* out) {
  using Reader = PanelReader<BITS, GROUP, MIN, TWO>;
  Reader reader(m, panel);
  const int64_t blocks = m.columns / 32;
  // A panel met for the first time is fetched kAheadBytes ahead, block by block, up to cold_end (null: it is warm):
  // enough to cover DRAM latency at one core's share of the bandwidth (measured on a Zen 5 prototype: 16 tokens
  // 4.9 -> 3.0 ms for all layers of SmolLM2).
  const uint8_t* ahead = m.panel(panel) + kAheadBytes;
  const int64_t share = (m.panel_bytes + blocks - 1) / blocks;
  const int offset = m.layout.offset - (BITS == 8 ? kByteBias : 0);
  // Every loop over acc is unrolled whole: indexed by a variable even once, gcc keeps a copy of it in memory and
  // stores to it in every block.
  F32 acc[NT];
#pragma GCC unroll 16
  for (int t = 0; t < NT; ++t) acc[t] = outliers.start(t < tokens ? first + t : first);
  for (int64_t b = 0; b < blocks; ++b) {
    if (ahead + b * share < cold_end)
      for (int64_t i = 0; i < share; i += 64) prefetch(ahead + b * share + i);
    reader.next(b);
    const int64_t at = b * 16 + first;
    const int8_t* q = x.q + at * 32;
    // -offset * sum of every token and group, to start the dots from. Through memory, for the dots' first operand then
    // is a broadcast load and costs the vector units nothing; the asm keeps gcc from making shuffles of it.
    alignas(64) int32_t start[16 * Reader::kGroups];
    if constexpr (!MIN) {
      const int32_t* sum = Reader::kGroups == 1 ? x.sum + at : x.half_sum + 2 * at;
      for (int i = 0; i < Reader::kGroups * NT; ++i) start[i] = -offset * sum[i];
      asm("" : "+m"(start));
    }
#pragma GCC unroll 16
    for (int t = 0; t < NT; ++t) {
      const int8_t* a = q + t * 32;
#pragma GCC unroll 2
      for (int g = 0; g < Reader::kGroups; ++g) {
        I32 s = MIN ? zero_i32() : broadcast(start + Reader::kGroups * t + g);
#pragma GCC unroll 8
        for (int k = 0; k < GROUP / 8; ++k) {
          const int step = g * (GROUP / 4) + k;
          s = BITS == 8 ? dot4_full(s, reader.w[step], a + 4 * step) : dot4(s, reader.w[step], a + 4 * step);
        }
        I32 s2 = zero_i32();
#pragma GCC unroll 8
        for (int k = GROUP / 8; k < GROUP / 4; ++k) {
          const int step = g * (GROUP / 4) + k;
          s2 = BITS == 8 ? dot4_full(s2, reader.w[step], a + 4 * step) : dot4(s2, reader.w[step], a + 4 * step);
        }
        s = s + s2;
        acc[t] = fma(to_f32(s), reader.scale[g] * set1(x.scale[at + t]), acc[t]);
        if constexpr (MIN) {
          const float scaled = Reader::kGroups == 1 ? x.scaled_sum[at + t] : x.scale[at + t] * (float)x.half_sum[2 * (at + t) + g];
          acc[t] = fma(reader.minimum[g], set1(scaled), acc[t]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < NT; ++t) out[t] = acc[t];
}

// Sums of up to 16 tokens of one tile; count is rounded up to the nearest compiled width.
template <int BITS, int GROUP, bool MIN, bool TWO>
inline void panel_sums(const PackedMatrix& m, int64_t panel, const QuantisedTile& x, int count, const uint8_t* cold_end, const Outliers& outliers, F32* out) {
#define STOKER_TILE(n) tile_sums<BITS, GROUP, MIN, TWO, n>(m, panel, x, first, left, cold_end, outliers, out + first)
  for (int first = 0; first < count; first += kTokenTile, cold_end = nullptr) {
    const int left = count - first;
    if constexpr (kTokenTile == 16) {
      if (left == 1) STOKER_TILE(1);
      else if (left == 2) STOKER_TILE(2);
      else if (left <= 4) STOKER_TILE(4);
      else if (left <= 6) STOKER_TILE(6);  // a draft of four or five: 0.9 of the time of 8
      else if (left <= 8) STOKER_TILE(8);
      else if (left <= 12) STOKER_TILE(12);
      else STOKER_TILE(16);
    } else {
      if (left == 1) STOKER_TILE(1);
      else if (left == 2) STOKER_TILE(2);
      else STOKER_TILE(4);
    }
  }
#undef STOKER_TILE
}

using PanelSums = void (*)(const PackedMatrix&, int64_t, const QuantisedTile&, int, const uint8_t*, const Outliers&, F32*);

inline PanelSums panel_sums_for(const Layout& l) {
  if (!l.two_level) {
    if (l.bits == 4) return l.has_min ? panel_sums<4, 32, true, false> : panel_sums<4, 32, false, false>;
    if (l.bits == 5) return l.has_min ? panel_sums<5, 32, true, false> : panel_sums<5, 32, false, false>;
    return panel_sums<8, 32, false, false>;
  }
  if (l.group == 32) return l.bits == 4 ? panel_sums<4, 32, true, true> : panel_sums<5, 32, true, true>;
  if (l.bits == 4) return l.has_min ? panel_sums<4, 16, true, true> : panel_sums<4, 16, false, true>;
  return panel_sums<8, 16, false, true>;
}

// Large results (logits) are stored past the caches. Their rows lie 192 KB or 1 MB apart, so that one panel's lines for
// 16 tokens fall into the same few sets of every cache and would be fetched, evicted and fetched again: measured 1.4
// times the time of the whole layer for Gemma's 262 144 rows and 32 tokens.
inline bool streams(const LinearTask& task) {
  constexpr int64_t kLargeBytes = 4 << 20;  // more than a core's own caches hold
  return !task.add && task.out_stride % 16 == 0 && (uintptr_t)task.out % 64 == 0 &&
         task.tokens * task.out_stride * (int64_t)sizeof(float) >= kLargeBytes;
}

// Row range of a panel's 16 lanes into out[t], honouring bias, add, and a last panel that is not full.
inline void store_panel(const LinearTask& task, int64_t panel, int64_t token, F32 sums, bool past_caches) {
  const int64_t row = panel * 16, left = task.weight->rows - row;
  float* out = task.out + token * task.out_stride + row;
  if (left >= 16) {
    if (task.bias) sums = sums + load(task.bias + row);
    if (past_caches) stream(out, sums);
    else store(out, task.add ? load(out) + sums : sums);
    return;
  }
  alignas(64) float lanes[16];
  store(lanes, sums);
  for (int64_t r = 0; r < left; ++r) {
    const float v = task.bias ? lanes[r] + task.bias[row + r] : lanes[r];
    out[r] = task.add ? out[r] + v : v;
  }
}

inline Outliers outliers_of(const LinearTask& task, const float* weights, int64_t panel, int64_t token) {
  const int n = task.x.outliers;
  return {n, weights + panel * n * 16, task.x.outlier_values + token * n};
}

void linear_quantised(const LinearTask& task, int64_t panel_begin, int64_t panel_end) {
  const PanelSums sums_of = panel_sums_for(task.weight->layout);
  const bool past_caches = streams(task);
  F32 sums[16];
  for (int64_t p = panel_begin; p < panel_end; ++p)
    for (int64_t t = 0; t < task.tokens; t += 16) {
      const int count = (int)(task.tokens - t < 16 ? task.tokens - t : 16);
      sums_of(*task.weight, p, tile_of(task.x, t / 16), count, t == 0 ? task.weight->panel(task.weight->panels) : nullptr,
              outliers_of(task, task.outlier_weights, p, t), sums);
      for (int i = 0; i < count; ++i) store_panel(task, p, t + i, sums[i], past_caches);
    }
  if (past_caches) stream_end();
}

// activation(gate) * up, 32 rows at a time so that a whole group can be quantised where it is.
void linear_gated(const LinearTask& task, int64_t pair_begin, int64_t pair_end) {
  const PanelSums gate_of = panel_sums_for(task.weight->layout), up_of = panel_sums_for(task.up->layout);
  F32 gate[2][16], up[16];
  for (int64_t pair = pair_begin; pair < pair_end; ++pair)
    for (int64_t t = 0; t < task.tokens; t += 16) {
      const int count = (int)(task.tokens - t < 16 ? task.tokens - t : 16);
      const QuantisedTile x = tile_of(task.x, t / 16);
      for (int half = 0; half < 2; ++half) {
        gate_of(*task.weight, 2 * pair + half, x, count, t == 0 ? task.weight->panel(task.weight->panels) : nullptr,
                outliers_of(task, task.outlier_weights, 2 * pair + half, t), gate[half]);
        up_of(*task.up, 2 * pair + half, x, count, t == 0 ? task.up->panel(task.up->panels) : nullptr,
              outliers_of(task, task.up_outlier_weights, 2 * pair + half, t), up);
        for (int i = 0; i < count; ++i) gate[half][i] = gated(task.activation, gate[half][i], up[i]);
      }
      const QuantisedTile out = tile_of(task.out_quantised, t / 16);
      quantise_tokens(out, pair, 0, count, gate[0], gate[1]);
    }
}
