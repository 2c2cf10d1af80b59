// Gated activations (Shazeer 2020): activation(gate) * up.

inline F32 silu(F32 x) { return x / (set1(1.0f) + vexp(zero_f32() - x)); }

inline F32 gelu_tanh(F32 x) {
  const F32 inner = set1(0.7978845608f) * (x + set1(0.044715f) * x * x * x);
  return set1(0.5f) * x * (set1(1.0f) + vtanh(inner));
}

inline F32 gated(Activation activation, F32 gate, F32 up) {
  return (activation == Activation::silu ? silu(gate) : gelu_tanh(gate)) * up;
}

void gated_activation(Activation activation, const float* gate, const float* up, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) store(out + i, gated(activation, load(gate + i), load(up + i)));
}

void add_rows(const float* a, const float* b, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) store(out + i, load(a + i) + load(b + i));
}

void scale_rows(const float* x, float factor, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) store(out + i, load(x + i) * set1(factor));
}

void softcap_rows(const float* x, float cap, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) store(out + i, set1(cap) * vtanh(load(x + i) / set1(cap)));
}
