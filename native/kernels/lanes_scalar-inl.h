// Lanes as plain arrays: the baseline of every machine, and what the other targets are compared with.
// <cmath>, <cstring> are included by the target's .cc, outside every namespace.

struct F32 { float v[16]; };
struct I32 { int32_t v[16]; };
struct U8x64 { uint8_t v[64]; };
struct Mask { uint32_t m; };

constexpr int kTokenTile = 4;
constexpr int kByteBias = 0;

#define STOKER_LANES for (int i = 0; i < 16; ++i)
inline F32 zero_f32() { return {}; }
inline F32 set1(float x) { F32 r; STOKER_LANES r.v[i] = x; return r; }
inline F32 load(const float* p) { F32 r; std::memcpy(r.v, p, 64); return r; }
inline void store(float* p, F32 a) { std::memcpy(p, a.v, 64); }
inline void stream(float* p, F32 a) { store(p, a); }  // portable code has no stores past the caches
inline void stream_end() {}
#define STOKER_BINARY(T, name, expr) \
  inline T name(T a, T b) { T r; STOKER_LANES r.v[i] = expr; return r; }
STOKER_BINARY(F32, operator+, a.v[i] + b.v[i])
STOKER_BINARY(F32, operator-, a.v[i] - b.v[i])
STOKER_BINARY(F32, operator*, a.v[i] * b.v[i])
STOKER_BINARY(F32, operator/, a.v[i] / b.v[i])
STOKER_BINARY(F32, vmin, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
STOKER_BINARY(F32, vmax, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
// std::fma is exact by definition (IEEE 754), in hardware or not, so it is no exception to "no libm in kernels".
inline F32 fma(F32 a, F32 b, F32 c) { F32 r; STOKER_LANES r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]); return r; }
inline F32 vabs(F32 a) { F32 r; STOKER_LANES r.v[i] = std::fabs(a.v[i]); return r; }
inline F32 vsqrt(F32 a) { F32 r; STOKER_LANES r.v[i] = std::sqrt(a.v[i]); return r; }
inline F32 swap_pairs(F32 a) { F32 r; STOKER_LANES r.v[i] = a.v[i ^ 1]; return r; }
inline F32 swap2(F32 a) { F32 r; STOKER_LANES r.v[i] = a.v[i ^ 2]; return r; }
inline F32 swap4(F32 a) { F32 r; STOKER_LANES r.v[i] = a.v[i ^ 4]; return r; }
inline F32 swap8(F32 a) { F32 r; STOKER_LANES r.v[i] = a.v[i ^ 8]; return r; }

inline float widen_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  uint32_t u;
  float f;
  if (exponent == 0) {
    f = (float)fraction * 0x1p-24f;  // zero and subnormals, exact
    std::memcpy(&u, &f, 4);
    u |= sign;
  } else {
    u = sign | (exponent == 31 ? 0x7F800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13);
  }
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint16_t narrow_f16(float f) {  // round to nearest, ties to even
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7FFFFFFF;
  if (u > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (u >> 13 & 0x3FF));
  if (u >= 0x47800000) return (uint16_t)(sign | 0x7C00);  // 65536 and up; 65520.. rounds up to it below
  if (u < 0x38800000) {                                   // below 2^-14: subnormal in f16
    float a;
    std::memcpy(&a, &u, 4);
    return (uint16_t)(sign | (uint32_t)std::nearbyint(a * 0x1p24f));
  }
  u += 0xFFF + (u >> 13 & 1);
  return (uint16_t)(sign | ((u - 0x38000000) >> 13));
}
inline F32 load_f16(const uint16_t* p) { F32 r; STOKER_LANES r.v[i] = widen_f16(p[i]); return r; }
inline void store_f16(uint16_t* p, F32 a) { STOKER_LANES p[i] = narrow_f16(a.v[i]); }
inline F32 load_bf16(const uint16_t* p) {
  F32 r;
  STOKER_LANES { const uint32_t u = (uint32_t)p[i] << 16; std::memcpy(&r.v[i], &u, 4); }
  return r;
}

