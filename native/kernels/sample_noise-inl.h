// Keyed Gumbel noise on lanes: Philox-4x32-10, a logarithm, and the bound that spares most of both.
// Same operations in the same order as sampling/float32.py and sampling/noise.py.

constexpr uint32_t kNoiseDomain = 0x53544F4B;  // fourth counter word
constexpr float kGumbelTop = 22.874f;          // above the largest noise there is: 33 ln 2 = 22.87386

// e ln2 + log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)); relative error below 3e-7 even where e = 0 and f is tiny.
inline F32 vlog_of_split(F32 e, F32 f) {
  F32 p = set1(-0.07860800623893738f);
  p = fma(p, f, set1(0.12883442640304565f));
  p = fma(p, f, set1(-0.13129128515720367f));
  p = fma(p, f, set1(0.14180965721607208f));
  p = fma(p, f, set1(-0.1662449687719345f));
  p = fma(p, f, set1(0.20002295076847076f));
  p = fma(p, f, set1(-0.25000810623168945f));
  p = fma(p, f, set1(0.33333316445350647f));
  const F32 square = f * f;
  p = (p * f) * square;
  p = fma(e, set1(-2.12194440e-4f), p);
  p = fma(square, set1(-0.5f), p);
  return fma(e, set1(0.693359375f), f + p);
}

struct Split { F32 e, f; };  // x = 2^e (1 + f)

inline Split split(F32 x) {  // x positive, normal, finite
  const I32 b = as_i32(x);
  const I32 e = sar<23>(b - set1((int32_t)0x3F3504F3));
  return {to_f32(e), as_f32(b - shl<23>(e)) - set1(1.0f)};
}

inline F32 vlog(F32 x) {
  const Split s = split(x);
  return vlog_of_split(s.e, s.f);
}

inline float log1(float x) {  // one number through the same operations
  alignas(64) float lanes[16];
  store(lanes, vlog(set1(x)));
  return lanes[0];
}

struct Words { I32 w[4]; };

struct NoiseKey {
  uint64_t seed, position;
};

// Philox-4x32-10 of counters (c0, position low, position high, domain). Token t takes word (t / 16) mod 4 of
// counter (t / 64) * 16 + t mod 16: sixteen counters in lanes give 64 neighbouring tokens without a shuffle.
inline Words random_words(I32 c0, NoiseKey key) {
  I32 c1 = set1((int32_t)(uint32_t)key.position), c2 = set1((int32_t)(uint32_t)(key.position >> 32));
  I32 c3 = set1((int32_t)kNoiseDomain);
  uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
  const I32 m0 = set1((int32_t)0xD2511F53), m1 = set1((int32_t)0xCD9E8D57);
  for (int round = 0; round < 10; ++round) {
    const I32 high0 = mulhi_u32(c0, m0), low0 = c0 * m0, high1 = mulhi_u32(c2, m1), low1 = c2 * m1;
    c0 = high1 ^ c1 ^ set1((int32_t)k0);
    c2 = high0 ^ c3 ^ set1((int32_t)k1);
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

inline F32 to_unit(I32 word) {  // (word + 1/2) / 2^32, rounded once
  const F32 low = to_f32(word & set1((int32_t)0xFFFF)) + set1(0.5f);
  return fma(to_f32(shr<16>(word)), set1(65536.0f), low) * set1(0x1p-32f);
}

// -log(-log(1 - v)), v = (word + 1/2) / 2^32. Small v, where large noise comes from, keeps all its digits.
inline F32 gumbel(I32 word) {
  const F32 v = to_unit(word);
  Split s = split(to_unit(word ^ set1((int32_t)-1)));
  const Mask small = v < set1(0.29289323f);
  s.e = select(small, zero_f32(), s.e);
  s.f = select(small, zero_f32() - v, s.f);
  return zero_f32() - vlog(zero_f32() - vlog_of_split(s.e, s.f));
}

// An upper bound of gumbel(word) in four operations: -log(1 - v) >= v, and the bits of a float read as a
// number are a lower bound of its log2. 0.001 is a hundred times the rounding error of both sides.
inline F32 gumbel_bound(I32 word) {
  const F32 rough_log2 = to_f32(as_i32(to_f32(shr<8>(word))));  // (log2(word) - 8 + 127) 2^23, or less
  return fma(rough_log2, set1(-0.69314718f * 0x1p-23f), set1(151 * 0.69314718f + 0.001f));
}
