// Lanes on AArch64 NEON with the dot product extension (Armv8.2-A and later): four registers each.
// <arm_neon.h> is included by the target's .cc, outside every namespace.

struct F32 { float32x4_t v[4]; };
struct I32 { int32x4_t v[4]; };
struct U8x64 { uint8x16_t v[4]; };
struct Mask { uint32x4_t v[4]; };

constexpr int kTokenTile = 4;   // 16 of the 32 registers
constexpr int kByteBias = 128;  // sdot is signed x signed: full-range bytes are read as q - 128

#define STOKER_PARTS for (int i = 0; i < 4; ++i)
#define STOKER_UNARY(R, T, name, expr) \
  inline R name(T a) { R r; STOKER_PARTS r.v[i] = expr; return r; }
#define STOKER_BINARY(R, T, name, expr) \
  inline R name(T a, T b) { R r; STOKER_PARTS r.v[i] = expr; return r; }
inline F32 set1(float x) { F32 r; STOKER_PARTS r.v[i] = vdupq_n_f32(x); return r; }
inline F32 zero_f32() { return set1(0.0f); }
inline F32 load(const float* p) { F32 r; STOKER_PARTS r.v[i] = vld1q_f32(p + 4 * i); return r; }
inline void store(float* p, F32 a) { STOKER_PARTS vst1q_f32(p + 4 * i, a.v[i]); }
inline void stream(float* p, F32 a) { store(p, a); }  // portable code has no stores past the caches
inline void stream_end() {}
STOKER_BINARY(F32, F32, operator+, vaddq_f32(a.v[i], b.v[i]))
STOKER_BINARY(F32, F32, operator-, vsubq_f32(a.v[i], b.v[i]))
STOKER_BINARY(F32, F32, operator*, vmulq_f32(a.v[i], b.v[i]))
STOKER_BINARY(F32, F32, operator/, vdivq_f32(a.v[i], b.v[i]))
STOKER_BINARY(F32, F32, vmin, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
STOKER_BINARY(F32, F32, vmax, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
STOKER_UNARY(F32, F32, vabs, vabsq_f32(a.v[i]))
STOKER_UNARY(F32, F32, vsqrt, vsqrtq_f32(a.v[i]))
STOKER_UNARY(F32, F32, swap_pairs, vrev64q_f32(a.v[i]))
STOKER_UNARY(F32, F32, swap2, vextq_f32(a.v[i], a.v[i], 2))
STOKER_UNARY(F32, F32, swap4, a.v[i ^ 1])
STOKER_UNARY(F32, F32, swap8, a.v[i ^ 2])
inline F32 fma(F32 a, F32 b, F32 c) { F32 r; STOKER_PARTS r.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return r; }
inline F32 load_f16(const uint16_t* p) {
  F32 r;
  STOKER_PARTS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
inline void store_f16(uint16_t* p, F32 a) { STOKER_PARTS vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i]))); }
inline F32 load_bf16(const uint16_t* p) {
  F32 r;
  STOKER_PARTS r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}

inline I32 set1(int32_t x) { I32 r; STOKER_PARTS r.v[i] = vdupq_n_s32(x); return r; }
inline I32 zero_i32() { return set1((int32_t)0); }
inline I32 load(const int32_t* p) { I32 r; STOKER_PARTS r.v[i] = vld1q_s32(p + 4 * i); return r; }
inline void store(int32_t* p, I32 a) { STOKER_PARTS vst1q_s32(p + 4 * i, a.v[i]); }
inline I32 broadcast(const int32_t* p) { return set1(*p); }
inline I32 iota() {
  static const int32_t k[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(k);
}
inline I32 load_u8(const uint8_t* p) {
  const uint8x16_t b = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(b)), hi = vmovl_high_u8(b);
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo))), vreinterpretq_s32_u32(vmovl_high_u16(lo)),
           vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi))), vreinterpretq_s32_u32(vmovl_high_u16(hi))}};
}
inline I32 load_i8(const int8_t* p) {
  const int8x16_t b = vld1q_s8(p);
  const int16x8_t lo = vmovl_s8(vget_low_s8(b)), hi = vmovl_high_s8(b);
  return {{vmovl_s16(vget_low_s16(lo)), vmovl_high_s16(lo), vmovl_s16(vget_low_s16(hi)), vmovl_high_s16(hi)}};
}
inline void store_i8(int8_t* p, I32 a) {
  const int16x8_t lo = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t hi = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}
STOKER_BINARY(I32, I32, operator+, vaddq_s32(a.v[i], b.v[i]))
STOKER_BINARY(I32, I32, operator-, vsubq_s32(a.v[i], b.v[i]))
STOKER_BINARY(I32, I32, operator*, vmulq_s32(a.v[i], b.v[i]))
STOKER_BINARY(I32, I32, operator&, vandq_s32(a.v[i], b.v[i]))
STOKER_BINARY(I32, I32, operator|, vorrq_s32(a.v[i], b.v[i]))
STOKER_BINARY(I32, I32, operator^, veorq_s32(a.v[i], b.v[i]))
template <int N> inline I32 shl(I32 a) { I32 r; STOKER_PARTS r.v[i] = vshlq_n_s32(a.v[i], N); return r; }
template <int N> inline I32 shr(I32 a) {
  I32 r;
  STOKER_PARTS r.v[i] = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), N));
  return r;
}
template <int N> inline I32 sar(I32 a) { I32 r; STOKER_PARTS r.v[i] = vshrq_n_s32(a.v[i], N); return r; }
inline I32 mulhi_u32(I32 a, I32 b) {
  I32 r;
  STOKER_PARTS {
    const uint32x4_t x = vreinterpretq_u32_s32(a.v[i]), y = vreinterpretq_u32_s32(b.v[i]);
    const uint64x2_t lo = vmull_u32(vget_low_u32(x), vget_low_u32(y)), hi = vmull_high_u32(x, y);
    r.v[i] = vreinterpretq_s32_u32(vuzp2q_u32(vreinterpretq_u32_u64(lo), vreinterpretq_u32_u64(hi)));
  }
  return r;
}

