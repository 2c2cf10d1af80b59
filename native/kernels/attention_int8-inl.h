// Attention on the int8 cache: both products are exact integer dots. Keys, queries and values are rotated
// (hadamard-inl.h) and rounded with one scale per token and head; probabilities, times the values' scales,
// become u8 with one scale per row and chunk.

struct Int8Cache {
  // Scores of R rows against the 16 keys of one block: 4 numbers of 16 keys per dot.
  template <int R>
  static inline void score_block(const AttentionTask& task, const UnitRows& rows, int r0, const uint8_t* head, int block, const uint8_t* ahead,
                                 AttentionScratch& s) {
    const int n = task.head_size;
    const int8_t* q[R];
    I32 acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t flat = rows.flat[r0 + r];
      q[r] = task.q_int8 + flat * n;
      acc[r] = broadcast(task.q_sum + flat);
    }
    for (int i = 0; i < n / 4; ++i) {
      const U8x64 keys = load_bytes(head + 64 * i);
      if (ahead) {  // a head's block is 2 x 16 n bytes of keys and values and 2 lines of scales
        prefetch(ahead + 128 * i);
        prefetch(ahead + 128 * i + 64);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = dot4_full(acc[r], keys, q[r] + 4 * i);
    }
    if (ahead) {
      prefetch(ahead + 32 * n);
      prefetch(ahead + 32 * n + 64);
    }
    const F32 key_scale = load((const float*)(head + 32 * n));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      store(s.scores + (r0 + r) * kChunkTokens + 16 * block, to_f32(acc[r]) * (key_scale * set1(task.q_scale[rows.flat[r0 + r]])));
  }

  static inline void scores(const AttentionTask& task, const UnitRows& rows, const uint8_t* const* heads, int blocks,
                            const Ahead& ahead, AttentionScratch& s) {
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* fetch = ahead.heads[b];
      int r = 0;
      for (; r + 8 <= rows.count; r += 8, fetch = nullptr) score_block<8>(task, rows, r, heads[b], b, fetch, s);
      switch (rows.count - r) {
        case 7: score_block<7>(task, rows, r, heads[b], b, fetch, s); break;
        case 6: score_block<6>(task, rows, r, heads[b], b, fetch, s); break;
        case 5: score_block<5>(task, rows, r, heads[b], b, fetch, s); break;
        case 4: score_block<4>(task, rows, r, heads[b], b, fetch, s); break;
        case 3: score_block<3>(task, rows, r, heads[b], b, fetch, s); break;
        case 2: score_block<2>(task, rows, r, heads[b], b, fetch, s); break;
        case 1: score_block<1>(task, rows, r, heads[b], b, fetch, s); break;
      }
    }
    for (int b = blocks; b < 4 && ahead.heads[b]; ++b)
      for (int i = 0; i < 32 * task.head_size + 128; i += 64) prefetch(ahead.heads[b] + i);
    for (int r = 0; r < rows.count; ++r)  // absent blocks lie past every query: hidden by the mask
      for (int b = blocks; b < 4; ++b) store(s.scores + r * kChunkTokens + 16 * b, zero_f32());
  }

  // sums[r][d..d + 16 D) = sums * decay + (sum over the chunk's tokens of byte * value) * factor.
  template <int R, int D>
  static inline void value_lanes(const AttentionTask& task, int r0, int d, const uint8_t* const* heads, int blocks, AttentionScratch& s) {
    const int n = task.head_size;
    I32 acc[R][D];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < D; ++i) acc[r][i] = zero_i32();
    for (int b = 0; b < blocks; ++b)
      for (int quad = 0; quad < 4; ++quad) {
        const uint8_t* p = s.bytes + r0 * kChunkTokens + 16 * b + 4 * quad;
        U8x64 values[D];
#pragma GCC unroll 4
        for (int i = 0; i < D; ++i) values[i] = load_bytes(heads[b] + 16 * n + quad * 4 * n + 4 * d + 64 * i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int i = 0; i < D; ++i) acc[r][i] = dot4_signed(acc[r][i], p + r * kChunkTokens, values[i]);
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float factor = s.factor[r0 + r], decay = s.decay[r0 + r];
      if (factor == 0.0f && decay == 1.0f) continue;  // adds nothing; not even to a -0
      float* sums = s.sums + (r0 + r) * n + d;
#pragma GCC unroll 4
      for (int i = 0; i < D; ++i) {
        const F32 fresh = to_f32(acc[r][i]) * set1(factor);
        store(sums + 16 * i, decay == 0.0f ? fresh : fma(load(sums + 16 * i), set1(decay), fresh));
      }
    }
  }

  template <int D>
  static inline void value_columns(const AttentionTask& task, const UnitRows& rows, int d, const uint8_t* const* heads, int blocks, AttentionScratch& s) {
    constexpr int kRows = D == 4 ? 4 : 8;  // 16 or fewer sums in registers, beside D values
    int r = 0;
    for (; r + kRows <= rows.count; r += kRows) value_lanes<kRows, D>(task, r, d, heads, blocks, s);
    for (; r + 3 <= rows.count; r += 3) value_lanes<3, D>(task, r, d, heads, blocks, s);
    if (r + 2 <= rows.count) value_lanes<2, D>(task, r, d, heads, blocks, s), r += 2;
    if (r < rows.count) value_lanes<1, D>(task, r, d, heads, blocks, s);
  }

  static inline void values(const AttentionTask& task, const UnitRows& rows, const uint8_t* const* heads, int blocks, AttentionScratch& s) {
    const int n = task.head_size;
    F32 scales[4];
    for (int b = 0; b < 4; ++b) scales[b] = b < blocks ? load((const float*)(heads[b] + 32 * n + 64)) : zero_f32();
    chunk_probabilities(rows, scales, s);
    for (int r = 0; r < rows.count; r += 16) {
      const F32 top = load(s.top + r);
      store(s.factor + r, load(s.factor + r) * (top * set1(1.0f / 255.0f)));
      store(s.top + r, select(top > set1(1e-35f), set1(255.0f) / top, zero_f32()));
    }
    for (int r = 0; r < rows.count; ++r) {
      const F32 inverse = set1(s.top[r]);
      for (int i = 0; i < kChunkTokens; i += 16)
        store_i8((int8_t*)s.bytes + r * kChunkTokens + i, to_i32(load(s.scores + r * kChunkTokens + i) * inverse));
    }
    int d = 0;
    for (; d + 64 <= n; d += 64) value_columns<4>(task, rows, d, heads, blocks, s);
    for (; d < n; d += 16) value_columns<1>(task, rows, d, heads, blocks, s);
  }
};

