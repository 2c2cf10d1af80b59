// Paged attention, what both KV types share. Positions are taken in chunks of 64 and splits of 512, both
// aligned to absolute positions; each chunk has a softmax of its own (maximum m, sum l, weighted values),
// joined in order by the online softmax (Milakov & Gimelshein 2018). Which tokens are computed together, and
// which thread takes which split, therefore changes no bit. docs/concepts/attention.md.
//
// Logits are kept in units of log2(e): with a softmax of powers of 2 the exponentials need no product to begin with.

inline const float kMinusInfinity = -__builtin_inff();

// The rows of a unit: query token and head of each, as an index into [T][heads], and the token's position.
struct UnitRows {
  int count;
  const int32_t *flat, *position;
};
inline UnitRows rows_of(const AttentionTask& task, const AttentionUnit& unit, AttentionScratch& s) {
  const int group = task.heads / task.kv_heads;
  int count = 0;
  for (int64_t token = unit.token_begin; token < unit.token_end; ++token)
    for (int g = 0; g < group; ++g, ++count) {
      s.flat[count] = (int32_t)(token * task.heads + unit.kv_head * group + g);
      s.position[count] = task.positions[token];
    }
  return {count, s.flat, s.position};
}
inline UnitRows rows_of(const AttentionTask& task, const SharedUnit& unit, AttentionScratch& s) {
  const int group = task.heads / task.kv_heads;
  for (int r = 0; r < unit.count; ++r) {
    s.flat[r] = (int32_t)(unit.rows[r].token * task.heads + unit.kv_head * group + unit.rows[r].head);
    s.position[r] = task.positions[unit.rows[r].token];
  }
  return {unit.count, s.flat, s.position};
}

// Largest visible logit of each row over one chunk, into s.here; softcaps and hides in place where needed.
inline void chunk_maxima(const AttentionTask& task, const UnitRows& rows, int64_t chunk, AttentionScratch& s) {
  for (int r = 0; r < rows.count; ++r) {
    float* scores = s.scores + r * kChunkTokens;
    const int64_t position = rows.position[r];
    const int64_t oldest = task.window ? position - task.window + 1 : 0;
    F32 v[4];
    for (int i = 0; i < 4; ++i) v[i] = load(scores + 16 * i);
    const bool hides = chunk + kChunkTokens - 1 > position || chunk < oldest;
    if (task.softcap != 0.0f) {
      const F32 cap = set1(task.softcap * kLog2E);
      for (F32& x : v) x = cap * vtanh(x / cap);
    }
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
    store(s.lanes + 16 * r, vmax(vmax(v[0], v[1]), vmax(v[2], v[3])));
  }
  fold_rows<Max>(s.lanes, rows.count, s.here);
}

// The online softmax's step for all rows, 16 rows to a vector: by what to multiply the sums so far (decay) and the
// chunk's (factor). A row that sees nothing of the chunk keeps its sums: decay 1, factor 0.
inline void chunk_factors(const UnitRows& rows, AttentionScratch& s) {
  for (int r = 0; r < rows.count; r += 16) {
    const F32 most = load(s.most + r), here = load(s.here + r), none = set1(kMinusInfinity);
    const F32 zero = zero_f32(), one = set1(1.0f);
    const Mask rises = here > most, is_first = most == none, sees = here > none;
    const F32 larger = vmax(here, most);
    const F32 e = vexp2(vmin(here, most) - larger);
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
      for (int i = 0; i < 4; ++i) p[i] = vexp2(load(scores + 16 * i) - here);
    }
    store(s.lanes + 16 * r, (p[0] + p[1]) + (p[2] + p[3]));
    if (value_scales) {
      for (int i = 0; i < 4; ++i) p[i] = p[i] * value_scales[i];
      store(s.top_lanes + 16 * r, vmax(vmax(p[0], p[1]), vmax(p[2], p[3])));
    }
    for (int i = 0; i < 4; ++i) store(scores + 16 * i, p[i]);
  }
  fold_rows<Add>(s.lanes, rows.count, s.sum);
  if (value_scales) fold_rows<Max>(s.top_lanes, rows.count, s.top);
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
  const float e = exp2_of(most > *out_most ? *out_most - most : most - *out_most);
  const float decay = most > *out_most ? e : 1.0f, factor = most > *out_most ? 1.0f : e;
  for (int d = 0; d < head_size; d += 16) store(out + d, fma(load(sums + d), set1(factor), load(out + d) * set1(decay)));
  *out_total = __builtin_fmaf(total, factor, *out_total * decay);
  *out_most = most > *out_most ? most : *out_most;
}

