// RMS norm (Zhang & Sennrich 2019). One row at a time, sums in 16 lanes and the fixed tree: the same bits
// whatever the batch. width is a multiple of 16 (checked when a program is built).

inline float inverse_rms(const float* x, int64_t width, float eps) {
  F32 sum = zero_f32();
  for (int64_t i = 0; i < width; i += 16) {
    const F32 v = load(x + i);
    sum = fma(v, v, sum);
  }
  const F32 mean = set1(reduce_add(sum) / (float)width + eps);
  alignas(64) float lanes[16];
  store(lanes, set1(1.0f) / vsqrt(mean));
  return lanes[0];
}

// The same of up to 16 rows, a few at a time: one row's sum is a chain of additions that wait for each other.
inline void inverse_rms_of(const float* x, int64_t width, float eps, int rows, float* out) {
  alignas(64) float mean[16] = {};
  for (int first = 0; first < rows; first += 4) {
    const float* row[4];
    for (int r = 0; r < 4; ++r) row[r] = x + (first + r < rows ? first + r : first) * width;
    F32 sum[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
    for (int64_t i = 0; i < width; i += 16)
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const F32 v = load(row[r] + i);
        sum[r] = fma(v, v, sum[r]);
      }
    for (int r = 0; r < 4; ++r) mean[first + r] = reduce_add(sum[r]) / (float)width + eps;
  }
  store(out, set1(1.0f) / vsqrt(load(mean)));
}

// out may be x. out[i] = (x[i] * inverse) * weight[i].
inline void norm_row(const float* x, const float* weight, int64_t width, float eps, float* out) {
  const F32 inverse = set1(inverse_rms(x, width, eps));
  for (int64_t i = 0; i < width; i += 16) store(out + i, load(x + i) * inverse * load(weight + i));
}

void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* out, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) norm_row(x + t * width, weight, width, eps, out + t * width);
}

// out = residual + norm(x): Gemma's post norms. out may be residual.
void rms_norm_add(const float* x, const float* weight, const float* residual, int64_t width, float eps, float* out,
                  int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const F32 inverse = set1(inverse_rms(x + t * width, width, eps));
    for (int64_t i = t * width; i < (t + 1) * width; i += 16)
      store(out + i, load(residual + i) + load(x + i) * inverse * load(weight + (i - t * width)));
  }
}

// Rows [count][width] of the tokens from `first` on of a tile, each times its inverse and the weights, to int8.
inline void norm_quantise_tokens(const float* x, const float* weight, int64_t width, const float* inverse, const QuantisedRows& out,
                                 const QuantisedTile& tile, int first, int count, int64_t row) {
  alignas(64) float group[32];
  F32 lo[16], hi[16];
  int next = 0;  // of the outlier columns, which ascend
  for (int64_t b = 0; b < width / 32; ++b) {
    const int64_t i = b * 32;
    const F32 left = load(weight + i), right = load(weight + i + 16);
    int after = next;
    while (after < out.outliers && out.outlier_columns[after] / 32 == b) ++after;
    for (int t = 0; t < count; ++t) {
      const float* p = x + t * width + i;
      const F32 by = set1(inverse[t]);
      lo[t] = load(p) * by * left, hi[t] = load(p + 16) * by * right;
      if (next == after) continue;
      store(group, lo[t]);
      store(group + 16, hi[t]);
      for (int n = next; n < after; ++n) {
        out.outlier_values[(row + t) * out.outliers + n] = group[out.outlier_columns[n] % 32];
        group[out.outlier_columns[n] % 32] = 0.0f;
      }
      lo[t] = load(group), hi[t] = load(group + 16);
    }
    next = after;
    quantise_tokens(tile, b, first, count, lo, hi);
  }
}

// Norm and quantise in one pass over the row: what every linear layer after a norm reads. Outlier columns go
// to out.outlier_values and are 0 in their group.
void rms_norm_quantise(const float* x, const float* weight, int64_t width, float eps, const QuantisedRows& out,
                       int64_t begin, int64_t end) {
  over_tiles(out, begin, end, [&](const QuantisedTile& tile, int first, int count, int64_t row) {
    const float* rows = x + row * width;
    if (count >= kLeastFolded) {
      alignas(64) float inverse[16];
      inverse_rms_of(rows, width, eps, count, inverse);
      norm_quantise_tokens(rows, weight, width, inverse, out, tile, first, count, row);
      return;
    }
    for (int t = 0; t < count; ++t) {
      const float inverse = inverse_rms(rows + t * width, width, eps);
      norm_quantise_tokens(rows + t * width, weight, width, &inverse, out, tile, first + t, 1, row + t);
    }
  });
}
