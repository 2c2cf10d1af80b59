// One row of logits to one token. docs/concepts/sampling.md is the definition; nothing here may change a result,
// only how fast it comes: blocks and noise are skipped where they provably cannot matter.
#include "sample_noise-inl.h"
#include "sample_select-inl.h"

constexpr float kInfinity = __builtin_inff();
constexpr float kLargest = __FLT_MAX__;

// A row in blocks of 64, the last one padded with -inf. `tail` holds the padded copy.
struct BlockedRow {
  const float* x;
  int64_t tokens, blocks;
  alignas(64) float tail[kSampleBlock];

  BlockedRow(const float* logits, int64_t vocabulary)
      : x(logits), tokens(vocabulary), blocks((vocabulary + kSampleBlock - 1) / kSampleBlock) {
    const int64_t begin = (blocks - 1) * kSampleBlock;
    for (int64_t i = 0; i < kSampleBlock; ++i) tail[i] = begin + i < tokens ? x[begin + i] : -kInfinity;
  }
  const float* block(int64_t b) const { return b + 1 < blocks ? x + b * kSampleBlock : tail; }
};

// The lowest id among the largest logits, or -1 if nothing is above -inf. NaN is never larger.
inline int32_t argmax(const BlockedRow& row) {
  F32 best[4];
  I32 where[4];
  for (int j = 0; j < 4; ++j) best[j] = set1(-kInfinity), where[j] = zero_i32();
  for (int64_t b = 0; b < row.blocks; ++b) {
    const float* y = row.block(b);
    const I32 here = set1((int32_t)b);
    for (int j = 0; j < 4; ++j) {
      const F32 v = load(y + 16 * j);
      const Mask more = v > best[j];
      best[j] = select(more, v, best[j]);
      where[j] = select(more, here, where[j]);
    }
  }
  const float top = reduce_max(vmax(vmax(best[0], best[1]), vmax(best[2], best[3])));
  if (top == -kInfinity) return -1;
  int64_t token = row.tokens;
  for (int j = 0; j < 4; ++j) {
    alignas(64) int32_t block[16];
    store(block, where[j]);
    const uint32_t equal = bits(best[j] == set1(top));
    for (int i = 0; i < 16; ++i) {
      const int64_t id = block[i] * kSampleBlock + 16 * j + i;
      if ((equal >> i & 1) && id < token) token = id;
    }
  }
  return (int32_t)token;
}

// Largest logit of each block into `tops`; returns the largest of all.
inline float scan_blocks(const BlockedRow& row, float* tops) {
  float top = -kInfinity;
  for (int64_t b = 0; b < row.blocks; ++b) {
    const float* y = row.block(b);
    F32 v = vmax(load(y), set1(-kInfinity));  // NaN only ever as the first operand, which drops it
    for (int j = 1; j < 4; ++j) v = vmax(load(y + 16 * j), v);
    tops[b] = reduce_max(v);
    top = tops[b] > top ? tops[b] : top;
  }
  return top;
}

inline int32_t first_equal(const BlockedRow& row, const float* tops, float top) {
  int64_t b = 0;
  while (tops[b] != top) ++b;
  const float* y = row.block(b);
  int64_t i = 0;
  while (y[i] != top) ++i;
  return (int32_t)(b * kSampleBlock + i);
}

// depth = (top - logit) * inverse: 0 for the likeliest token, inf for excluded ones, never -0.
struct Depths {
  float top, inverse;
  Depths(float largest, float temperature)
      : top(largest + 0.0f), inverse(1.0f / (temperature > 0x1p-64f ? temperature : 0x1p-64f)) {}
  float of(float x) const { return (top - x) * inverse; }
  F32 of(F32 x) const { return (set1(top) - x) * set1(inverse); }
};

// The leader of the race argmax(noise - depth); ties go to the lower id.
struct Leader {
  float value = -kInfinity;
  int32_t token = 0x7FFFFFFF;

