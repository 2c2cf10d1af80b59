// Paged attention, what both KV types share. Positions are taken in chunks of 64 and splits of 512, both
// aligned to absolute positions; each chunk has a softmax of its own (maximum m, sum l, weighted values),
// joined in order by the online softmax (Milakov & Gimelshein 2018). Which tokens are computed together, and
// which thread takes which split, therefore changes no bit. docs/concepts/attention.md.

inline const float kMinusInfinity = -__builtin_inff();

// Row r of a unit is query token token_begin + r / group, head kv_head * group + r % group.
struct UnitRows {
  int group, count;
  int64_t first_token;
  int first_head, heads;
  int64_t token(int r) const { return first_token + r / group; }
  int64_t flat(int r) const { return token(r) * heads + first_head + r % group; }  // index into [T][heads]
};
inline UnitRows rows_of(const AttentionTask& task, const AttentionUnit& unit) {
  const int group = task.heads / task.kv_heads;
  return {group, (int)(unit.token_end - unit.token_begin) * group, unit.token_begin, (int)unit.kv_head * group, task.heads};
}

// Largest visible logit of each row over one chunk, into s.here; softcaps and hides in place where needed.
inline void chunk_maxima(const AttentionTask& task, const UnitRows& rows, int64_t chunk, AttentionScratch& s) {
  for (int r = 0; r < rows.count; ++r) {
    float* scores = s.scores + r * kChunkTokens;
    const int64_t position = task.positions[rows.token(r)];
    const int64_t oldest = task.window ? position - task.window + 1 : 0;
    F32 v[4];
    for (int i = 0; i < 4; ++i) v[i] = load(scores + 16 * i);
    const bool hides = chunk + kChunkTokens - 1 > position || chunk < oldest;
    if (task.softcap != 0.0f)
      for (F32& x : v) x = set1(task.softcap) * vtanh(x / set1(task.softcap));
    if (hides) {
      const I32 last = set1((int32_t)(position - chunk)), first = set1((int32_t)(oldest - chunk));
      const F32 hidden = set1(kMinusInfinity);
      for (int i = 0; i < 4; ++i) {
        const I32 slot = iota() + set1((int32_t)(16 * i));
        v[i] = select(slot > last, hidden, select(slot < first, hidden, v[i]));
      }
    }
    if (hides || task.softcap != 0.0f)
      for (int i = 0; i < 4; ++i) store(scores + 16 * i, v[i]);
    s.here[r] = reduce_max(vmax(vmax(v[0], v[1]), vmax(v[2], v[3])));
  }
}

// The online softmax's step for all rows, 16 rows to a vector: by what to multiply the sums so far (decay) and the
// chunk's (factor). A row that sees nothing of the chunk keeps its sums: decay 1, factor 0.
inline void chunk_factors(const UnitRows& rows, AttentionScratch& s) {
  for (int r = 0; r < rows.count; r += 16) {
    const F32 most = load(s.most + r), here = load(s.here + r), none = set1(kMinusInfinity);
    const F32 zero = zero_f32(), one = set1(1.0f);
    const Mask rises = here > most, is_first = most == none, sees = here > none;
    const F32 larger = vmax(here, most);
    const F32 e = vexp(vmin(here, most) - larger);
    store(s.decay + r, select(sees, select(is_first, zero, select(rises, e, one)), one));
    store(s.factor + r, select(sees, select(rises, one, e), zero));
    store(s.most + r, larger);
  }
}

// Probabilities relative to the chunk's maximum, in place of the logits, and their sums; total is brought up to
// date. With value_scales (int8: 4 x 16 tokens) they are weighted with them afterwards and s.top is the largest.
inline void chunk_probabilities(const UnitRows& rows, const F32* value_scales, AttentionScratch& s) {
  for (int r = 0; r < rows.count; ++r) {
    float* scores = s.scores + r * kChunkTokens;
    F32 p[4];
    if (s.here[r] == kMinusInfinity) {
      for (F32& x : p) x = zero_f32();
    } else {
      const F32 here = set1(s.here[r]);
      for (int i = 0; i < 4; ++i) p[i] = vexp(load(scores + 16 * i) - here);
    }
    s.sum[r] = reduce_add((p[0] + p[1]) + (p[2] + p[3]));
    if (value_scales) {
      for (int i = 0; i < 4; ++i) p[i] = p[i] * value_scales[i];
      s.top[r] = reduce_max(vmax(vmax(p[0], p[1]), vmax(p[2], p[3])));
    }
    for (int i = 0; i < 4; ++i) store(scores + 16 * i, p[i]);
  }
  for (int r = 0; r < rows.count; r += 16)
    store(s.total + r, fma(load(s.sum + r), load(s.factor + r), load(s.total + r) * load(s.decay + r)));
}

