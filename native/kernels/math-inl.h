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

constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0, exactly 1 at 0 and exactly 0 at -127 and below (and for a NaN). The float nearest to an integer n is
// x + 1.5 * 2^23, whose low bits are n: no conversion is needed. 2^r for |r| <= 1/2 is a polynomial of degree 5, a
// minimax fit of relative error with p(0) = 1: within 1.6e-7.
inline F32 vexp2(F32 x) {
  const F32 magic = set1(12582912.0f), clamped = vmax(x, set1(-127.0f));
  const F32 shifted = clamped + magic, r = clamped - (shifted - magic);
  F32 p = set1(0.00132647273f);
  p = fma(p, r, set1(0.00967151299f));
  p = fma(p, r, set1(0.0555073358f));
  p = fma(p, r, set1(0.240222424f));
  p = fma(p, r, set1(0.693147004f));
  p = fma(p, r, set1(1.0f));
  return as_f32(as_i32(p) + shl<23>(as_i32(shifted)));  // at -127 the exponent of 1.0 becomes 0
}

inline float exp2_of(float x) {  // one number through the same operations
  alignas(64) float lanes[16];
  store(lanes, vexp2(set1(x)));
  return lanes[0];
}
