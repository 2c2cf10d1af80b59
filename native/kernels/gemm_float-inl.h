// Linear layers on F32, F16 and BF16 weights with float32 activations: out = sum over k, in order, by fma.
// Panels are [K][16 rows]; a tile is 16 rows x up to kTokenTile tokens.

template <Kind KIND>
inline F32 load_weights(const uint8_t* p) {
  if constexpr (KIND == Kind::f32) return load((const float*)p);
  else if constexpr (KIND == Kind::f16) return load_f16((const uint16_t*)p);
  else return load_bf16((const uint16_t*)p);
}

template <Kind KIND, int NT>
inline void float_tile(const LinearTask& task, int64_t panel, int64_t token) {
  constexpr int kStep = KIND == Kind::f32 ? 64 : 32;
  const int64_t columns = task.weight->columns;
  const uint8_t* w = task.weight->panel(panel);
  const float* x = task.x_float + token * columns;
  F32 acc[NT];
  for (int t = 0; t < NT; ++t) acc[t] = zero_f32();
  for (int64_t k = 0; k < columns; ++k, w += kStep) {
    const F32 v = load_weights<KIND>(w);
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) acc[t] = fma(v, set1(x[t * columns + k]), acc[t]);
  }
  for (int t = 0; t < NT; ++t) store_panel(task, panel, token + t, acc[t], false);
}

template <Kind KIND>
inline void linear_kind(const LinearTask& task, int64_t panel_begin, int64_t panel_end) {
  constexpr int kWide = kTokenTile < 8 ? kTokenTile : 8;
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    int64_t t = 0;
    for (; t + kWide <= task.tokens; t += kWide) float_tile<KIND, kWide>(task, p, t);
    for (; t + 2 <= task.tokens; t += 2) float_tile<KIND, 2>(task, p, t);
    for (; t < task.tokens; ++t) float_tile<KIND, 1>(task, p, t);
  }
}

void linear(const LinearTask& task, int64_t panel_begin, int64_t panel_end) {
  switch (task.weight->layout.kind) {
    case Kind::quantised: return linear_quantised(task, panel_begin, panel_end);
    case Kind::f32: return linear_kind<Kind::f32>(task, panel_begin, panel_end);
    case Kind::f16: return linear_kind<Kind::f16>(task, panel_begin, panel_end);
    case Kind::bf16: return linear_kind<Kind::bf16>(task, panel_begin, panel_end);
  }
}
