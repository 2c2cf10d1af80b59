// Attention on the f16 cache in float32 arithmetic: the accurate reference for the int8 one.

struct F16Cache {
  template <int R>
  static inline void score_block(const AttentionTask& task, const UnitRows& rows, int r0, const uint8_t* head, int block, AttentionScratch& s) {
    const int n = task.head_size;
    const uint16_t* keys = (const uint16_t*)head;
    const float* q[R];
    F32 acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      q[r] = task.q + (int64_t)rows.flat[r0 + r] * n;
      acc[r] = zero_f32();
    }
    for (int d = 0; d < n; ++d) {
      const F32 k = load_f16(keys + 16 * d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = fma(k, set1(q[r][d]), acc[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store(s.scores + (r0 + r) * kChunkTokens + 16 * block, acc[r] * set1(task.scale * kLog2E));
  }

  static inline void scores(const AttentionTask& task, const UnitRows& rows, const uint8_t* const* heads, int blocks,
                            const Ahead& ahead, AttentionScratch& s) {
    for (int b = 0; b < blocks; ++b) {
      if (ahead.heads[b])
        for (int i = 0; i < 64 * task.head_size; i += 64) prefetch(ahead.heads[b] + i);
      int r = 0;
      for (; r + 8 <= rows.count; r += 8) score_block<8>(task, rows, r, heads[b], b, s);
      for (; r + 3 <= rows.count; r += 3) score_block<3>(task, rows, r, heads[b], b, s);
      for (; r < rows.count; ++r) score_block<1>(task, rows, r, heads[b], b, s);
    }
    for (int r = 0; r < rows.count; ++r)
      for (int b = blocks; b < 4; ++b) store(s.scores + r * kChunkTokens + 16 * b, zero_f32());
  }

  template <int R>
  static inline void value_lanes(const AttentionTask& task, int r0, int d, const uint8_t* const* heads, int blocks, AttentionScratch& s) {
    const int n = task.head_size;
    F32 acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = zero_f32();
    for (int b = 0; b < blocks; ++b) {
      const uint16_t* values = (const uint16_t*)(heads[b] + 32 * n) + d;
      for (int i = 0; i < kBlockTokens; ++i) {
        const F32 v = load_f16(values + i * n);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r] = fma(v, set1(s.scores[(r0 + r) * kChunkTokens + 16 * b + i]), acc[r]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (s.factor[r0 + r] == 0.0f && s.decay[r0 + r] == 1.0f) continue;  // adds nothing; not even to a -0
      float* sums = s.sums + (r0 + r) * n + d;
      const F32 fresh = acc[r] * set1(s.factor[r0 + r]);
      store(sums, s.decay[r0 + r] == 0.0f ? fresh : fma(load(sums), set1(s.decay[r0 + r]), fresh));
    }
  }

  static inline void values(const AttentionTask& task, const UnitRows& rows, const uint8_t* const* heads, int blocks, AttentionScratch& s) {
    chunk_probabilities(rows, nullptr, s);
    for (int d = 0; d < task.head_size; d += 16) {
      int r = 0;
      for (; r + 8 <= rows.count; r += 8) value_lanes<8>(task, r, d, heads, blocks, s);
      for (; r + 3 <= rows.count; r += 3) value_lanes<3>(task, r, d, heads, blocks, s);
      for (; r < rows.count; ++r) value_lanes<1>(task, r, d, heads, blocks, s);
    }
  }
};

// Keys and values are kept inside f16's range: +-65504 instead of infinity, whose product with 0 would be NaN.
inline F32 clamp_f16(F32 x) { return vmax(vmin(x, set1(65504.0f)), set1(-65504.0f)); }

inline void store_keys_f16(const AttentionTask& task, const float* k, const float* v, int64_t token, int64_t sequence) {
  const int n = task.head_size, position = task.positions[token], slot = position % kBlockTokens;
  const int32_t block = task.block_tables[sequence * task.table_stride + position / kBlockTokens];
  alignas(64) uint16_t narrow[16];
  for (int h = 0; h < task.kv_heads; ++h) {
    uint16_t* keys = (uint16_t*)task.cache->head(task.layer, block, h);
    uint16_t* values = keys + 16 * n + slot * n;
    const int64_t at = (token * task.kv_heads + h) * n;
    for (int d = 0; d < n; d += 16) {
      store_f16(narrow, clamp_f16(load(k + at + d)));
      for (int i = 0; i < 16; ++i) keys[16 * (d + i) + slot] = narrow[i];
      store_f16(values + d, clamp_f16(load(v + at + d)));
    }
  }
}

void store_keys(const AttentionTask& task, const float* k, const float* v, int64_t token, int64_t sequence) {
  if (task.cache->type() == KvType::int8) store_keys_int8(task, k, v, token, sequence);
  else store_keys_f16(task, k, v, token, sequence);
}

void prepare_queries(const AttentionTask& task, int64_t token_begin, int64_t token_end) {
  if (task.cache->type() == KvType::int8) prepare_queries_int8(task, token_begin, token_end);
}

void attend(const AttentionTask& task, const AttentionUnit& unit, const AttentionUnit* next, float* partials,
            AttentionScratch& scratch) {
  if (task.cache->type() == KvType::int8) attend_with<Int8Cache>(task, unit, next, partials, scratch);
  else attend_with<F16Cache>(task, unit, next, partials, scratch);
}

void attend_shared(const AttentionTask& task, const SharedUnit& unit, const SharedUnit* next, AttentionScratch& scratch) {
  if (task.cache->type() == KvType::int8) attend_shared_with<Int8Cache>(task, unit, next, scratch);
  else attend_shared_with<F16Cache>(task, unit, next, scratch);
}