  void meet(F32 values, const int32_t* ids) {
    if (!bits(values >= set1(value))) return;
    alignas(64) float v[16];
    store(v, values);
    for (int i = 0; i < 16; ++i)
      if (v[i] > value || (v[i] == value && ids[i] < token)) value = v[i], token = ids[i];
  }
};

// The race over the whole row. The likeliest token runs first, so that most others are out before they start.
inline int32_t race_row(const BlockedRow& row, const Depths& depths, NoiseKey key, const float* tops, float top) {
  Leader leader;
  leader.token = first_equal(row, tops, top);
  {
    const int32_t t = leader.token;
    const Words words = random_words(set1((int32_t)(t / 64 * 16 + t % 16)), key);
    alignas(64) float noise[16];
    store(noise, gumbel(words.w[t / 16 % 4]));
    leader.value = noise[0];
  }
  alignas(64) int32_t ids[16];
  for (int64_t b = 0; b < row.blocks; ++b) {
    if (kGumbelTop - depths.of(tops[b]) < leader.value) continue;
    const Words words = random_words(iota() + set1((int32_t)(b * 16)), key);
    const float* y = row.block(b);
    Mask may_win[4];
    for (int j = 0; j < 4; ++j)
      may_win[j] = gumbel_bound(words.w[j]) - depths.of(load(y + 16 * j)) >= set1(leader.value);
    if (!bits(may_win[0] | may_win[1] | may_win[2] | may_win[3])) continue;
    for (int j = 0; j < 4; ++j) {
      if (!bits(may_win[j])) continue;
      store(ids, iota() + set1((int32_t)(b * kSampleBlock + 16 * j)));
      leader.meet(gumbel(words.w[j]) - depths.of(load(y + 16 * j)), ids);
    }
  }
  return leader.token;
}

// The race over n candidates (ids ascending, depth padded with the largest float to a multiple of 16).
inline int32_t race_candidates(const SampleScratch& s, int64_t n, NoiseKey key) {
  Leader leader;
  for (int64_t i = 0; i < n; i += 16) {
    const F32 depth = load(s.depth + i);
    if (!bits(set1(kGumbelTop) - depth >= set1(leader.value))) continue;
    const I32 id = load(s.ids + i);
    const Words words = random_words(shl<4>(shr<6>(id)) | (id & set1((int32_t)15)), key);
    const I32 which = shr<4>(id) & set1((int32_t)3);
    I32 word = words.w[0];
    for (int j = 1; j < 4; ++j) word = select(which == set1((int32_t)j), words.w[j], word);
    if (!bits(gumbel_bound(word) - depth >= set1(leader.value))) continue;
    leader.meet(gumbel(word) - depth, s.ids + i);
  }
  return leader.token;
}

// Sum of the mass of the whole row.
inline uint64_t mass_of_row(const BlockedRow& row, const Depths& depths, const float* tops) {
  uint64_t sum = 0;
  I32 whole = zero_i32(), part = zero_i32();
  int added = 0;
  for (int64_t b = 0; b < row.blocks; ++b) {
    if (depths.of(tops[b]) > kMassDepth) continue;
    const float* y = row.block(b);
    for (int j = 0; j < 4; ++j) {
      const FixedPoint m = to_fixed(exp_of_depth(depths.of(load(y + 16 * j))));
      whole = whole + m.whole;
      part = part + m.part;
    }
    if (++added == 256) {  // 1024 additions of at most 2^20 to a lane stay below 2^31
      sum += sum_fixed(whole, part);
      whole = part = zero_i32();
      added = 0;
    }
  }
  return sum + sum_fixed(whole, part);
}

inline void pad_candidates(SampleScratch& s, int64_t n) {
  for (int64_t i = n; i < n + 16; ++i) s.depth[i] = kLargest, s.ids[i] = 0;
}

