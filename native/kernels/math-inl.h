// Elementary functions on lanes, from IEEE operations only, so that every target agrees to the bit.

// e^x. Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, then a degree-6 polynomial (Taylor coefficients
// through r^6/720 leave |error| < 1.3e-7 relative at |r| = 0.347); results below 2^-126 are flushed to 0,
// inputs above 88 give e^88.
inline F32 vexp(F32 x) {
  const F32 top = vmin(x, set1(88.0f));
  const F32 clamped = vmax(top, set1(-87.0f));
  const I32 n = to_i32(clamped * set1(1.44269504f));
  const F32 whole = to_f32(n);
  F32 r = fma(whole, set1(-0.693359375f), clamped);  // high part of ln2: 9 bits, product exact
  r = fma(whole, set1(2.12194440e-4f), r);           // ln2 = 0.693359375 - 2.12194440e-4
  F32 p = set1(1.0f / 720);
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  const F32 power = as_f32(shl<23>(n + set1((int32_t)127)));
  return select(x < set1(-87.0f), zero_f32(), p * power);
}

// tanh x = 1 - 2 / (e^{2x} + 1); absolute error about 1e-7, which is what GELU and softcaps need.
inline F32 vtanh(F32 x) {
  const F32 e = vexp(x + x);
  return set1(1.0f) - set1(2.0f) / (e + set1(1.0f));
}

inline float exp1(float x) {  // one number through the same operations
  alignas(64) float lanes[16];
  store(lanes, vexp(set1(x)));
  return lanes[0];
}