STOKER_UNARY(F32, I32, to_f32, vcvtq_f32_s32(a.v[i]))
STOKER_UNARY(I32, F32, to_i32, vcvtnq_s32_f32(a.v[i]))
STOKER_UNARY(F32, I32, as_f32, vreinterpretq_f32_s32(a.v[i]))
STOKER_UNARY(I32, F32, as_i32, vreinterpretq_s32_f32(a.v[i]))

STOKER_BINARY(Mask, F32, operator<, vcltq_f32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, F32, operator>, vcgtq_f32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, F32, operator>=, vcgeq_f32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, F32, operator==, vceqq_f32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, I32, operator<, vcltq_s32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, I32, operator>, vcgtq_s32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, I32, operator==, vceqq_s32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, Mask, operator&, vandq_u32(a.v[i], b.v[i]))
STOKER_BINARY(Mask, Mask, operator|, vorrq_u32(a.v[i], b.v[i]))
inline Mask first_lanes(int n) { return iota() < set1((int32_t)n); }
inline Mask mask_from_bits(uint32_t b) {
  static const int32_t k[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const I32 bit = load(k);
  return (set1((int32_t)b) & bit) == bit;
}
inline uint32_t bits(Mask m) {
  static const uint32_t k[4] = {1, 2, 4, 8};
  uint32_t r = 0;
  STOKER_PARTS r |= vaddvq_u32(vandq_u32(m.v[i], vld1q_u32(k))) << (4 * i);
  return r;
}
inline F32 select(Mask m, F32 a, F32 b) { F32 r; STOKER_PARTS r.v[i] = vbslq_f32(m.v[i], a.v[i], b.v[i]); return r; }
inline I32 select(Mask m, I32 a, I32 b) { I32 r; STOKER_PARTS r.v[i] = vbslq_s32(m.v[i], a.v[i], b.v[i]); return r; }

inline float reduce_add(F32 a) {  // lanes i and i + 8, then 4, 2, 1
  const float32x4_t q = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
  return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
inline float reduce_max(F32 a) {
  const F32 m = vmax({{a.v[0], a.v[1], a.v[0], a.v[1]}}, {{a.v[2], a.v[3], a.v[2], a.v[3]}});
  return vmaxvq_f32(vmaxq_f32(m.v[0], m.v[1]));
}
inline int32_t reduce_add(I32 a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}

inline U8x64 load_bytes(const uint8_t* p) { U8x64 r; STOKER_PARTS r.v[i] = vld1q_u8(p + 16 * i); return r; }
STOKER_UNARY(U8x64, U8x64, low_nibbles, vandq_u8(a.v[i], vdupq_n_u8(15)))
STOKER_UNARY(U8x64, U8x64, high_nibbles, vshrq_n_u8(a.v[i], 4))
inline U8x64 with_bit4(U8x64 a, uint64_t set) {
  static const uint8_t k[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bit = vld1q_u8(k);
  STOKER_PARTS {
    const uint16_t two = (uint16_t)(set >> (16 * i));
    const uint8x16_t spread = vcombine_u8(vdup_n_u8((uint8_t)two), vdup_n_u8((uint8_t)(two >> 8)));
    a.v[i] = vorrq_u8(a.v[i], vandq_u8(vtstq_u8(spread, bit), vdupq_n_u8(16)));
  }
  return a;
}
inline int8x16_t four_bytes(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline I32 dot4(I32 acc, U8x64 w, const int8_t* a) {
  const int8x16_t s = four_bytes(a);
  STOKER_PARTS acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), s);
  return acc;
}
inline I32 dot4_full(I32 acc, U8x64 w, const int8_t* a) {
  const int8x16_t s = four_bytes(a);
  STOKER_PARTS acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(128))), s);
  return acc;
}
inline I32 dot4_signed(I32 acc, const uint8_t* p, U8x64 v) {
  // u = (u - 128) + 128: one signed dot, and 64 · v twice for the rest.
  const int8x16_t s = veorq_s8(four_bytes(p), vdupq_n_s8(-128)), half = vdupq_n_s8(64);
  STOKER_PARTS {
    const int8x16_t x = vreinterpretq_s8_u8(v.v[i]);
    acc.v[i] = vdotq_s32(vdotq_s32(vdotq_s32(acc.v[i], x, s), x, half), x, half);
  }
  return acc;
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }
#undef STOKER_UNARY
#undef STOKER_BINARY
#undef STOKER_PARTS