// Appends the lanes of m (ids first_id + lane) to the candidates; returns their new number.
inline int64_t append(Mask m, F32 depth, int32_t first_id, SampleScratch& s, int64_t n) {
#if defined(STOKER_LANES_AVX512)
  _mm512_storeu_ps(s.depth + n, _mm512_maskz_compress_ps(m.m, depth.v));
  _mm512_storeu_si512(s.ids + n, _mm512_maskz_compress_epi32(m.m, (iota() + set1(first_id)).v));
  return n + __builtin_popcount(m.m);
#else
  alignas(64) float lane[16];
  uint32_t keep = bits(m);
  if (keep) store(lane, depth);
  for (; keep; keep &= keep - 1) {
    const int i = __builtin_ctz(keep);
    s.ids[n] = first_id + i;
    s.depth[n++] = lane[i];
  }
  return n;
#endif
}

// Candidates: all tokens with depth <= bound (finite), by ascending id. Returns how many.
inline int64_t gather(const BlockedRow& row, const Depths& depths, const float* tops, float bound, SampleScratch& s) {
  int64_t n = 0;
  for (int64_t b = 0; b < row.blocks; ++b) {
    if (depths.of(tops[b]) > bound) continue;
    const float* y = row.block(b);
    for (int j = 0; j < 4; ++j) {
      const F32 d = depths.of(load(y + 16 * j));
      n = append(set1(bound) >= d, d, (int32_t)(b * kSampleBlock + 16 * j), s, n);
    }
  }
  pad_candidates(s, n);
  return n;
}

// The k tokens of least depth, ties by id. k blocks whose tops are among the k best hold k tokens at least, so
// the k-th best top bounds the depth of the k-th best token.
inline int64_t gather_top_k(const BlockedRow& row, const Depths& depths, const float* tops, int64_t k,
                            SampleScratch& s) {
  float bound = kLargest;
  if (k <= row.blocks) {
    for (int64_t b = 0; b < row.blocks; ++b) s.distance[b] = depths.of(tops[b]);
    const Cut cut = find_cut(s.distance, nullptr, row.blocks, (uint64_t)k, s.digit);
    float last;
    __builtin_memcpy(&last, &cut.key, 4);
    bound = last < kLargest ? last : kLargest;
  }
  int64_t n = gather(row, depths, tops, bound, s);
  if (n > k) n = apply_cut(find_cut(s.depth, nullptr, n, (uint64_t)k, s.digit), s.depth, (uint64_t)k, s, nullptr, n);
  pad_candidates(s, n);
  return n;
}

// Locally typical sampling: keeps the tokens whose surprise is nearest the entropy of the candidates.
inline int64_t keep_typical(SampleScratch& s, int64_t n, double share) {
  mass_of_candidates(s, n);
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    s.ids[kept] = s.ids[i];
    s.depth[kept] = s.depth[i];
    kept += s.mass[i] > 0;
  }
  n = kept;
  pad_candidates(s, n);
  const uint64_t total = mass_of_candidates(s, n);
  uint64_t moment = 0;  // sum of mass * depth
  for (int64_t i = 0; i < n; i += 16) {
    const F32 d = load(s.depth + i);
    const FixedPoint m = to_fixed(exp_of_depth(d) * d);
    moment += sum_fixed(m.whole, m.part);
  }
  const float log_total = log_mass(total);
  const float entropy = log_total + (float)((double)moment / (double)total);
  for (int64_t i = 0; i < n; i += 16)
    store(s.distance + i, vabs((set1(log_total) + load(s.depth + i)) - set1(entropy)));
  const uint64_t limit = mass_limit(share, total);
  n = apply_cut(find_cut(s.distance, s.mass, n, limit, s.digit), s.distance, limit, s, s.mass, n);
  pad_candidates(s, n);
  return n;
}

inline int64_t keep_top_p(SampleScratch& s, int64_t n, double share) {
  const uint64_t limit = mass_limit(share, mass_of_candidates(s, n));
  n = apply_cut(find_cut(s.depth, s.mass, n, limit, s.digit), s.depth, limit, s, s.mass, n);
  pad_candidates(s, n);
  return n;
}