inline I32 zero_i32() { return {}; }
inline I32 set1(int32_t x) { I32 r; STOKER_LANES r.v[i] = x; return r; }
inline I32 broadcast(const int32_t* p) { return set1(*p); }
inline I32 iota() { I32 r; STOKER_LANES r.v[i] = i; return r; }
inline I32 load(const int32_t* p) { I32 r; std::memcpy(r.v, p, 64); return r; }
inline void store(int32_t* p, I32 a) { std::memcpy(p, a.v, 64); }
inline I32 load_u8(const uint8_t* p) { I32 r; STOKER_LANES r.v[i] = p[i]; return r; }
inline I32 load_i8(const int8_t* p) { I32 r; STOKER_LANES r.v[i] = p[i]; return r; }
inline void store_i8(int8_t* p, I32 a) { STOKER_LANES p[i] = (int8_t)a.v[i]; }
STOKER_BINARY(I32, operator+, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]))
STOKER_BINARY(I32, operator-, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]))
STOKER_BINARY(I32, operator*, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i]))
STOKER_BINARY(I32, operator&, a.v[i] & b.v[i])
STOKER_BINARY(I32, operator|, a.v[i] | b.v[i])
STOKER_BINARY(I32, operator^, a.v[i] ^ b.v[i])
STOKER_BINARY(I32, mulhi_u32, (int32_t)((uint64_t)(uint32_t)a.v[i] * (uint32_t)b.v[i] >> 32))
template <int N> inline I32 shl(I32 a) { I32 r; STOKER_LANES r.v[i] = (int32_t)((uint32_t)a.v[i] << N); return r; }
template <int N> inline I32 shr(I32 a) { I32 r; STOKER_LANES r.v[i] = (int32_t)((uint32_t)a.v[i] >> N); return r; }
template <int N> inline I32 sar(I32 a) { I32 r; STOKER_LANES r.v[i] = a.v[i] >> N; return r; }

inline F32 to_f32(I32 a) { F32 r; STOKER_LANES r.v[i] = (float)a.v[i]; return r; }
inline I32 to_i32(F32 a) {  // nearbyint follows the default rounding mode: nearest, ties to even
  I32 r;
  STOKER_LANES r.v[i] = (int32_t)std::nearbyint(a.v[i]);
  return r;
}
inline F32 as_f32(I32 a) { F32 r; std::memcpy(r.v, a.v, 64); return r; }
inline I32 as_i32(F32 a) { I32 r; std::memcpy(r.v, a.v, 64); return r; }

#define STOKER_COMPARE(T, name, op) \
  inline Mask name(T a, T b) { Mask r{0}; STOKER_LANES r.m |= (uint32_t)(a.v[i] op b.v[i]) << i; return r; }
STOKER_COMPARE(F32, operator<, <)
STOKER_COMPARE(F32, operator>, >)
STOKER_COMPARE(F32, operator>=, >=)
STOKER_COMPARE(F32, operator==, ==)
STOKER_COMPARE(I32, operator<, <)
STOKER_COMPARE(I32, operator>, >)
STOKER_COMPARE(I32, operator==, ==)
inline Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
inline Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
inline Mask first_lanes(int n) { return {(1u << n) - 1}; }
inline Mask mask_from_bits(uint32_t b) { return {b & 0xFFFF}; }
inline uint32_t bits(Mask m) { return m.m; }
inline F32 select(Mask m, F32 a, F32 b) { F32 r; STOKER_LANES r.v[i] = m.m >> i & 1 ? a.v[i] : b.v[i]; return r; }
inline I32 select(Mask m, I32 a, I32 b) { I32 r; STOKER_LANES r.v[i] = m.m >> i & 1 ? a.v[i] : b.v[i]; return r; }

inline float reduce_add(F32 a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
  return a.v[0];
}
inline float reduce_max(F32 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[0] > a.v[i] ? a.v[0] : a.v[i];
  return a.v[0];
}
inline int32_t reduce_add(I32 a) {
  uint32_t s = 0;
  STOKER_LANES s += (uint32_t)a.v[i];
  return (int32_t)s;
}

inline U8x64 load_bytes(const uint8_t* p) { U8x64 r; std::memcpy(r.v, p, 64); return r; }
inline U8x64 low_nibbles(U8x64 a) { for (auto& b : a.v) b &= 15; return a; }
inline U8x64 high_nibbles(U8x64 a) { for (auto& b : a.v) b >>= 4; return a; }
inline U8x64 with_bit4(U8x64 a, uint64_t set) {
  for (int i = 0; i < 64; ++i) a.v[i] = (uint8_t)(a.v[i] + (set >> i & 1) * 16);
  return a;
}
inline I32 dot4(I32 acc, U8x64 w, const int8_t* a) {
  STOKER_LANES for (int j = 0; j < 4; ++j) acc.v[i] += (int32_t)w.v[4 * i + j] * a[j];
  return acc;
}
inline I32 dot4_full(I32 acc, U8x64 w, const int8_t* a) { return dot4(acc, w, a); }
inline I32 dot4_signed(I32 acc, const uint8_t* p, U8x64 v) {
  STOKER_LANES for (int j = 0; j < 4; ++j) acc.v[i] += (int32_t)p[j] * (int8_t)v.v[4 * i + j];
  return acc;
}
inline void prefetch(const void*) {}
#undef STOKER_BINARY
#undef STOKER_COMPARE
#undef STOKER_LANES