// First position of the first chunk of a split that a unit's rows may see, or at which it goes on.
inline int64_t first_chunk(const AttentionTask& task, const AttentionUnit& unit, int64_t split) {
  const int64_t begin = split * kSplitTokens;
  if (begin < unit.shared_end) return unit.shared_end;
  const int64_t first = task.positions[unit.token_begin];
  const int64_t oldest = task.window && first >= task.window ? first - task.window + 1 : 0;
  return begin > oldest ? begin : oldest / kChunkTokens * kChunkTokens;
}
inline int64_t first_split(const AttentionUnit& unit) {
  const int64_t own = unit.shared_end / kSplitTokens;
  return unit.split_begin > own ? unit.split_begin : own;
}

// Where one kv head's keys and values are found: by a sequence's block table, up to its last position.
struct Context {
  const int32_t* table;
  int kv_head;
  int64_t last;
};
inline Context context_of(const AttentionTask& task, const AttentionUnit& unit) {
  return {task.block_tables + unit.sequence * task.table_stride, (int)unit.kv_head, task.positions[unit.token_end - 1]};
}
inline Context context_of(const AttentionTask& task, const SharedUnit& unit) {
  return {task.block_tables + unit.sequence * task.table_stride, (int)unit.kv_head, unit.end - 1};
}

// The blocks of one chunk, up to the last position; returns how many.
inline int chunk_blocks(const AttentionTask& task, const Context& context, int64_t chunk, const uint8_t** heads) {
  const int32_t* table = context.table + chunk / kBlockTokens;
  const int64_t left = context.last - chunk + 1;
  const int blocks = (int)((left < kChunkTokens ? left : kChunkTokens) + kBlockTokens - 1) / kBlockTokens;
  for (int b = 0; b < blocks; ++b) heads[b] = task.cache->head(task.layer, table[b], context.kv_head);
  return blocks;
}

// What is to be fetched while a chunk is computed: one block for each of the chunk's, or null.
struct Ahead {
  const uint8_t* heads[4] = {};
};

template <class Cache>
inline void attend_chunk(const AttentionTask& task, const UnitRows& rows, const Context& context, int64_t chunk,
                         const Ahead& ahead, AttentionScratch& s) {
  const uint8_t* heads[4];
  const int blocks = chunk_blocks(task, context, chunk, heads);
  Cache::scores(task, rows, heads, blocks, ahead, s);
  chunk_maxima(task, rows, chunk, s);
  chunk_factors(rows, s);
  Cache::values(task, rows, heads, blocks, s);
}

inline float* shared_state(const AttentionTask& task, int32_t flat, int64_t split) {
  const int64_t slot = task.shared_slot[flat / task.heads] + split;
  return task.shared_states + (slot * task.heads + flat % task.heads) * (task.head_size + 2);
}

// Goes on where the shared units stopped: their whole splits joined in order, the last one's state, if it is not
// whole, in the scratch.
inline void resume(const AttentionTask& task, const AttentionUnit& unit, const UnitRows& rows, float* partials, AttentionScratch& s) {
  const int n = task.head_size, stride = n + 2;
  const int64_t whole = unit.shared_end / kSplitTokens;
  for (int r = 0; r < rows.count; ++r) {
    float* row = partials + r * stride;
    for (int64_t split = unit.split_begin; split < whole; ++split) {
      const float* state = shared_state(task, rows.flat[r], split);
      merge(n, state, state[n], state[n + 1], row, row + n, row + n + 1);
    }
    if (unit.shared_end % kSplitTokens == 0) continue;
    const float* state = shared_state(task, rows.flat[r], whole);
    for (int d = 0; d < n; d += 16) store(s.sums + r * n + d, load(state + d));
    s.most[r] = state[n], s.total[r] = state[n + 1];
  }
}