// top_p of the whole row. Tokens no heavier than (mass to leave out) / V are left out whatever their number:
// that bounds the depth of those that need to be looked at.
inline int64_t gather_top_p(const BlockedRow& row, const Depths& depths, const float* tops, double share,
                            float min_p_depth, SampleScratch& s) {
  const uint64_t total = mass_of_row(row, depths, tops);
  const uint64_t limit = mass_limit(share, total);
  const uint64_t least = (total - limit) / (uint64_t)row.tokens;
  float bound = least ? 0.01f - log1((float)least * 0x1p-40f) : kMassDepth;
  if (min_p_depth < bound) bound = min_p_depth;
  int64_t n = gather(row, depths, tops, bound, s);
  mass_of_candidates(s, n);
  n = apply_cut(find_cut(s.depth, s.mass, n, limit, s.digit), s.depth, limit, s, s.mass, n);
  pad_candidates(s, n);
  return n;
}

inline int64_t keep_min_p(SampleScratch& s, int64_t n, float min_p_depth) {
  float first = s.depth[0];
  for (int64_t i = 1; i < n; ++i) first = s.depth[i] < first ? s.depth[i] : first;
  const float bound = first + min_p_depth;
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    s.ids[kept] = s.ids[i];
    s.depth[kept] = s.depth[i];
    kept += s.depth[i] <= bound;
  }
  pad_candidates(s, kept);
  return kept;
}

inline int32_t draw(const BlockedRow& row, const SampleRecord& p, SampleScratch& s) {
  const float top = scan_blocks(row, s.block_top);
  if (top == -kInfinity) return -1;
  if (top == kInfinity) return first_equal(row, s.block_top, top);
  const Depths depths(top, p.temperature);
  const NoiseKey key{p.seed, (uint64_t)p.position};
  const bool top_k = p.top_k > 0 && p.top_k < row.tokens, top_p = p.top_p < 1, typical = p.typical_p < 1;
  const float min_p_depth = p.min_p > 0 ? 0.0f - log1(p.min_p) : kLargest;
  if (!top_k && !top_p && !typical && p.min_p == 0) return race_row(row, depths, key, s.block_top, top);
  int64_t n;
  if (top_k)
    n = gather_top_k(row, depths, s.block_top, p.top_k, s);
  else if (typical)
    n = gather(row, depths, s.block_top, kMassDepth, s);
  else if (top_p)
    n = gather_top_p(row, depths, s.block_top, p.top_p, min_p_depth, s);
  else
    n = gather(row, depths, s.block_top, min_p_depth, s);
  if (typical) n = keep_typical(s, n, p.typical_p);
  if (top_p && (top_k || typical)) n = keep_top_p(s, n, p.top_p);
  if (p.min_p > 0) n = keep_min_p(s, n, min_p_depth);
  return race_candidates(s, n, key);
}

// Penalties as vLLM defines them; `count` holds how often a token was produced, top bit: seen at all.
inline void penalise(const SampleTask& t, float* row, uint32_t* count) {
  const SampleRecord& p = t.record;
  constexpr uint32_t kSeen = 0x80000000u;
  for (int32_t i = 0; i < p.history_count; ++i) {
    const int32_t id = t.history[i];
    count[id] = (count[id] | kSeen) + (i >= p.prompt_count);
  }
  for (int32_t i = 0; i < p.history_count; ++i) {
    const int32_t id = t.history[i];
    if (!count[id]) continue;  // done at an earlier occurrence
    const uint32_t produced = count[id] & ~kSeen;
    count[id] = 0;
    float y = row[id];
    y = y > 0 ? y / p.repetition_penalty : y * p.repetition_penalty;
    y = y - p.frequency_penalty * (float)produced;
    if (produced) y = y - p.presence_penalty;
    row[id] = y;
  }
}

inline bool is_changed(const SampleTask& t) {
  return t.record.bias_count || t.record.history_count || t.record.banned_count || t.mask;
}