// Joins split partial (most, total, sums) onto the running one; a split in which nothing was visible is skipped.
inline void merge(int head_size, const float* sums, float most, float total, float* out, float* out_most, float* out_total) {
  if (most == kMinusInfinity) return;
  if (*out_most == kMinusInfinity) {
    for (int d = 0; d < head_size; d += 16) store(out + d, load(sums + d));
    *out_most = most, *out_total = total;
    return;
  }
  const float e = exp1(most > *out_most ? *out_most - most : most - *out_most);
  const float decay = most > *out_most ? e : 1.0f, factor = most > *out_most ? 1.0f : e;
  for (int d = 0; d < head_size; d += 16) store(out + d, fma(load(sums + d), set1(factor), load(out + d) * set1(decay)));
  *out_total = __builtin_fmaf(total, factor, *out_total * decay);
  *out_most = most > *out_most ? most : *out_most;
}

// First position of the first chunk of a unit that its rows may see.
inline int64_t first_chunk(const AttentionTask& task, const AttentionUnit& unit, int64_t split) {
  const int64_t first = task.positions[unit.token_begin];
  const int64_t oldest = task.window && first >= task.window ? first - task.window + 1 : 0;
  const int64_t begin = split * kSplitTokens;
  return begin > oldest ? begin : oldest / kChunkTokens * kChunkTokens;
}

// The blocks of one chunk of a unit, up to its last position; returns how many.
inline int chunk_blocks(const AttentionTask& task, const AttentionUnit& unit, int64_t chunk, const uint8_t** heads) {
  const int32_t* table = task.block_tables + unit.sequence * task.table_stride + chunk / kBlockTokens;
  const int64_t left = task.positions[unit.token_end - 1] - chunk + 1;
  const int blocks = (int)((left < kChunkTokens ? left : kChunkTokens) + kBlockTokens - 1) / kBlockTokens;
  for (int b = 0; b < blocks; ++b) heads[b] = task.cache->head(task.layer, table[b], (int)unit.kv_head);
  return blocks;
}

// What is to be fetched while a chunk is computed: one block for each of the chunk's, or null.
struct Ahead {
  const uint8_t* heads[4] = {};
};

template <class Cache>
inline void attend_with(const AttentionTask& task, const AttentionUnit& unit, const AttentionUnit* next, float* partials,
                        AttentionScratch& s) {
  const UnitRows rows = rows_of(task, unit);
  const int head_size = task.head_size, stride = head_size + 2;
  for (int r = 0; r < rows.count; ++r) {
    partials[r * stride + head_size] = kMinusInfinity;
    partials[r * stride + head_size + 1] = 0.0f;
  }
  const int64_t last = task.positions[unit.token_end - 1];
  for (int64_t split = unit.split_begin; split < unit.split_end; ++split) {
    for (int r = 0; r < rows.count; ++r) s.most[r] = kMinusInfinity, s.total[r] = 0.0f;
    const int64_t end = (split + 1) * kSplitTokens;
    for (int64_t chunk = first_chunk(task, unit, split); chunk < end && chunk <= last; chunk += kChunkTokens) {
      const uint8_t* heads[4];
      const int blocks = chunk_blocks(task, unit, chunk, heads);
      Ahead ahead;
      if (chunk + kChunkTokens <= last && (chunk + kChunkTokens < end || split + 1 < unit.split_end))
        chunk_blocks(task, unit, chunk + kChunkTokens, ahead.heads);
      else if (next) chunk_blocks(task, *next, first_chunk(task, *next, next->split_begin), ahead.heads);
      Cache::scores(task, rows, heads, blocks, ahead, s);
      chunk_maxima(task, rows, chunk, s);
      chunk_factors(rows, s);
      Cache::values(task, rows, heads, blocks, s);
    }
    for (int r = 0; r < rows.count; ++r)
      merge(head_size, s.sums + r * head_size, s.most[r], s.total[r], partials + r * stride,
            partials + r * stride + head_size, partials + r * stride + head_size + 1);
  }
}

// Merges the partials of `splits` parts in order, divides, and writes the rows of the unit.
void attention_finish(const AttentionTask& task, const AttentionUnit& unit, float* partials, int64_t part_stride, int64_t parts) {
  const UnitRows rows = rows_of(task, unit);
  const int n = task.head_size;
  for (int r = 0; r < rows.count; ++r) {
    float* row = partials + r * (n + 2);
    for (int64_t i = 1; i < parts; ++i) {
      const float* other = row + i * part_stride;
      merge(n, other, other[n], other[n + 1], row, &row[n], &row[n + 1]);
    }
    const bool rotated = task.cache->type() == KvType::int8;
    if (rotated) hadamard(row, n);
    const F32 inverse = set1(1.0f / (rotated ? row[n + 1] * (float)hadamard_block(n) : row[n + 1]));
    const int64_t token = rows.token(r), column = (rows.first_head + r % rows.group) * (int64_t)n;
    if (task.out_quantised.q) {
      const QuantisedTile tile = tile_of(task.out_quantised, token / 16);
      for (int d = 0; d < n; d += 32)
        quantise_into(tile, (column + d) / 32, (int)(token % 16), load(row + d) * inverse, load(row + d + 16) * inverse);
    } else {
      for (int d = 0; d < n; d += 16) store(task.out + token * task.heads * n + column + d, load(row + d) * inverse);
    }
  }
}
