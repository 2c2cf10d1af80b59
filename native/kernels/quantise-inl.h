// Activations to int8, per token and group of 32 columns, as llama.cpp's Q8_1 does, but with float32 scales.
// scale = max|x| / 127, q = round(x / scale) by multiplying with 127 / max|x|.

// One group of one token into slot `token` of the tile's block (see QuantisedRows in kernel_table.h).
inline void quantise_group(F32 lo, F32 hi, int8_t* q, float* scale, float* scaled_sum, int32_t* sum, int32_t* half_sum) {
  const float most = reduce_max(vmax(vabs(lo), vabs(hi)));
  // A zero group (or one so small that its inverse overflows) is written as zeros with scale 0.
  const bool zero = !(most > 1e-35f);
  const F32 inverse = set1(zero ? 0.0f : 127.0f / most);
  const I32 a = to_i32(lo * inverse), b = to_i32(hi * inverse);
  store_i8(q, a);
  store_i8(q + 16, b);
  const int32_t first = reduce_add(a), second = reduce_add(b);
  *scale = zero ? 0.0f : most * (1.0f / 127.0f);
  *sum = first + second;
  *scaled_sum = *scale * (float)(first + second);
  half_sum[0] = first;
  half_sum[1] = second;
}

// Where block b (32 columns) of tile-local token t is kept.
struct QuantisedTile {
  int8_t* q;
  float* scale;
  float* scaled_sum;
  int32_t* sum;
  int32_t* half_sum;
};
inline QuantisedTile tile_of(const QuantisedRows& rows, int64_t tile) {
  const int64_t blocks = rows.columns / 32;
  return {rows.q + tile * blocks * 512, rows.scale + tile * blocks * 16, rows.scaled_sum + tile * blocks * 16,
          rows.sum + tile * blocks * 16, rows.half_sum + tile * blocks * 32};
}
inline void quantise_into(const QuantisedTile& tile, int64_t block, int token, F32 lo, F32 hi) {
  const int64_t i = block * 16 + token;
  quantise_group(lo, hi, tile.q + i * 32, tile.scale + i, tile.scaled_sum + i, tile.sum + i, tile.half_sum + 2 * i);
}

constexpr int kLeastFolded = 5;  // tokens: fewer are quantised sooner one by one

// The same of tokens [first, first + count) of a tile at once; the same bits, but of a group with NaNs.
inline void quantise_tokens(const QuantisedTile& tile, int64_t block, int first, int count, const F32* lo, const F32* hi) {
  if (count < kLeastFolded) {
    for (int t = 0; t < count; ++t) quantise_into(tile, block, first + t, lo[t], hi[t]);
    return;
  }
  const int64_t at = block * 16 + first;
  F32 most[16];
  for (int t = 0; t < 16; ++t) most[t] = t < count ? vmax(vabs(lo[t]), vabs(hi[t])) : zero_f32();
  const F32 largest = fold16<Max>(most);
  const Mask some = largest > set1(1e-35f);
  alignas(64) float inverse[16], scale[16], scaled[16];
  alignas(64) int32_t sum[16], halves[2][16];
  store(inverse, select(some, set1(127.0f) / largest, zero_f32()));
  I32 a[16], b[16];
  for (int t = 0; t < 16; ++t) {
    const F32 by = set1(inverse[t]);
    a[t] = t < count ? to_i32(lo[t] * by) : zero_i32(), b[t] = t < count ? to_i32(hi[t] * by) : zero_i32();
    if (t >= count) continue;
    store_i8(tile.q + (at + t) * 32, a[t]);
    store_i8(tile.q + (at + t) * 32 + 16, b[t]);
  }
  const I32 left = fold16<Add>(a), right = fold16<Add>(b);
  const F32 scales = select(some, largest * set1(1.0f / 127.0f), zero_f32());
  store(scale, scales), store(scaled, scales * to_f32(left + right));
  store(sum, left + right), store(halves[0], left), store(halves[1], right);
  for (int t = 0; t < count; ++t) {
    tile.scale[at + t] = scale[t], tile.scaled_sum[at + t] = scaled[t], tile.sum[at + t] = sum[t];
    tile.half_sum[2 * (at + t)] = halves[0][t], tile.half_sum[2 * (at + t) + 1] = halves[1][t];
  }
}

// Calls work(tile, first token of it, count, first row) for the rows [begin, end) of each tile.
template <class Work>
inline void over_tiles(const QuantisedRows& out, int64_t begin, int64_t end, Work&& work) {
  for (int64_t t = begin; t < end;) {
    const int count = (int)(end - t < 16 - t % 16 ? end - t : 16 - t % 16);
    work(tile_of(out, t / 16), (int)(t % 16), count, t);
    t += count;
  }
}

// x: [tokens, columns] rows `stride` floats apart; quantises tokens [begin, end).
void quantise_rows(const float* x, int64_t stride, const QuantisedRows& out, int64_t begin, int64_t end) {
  over_tiles(out, begin, end, [&](const QuantisedTile& tile, int first, int count, int64_t row) {
    F32 lo[16], hi[16];
    for (int64_t b = 0; b < out.columns / 32; ++b) {
      for (int t = 0; t < count; ++t) {
        const float* p = x + (row + t) * stride + b * 32;
        lo[t] = load(p), hi[t] = load(p + 16);
      }
      quantise_tokens(tile, b, first, count, lo, hi);
    }
  });
}