// The row with bias, penalties, bans and mask, in s.row.
inline void change_row(const SampleTask& t, SampleScratch& s) {
  const BlockedRow row(t.logits, t.vocabulary);
  for (int64_t b = 0; b < row.blocks; ++b) {
    const float* y = row.block(b);
    for (int j = 0; j < 4; ++j) store(s.row + b * kSampleBlock + 16 * j, load(y + 16 * j));
  }
  for (int32_t i = 0; i < t.record.bias_count; ++i) s.row[t.bias_ids[i]] += t.bias_values[i];
  penalise(t, s.row, s.count);
  for (int32_t i = 0; i < t.record.banned_count; ++i) s.row[t.banned_ids[i]] = -kInfinity;
  if (!t.mask) return;
  for (int64_t i = 0; i < t.vocabulary; i += 16) {
    const Mask allowed = mask_from_bits(t.mask[i / 32] >> (i % 32) & 0xFFFF);
    store(s.row + i, select(allowed, load(s.row + i), set1(-kInfinity)));
  }
}

// The candidates in order of depth, as log-probabilities. Insertion sort: requests ask for 128 at most, and
// candidates come by ascending id, so that ties keep their order.
inline void write_top(const SampleScratch& s, int64_t n, float log_total, SampleOutput& out) {
  for (int64_t i = 0; i < n; ++i) {
    const float d = s.depth[i];
    int64_t at = i;
    for (; at > 0 && d < out.top_logprobs[at - 1]; --at) {
      out.top_logprobs[at] = out.top_logprobs[at - 1];
      out.top_ids[at] = out.top_ids[at - 1];
    }
    out.top_logprobs[at] = d;
    out.top_ids[at] = s.ids[i];
  }
  for (int64_t i = 0; i < n; ++i) out.top_logprobs[i] = -(out.top_logprobs[i] + log_total);
}

inline void write_logprobs(const SampleTask& t, SampleOutput& out, SampleScratch& s) {
  const BlockedRow row(t.logits, t.vocabulary);
  const int64_t asked = t.record.top_logprobs;
  for (int64_t i = 0; i < asked; ++i) out.top_ids[i] = -1, out.top_logprobs[i] = __builtin_nanf("");
  const float top = scan_blocks(row, s.block_top);
  const float chosen = out.token >= 0 ? t.logits[out.token] : -kInfinity;
  if (top == kInfinity || top == -kInfinity) {  // +inf takes everything; all at -inf: nothing has a probability
    if (out.token >= 0) out.logprob = chosen == kInfinity ? 0.0f : -kInfinity;
    for (int64_t i = 0, n = 0; top == kInfinity && i < t.vocabulary && n < asked; ++i)
      if (t.logits[i] == kInfinity) out.top_ids[n] = (int32_t)i, out.top_logprobs[n++] = 0.0f;
    return;
  }
  const Depths depths(top, 1.0f);
  const float log_total = log_mass(mass_of_row(row, depths, s.block_top));
  if (out.token >= 0) out.logprob = chosen == chosen ? -(depths.of(chosen) + log_total) : -kInfinity;
  if (asked > 0) write_top(s, gather_top_k(row, depths, s.block_top, asked, s), log_total, out);
}

// Samples one row. Pure in (task -> out); scratch is working memory whose `count` is zero before and after.
void sample_row(const SampleTask& t, SampleOutput& out, SampleScratch& s) {
  out.logprob = __builtin_nanf("");
  if (t.record.forced_token >= 0) {
    out.token = t.record.forced_token;
  } else {
    const float* x = t.logits;
    if (is_changed(t)) {
      change_row(t, s);
      x = s.row;
    }
    const BlockedRow row(x, t.vocabulary);
    out.token = t.record.temperature == 0 ? argmax(row) : draw(row, t.record, s);
  }
  if (t.record.top_logprobs >= 0) write_logprobs(t, out, s);
}