// Rotated x [head_size] as int8 with one scale; returns the scale and, through sum, the sum of the bytes.
inline float round_head(float* x, int head_size, int8_t* out, int32_t* sum) {
  hadamard(x, head_size);
  F32 most = zero_f32();
  for (int d = 0; d < head_size; d += 16) most = vmax(most, vabs(load(x + d)));
  // The scale stays finite whatever the numbers are: an infinite one would turn a hidden slot's 0 into NaN for
  // the next sequence that owns the block.
  const float largest = reduce_max(most), top = largest < 3e38f ? largest : 3e38f;
  const bool zero = !(top > 1e-35f);
  const F32 inverse = set1(zero ? 0.0f : 127.0f / top);
  I32 total = zero_i32();
  for (int d = 0; d < head_size; d += 16) {
    const I32 q = to_i32(load(x + d) * inverse);
    store_i8(out + d, q);
    total = total + q;
  }
  *sum = reduce_add(total);
  return zero ? 0.0f : top * (1.0f / 127.0f);
}

inline void store_keys_int8(const AttentionTask& task, const float* k, const float* v, int64_t token, int64_t sequence) {
  const int n = task.head_size, position = task.positions[token], slot = position % kBlockTokens;
  const int32_t block = task.block_tables[sequence * task.table_stride + position / kBlockTokens];
  alignas(64) float x[kMaxHeadSize];
  alignas(64) int8_t q[kMaxHeadSize];
  int32_t unused;
  for (int h = 0; h < task.kv_heads; ++h) {
    uint8_t* head = task.cache->head(task.layer, block, h);
    __builtin_memcpy(x, k + (token * task.kv_heads + h) * n, sizeof(float) * (size_t)n);
    ((float*)(head + 32 * n))[slot] = round_head(x, n, q, &unused);
    for (int d = 0; d < n; d += 4) {
      uint32_t four;
      __builtin_memcpy(&four, q + d, 4);
      four ^= 0x80808080u;  // k + 128
      __builtin_memcpy(head + 16 * d + 4 * slot, &four, 4);
    }
    __builtin_memcpy(x, v + (token * task.kv_heads + h) * n, sizeof(float) * (size_t)n);
    ((float*)(head + 32 * n + 64))[slot] = round_head(x, n, q, &unused);
    uint8_t* values = head + 16 * n + slot / 4 * 4 * n + slot % 4;
    for (int d = 0; d < n; ++d) values[4 * d] = (uint8_t)q[d];
  }
}

inline void prepare_queries_int8(const AttentionTask& task, int64_t token_begin, int64_t token_end) {
  alignas(64) float x[kMaxHeadSize];
  const int n = task.head_size;
  const float scale = task.scale * kLog2E / (float)hadamard_block(n);  // q . k = (Hq) . (Hk) / block
  for (int64_t flat = token_begin * task.heads; flat < token_end * task.heads; ++flat) {
    __builtin_memcpy(x, task.q + flat * n, sizeof(float) * (size_t)n);
    int32_t sum;
    task.q_scale[flat] = round_head(x, n, task.q_int8 + flat * n, &sum) * scale;
    task.q_sum[flat] = (kByteBias - 128) * sum;  // keys are stored as k + 128
  }
}
