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

// x: [tokens, columns] rows `stride` floats apart; quantises tokens [begin, end).
void quantise_rows(const float* x, int64_t stride, const QuantisedRows& out, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const QuantisedTile tile = tile_of(out, t / 16);
    for (int64_t b = 0; b < out.columns / 32; ++b) {
      const float* p = x + t * stride + b * 32;
      quantise_into(tile, b, (int)(t % 16), load(p), load(p + 16));
    }
  }
}
