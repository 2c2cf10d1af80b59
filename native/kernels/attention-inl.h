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

// Softmax of one row over one chunk. scores: 64 logits, replaced by probabilities relative to the chunk's
// maximum; positions not visible from `position` become 0. Updates the row's running maximum and sum and
// says by what to multiply the row's sums so far (decay) and the chunk's (factor). False: nothing is visible.
inline bool chunk_softmax(const AttentionTask& task, float* scores, int64_t chunk_start, int64_t position,
                          float* most, float* total, float* decay, float* factor) {
  F32 s[4];
  for (int i = 0; i < 4; ++i) s[i] = load(scores + 16 * i);
  if (task.softcap != 0.0f)
    for (F32& v : s) v = set1(task.softcap) * vtanh(v / set1(task.softcap));
  const int64_t oldest = task.window ? position - task.window + 1 : 0;
  if (chunk_start + kChunkTokens - 1 > position || chunk_start < oldest) {
    const I32 last = set1((int32_t)(position - chunk_start)), first = set1((int32_t)(oldest - chunk_start));
    for (int i = 0; i < 4; ++i) {
      const I32 slot = iota() + set1((int32_t)(16 * i));
      const F32 hidden = set1(kMinusInfinity);
      s[i] = select(slot > last, hidden, select(slot < first, hidden, s[i]));
    }
  }
  const float here = reduce_max(vmax(vmax(s[0], s[1]), vmax(s[2], s[3])));
  if (here == kMinusInfinity) return false;
  F32 p[4];
  for (int i = 0; i < 4; ++i) {
    p[i] = vexp(s[i] - set1(here));
    store(scores + 16 * i, p[i]);
  }
  const float sum = reduce_add((p[0] + p[1]) + (p[2] + p[3]));
  if (*most == kMinusInfinity) {
    *most = here, *total = sum, *decay = 0.0f, *factor = 1.0f;
  } else {
    const float e = exp1(here > *most ? *most - here : here - *most);
    *decay = here > *most ? e : 1.0f;
    *factor = here > *most ? 1.0f : e;
    *total = __builtin_fmaf(sum, *factor, *total * *decay);
    *most = here > *most ? here : *most;
  }
  return true;
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

template <class Cache>
inline void attend_with(const AttentionTask& task, const AttentionUnit& unit, float* partials, AttentionScratch& s) {
  const UnitRows rows = rows_of(task, unit);
  const int head_size = task.head_size, stride = head_size + 2;
  for (int r = 0; r < rows.count; ++r) {
    partials[r * stride + head_size] = kMinusInfinity;
    partials[r * stride + head_size + 1] = 0.0f;
  }
  const int64_t first = task.positions[unit.token_begin], last = task.positions[unit.token_end - 1];
  const int64_t oldest = task.window && first >= task.window ? first - task.window + 1 : 0;
  const int32_t* table = task.block_tables + unit.sequence * task.table_stride;
  const int64_t head_bytes = task.cache->head_bytes(task.layer);
  for (int64_t split = unit.split_begin; split < unit.split_end; ++split) {
    for (int r = 0; r < rows.count; ++r) s.most[r] = kMinusInfinity, s.total[r] = 0.0f;
    const int64_t begin = split * kSplitTokens, end = begin + kSplitTokens;
    for (int64_t chunk = begin > oldest ? begin : oldest / kChunkTokens * kChunkTokens; chunk < end && chunk <= last;
         chunk += kChunkTokens) {
      const int64_t left = last - chunk + 1;
      const int blocks = (int)((left < kChunkTokens ? left : kChunkTokens) + kBlockTokens - 1) / kBlockTokens;
      const uint8_t* heads[4];
      for (int b = 0; b < blocks; ++b) heads[b] = task.cache->head(task.layer, table[chunk / kBlockTokens + b], (int)unit.kv_head);
      // The next chunk is fetched while this one is computed (its table entries exist up to `last`).
      for (int b = 0; b < 4 && chunk + kChunkTokens + b * kBlockTokens <= last; ++b) {
        const uint8_t* next = task.cache->head(task.layer, table[chunk / kBlockTokens + 4 + b], (int)unit.kv_head);
        for (int64_t i = 0; i < head_bytes; i += 64) prefetch(next + i);
      }
      Cache::scores(task, rows, heads, blocks, s);
      for (int r = 0; r < rows.count; ++r) {
        const bool seen = chunk_softmax(task, s.scores + r * kChunkTokens, chunk, task.positions[rows.token(r)], &s.most[r],
                                        &s.total[r], &s.decay[r], &s.factor[r]);
        if (!seen) {  // leaves the row's sums as they are: 0 from this chunk
          s.decay[r] = 1.0f, s.factor[r] = 0.0f;
          for (int i = 0; i < kChunkTokens; i += 16) store(s.scores + r * kChunkTokens + i, zero_f32());
        }
      }
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