template <class Cache>
inline void attend_with(const AttentionTask& task, const AttentionUnit& unit, const AttentionUnit* next, float* partials,
                        AttentionScratch& s) {
  const UnitRows rows = rows_of(task, unit, s);
  const Context context = context_of(task, unit);
  const int head_size = task.head_size, stride = head_size + 2;
  for (int r = 0; r < rows.count; ++r) {
    partials[r * stride + head_size] = kMinusInfinity;
    partials[r * stride + head_size + 1] = 0.0f;
  }
  if (unit.shared_end) resume(task, unit, rows, partials, s);
  for (int64_t split = first_split(unit); split < unit.split_end; ++split) {
    if (split * kSplitTokens >= unit.shared_end)
      for (int r = 0; r < rows.count; ++r) s.most[r] = kMinusInfinity, s.total[r] = 0.0f;
    const int64_t end = (split + 1) * kSplitTokens;
    for (int64_t chunk = first_chunk(task, unit, split); chunk < end && chunk <= context.last; chunk += kChunkTokens) {
      Ahead ahead;
      if (chunk + kChunkTokens <= context.last && (chunk + kChunkTokens < end || split + 1 < unit.split_end))
        chunk_blocks(task, context, chunk + kChunkTokens, ahead.heads);
      else if (next) chunk_blocks(task, context_of(task, *next), first_chunk(task, *next, first_split(*next)), ahead.heads);
      attend_chunk<Cache>(task, rows, context, chunk, ahead, s);
    }
    for (int r = 0; r < rows.count; ++r)
      merge(head_size, s.sums + r * head_size, s.most[r], s.total[r], partials + r * stride,
            partials + r * stride + head_size, partials + r * stride + head_size + 1);
  }
}

template <class Cache>
inline void attend_shared_with(const AttentionTask& task, const SharedUnit& unit, const SharedUnit* next, AttentionScratch& s) {
  const UnitRows rows = rows_of(task, unit, s);
  const Context context = context_of(task, unit);
  const int n = task.head_size;
  for (int r = 0; r < rows.count; ++r) s.most[r] = kMinusInfinity, s.total[r] = 0.0f;
  for (int64_t chunk = unit.begin; chunk < unit.end; chunk += kChunkTokens) {
    Ahead ahead;
    if (chunk + kChunkTokens < unit.end) chunk_blocks(task, context, chunk + kChunkTokens, ahead.heads);
    else if (next) chunk_blocks(task, context_of(task, *next), next->begin, ahead.heads);
    attend_chunk<Cache>(task, rows, context, chunk, ahead, s);
  }
  for (int r = 0; r < rows.count; ++r) {
    float* state = shared_state(task, rows.flat[r], unit.split);
    for (int d = 0; d < n; d += 16) store(state + d, load(s.sums + r * n + d));
    state[n] = s.most[r], state[n + 1] = s.total[r];
  }
}

// Merges the partials of `splits` parts in order, divides, and writes the rows of the unit.
void attention_finish(const AttentionTask& task, const AttentionUnit& unit, float* partials, int64_t part_stride, int64_t parts) {
  const int n = task.head_size, group = task.heads / task.kv_heads;
  const bool rotated = task.cache->type() == KvType::int8;
  float* row = partials;
  for (int64_t token = unit.token_begin; token < unit.token_end; ++token)
    for (int g = 0; g < group; ++g, row += n + 2) {
      for (int64_t i = 1; i < parts; ++i) {
        const float* other = row + i * part_stride;
        merge(n, other, other[n], other[n + 1], row, &row[n], &row[n + 1]);
      }
      if (rotated) hadamard(row, n);
      const F32 inverse = set1(1.0f / (rotated ? row[n + 1] * (float)hadamard_block(n) : row[n + 1]));
      const int64_t column = (unit.kv_head * group + g) * (int64_t)n;
      if (task.out_quantised.q) {
        const QuantisedTile tile = tile_of(task.out_quantised, token / 16);
        for (int d = 0; d < n; d += 32)
          quantise_into(tile, (column + d) / 32, (int)(token % 16), load(row + d) * inverse, load(row + d + 16) * inverse);
      } else {
        for (int d = 0; d < n; d += 16) store(task.out + token * task.heads * n + column + d, load(row + d) * inverse);
      }
    }
}
