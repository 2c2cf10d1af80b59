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

// Norm and quantise in one pass over the row: what every linear layer after a norm reads. Outlier columns go
// to out.outlier_values and are 0 in their group.
void rms_norm_quantise(const float* x, const float* weight, int64_t width, float eps, const QuantisedRows& out,
                       int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* row = x + t * width;
    const F32 inverse = set1(inverse_rms(row, width, eps));
    const QuantisedTile tile = tile_of(out, t / 16);
    alignas(64) float x[32];
    int next = 0;  // of the outlier columns, which ascend
    for (int64_t b = 0; b < width / 32; ++b) {
      const int64_t i = b * 32;
      F32 lo = load(row + i) * inverse * load(weight + i), hi = load(row + i + 16) * inverse * load(weight + i + 16);
      if (next < out.outliers && out.outlier_columns[next] / 32 == b) {
        store(x, lo);
        store(x + 16, hi);
        for (; next < out.outliers && out.outlier_columns[next] / 32 == b; ++next) {
          out.outlier_values[t * out.outliers + next] = x[out.outlier_columns[next] % 32];
          x[out.outlier_columns[next] % 32] = 0.0f;
        }
        lo = load(x), hi = load(x + 16);
      }
      quantise_into(tile, b, (int)(t % 16), lo, hi);
    }
  }
}
