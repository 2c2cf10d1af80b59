// Lanes on AVX2 + FMA + F16C: two ymm registers each.
// <immintrin.h> is included by the target's .cc, outside every namespace.

struct F32 { __m256 v[2]; };
struct I32 { __m256i v[2]; };
struct U8x64 { __m256i v[2]; };
struct Mask { __m256i v[2]; };  // all ones or all zeros per lane

constexpr int kTokenTile = 4;  // 4 tokens are 8 of the 16 ymm; more spilled
constexpr int kByteBias = 0;

#define STOKER_EACH(expr0, expr1) {{expr0, expr1}}
inline F32 zero_f32() { return STOKER_EACH(_mm256_setzero_ps(), _mm256_setzero_ps()); }
inline F32 set1(float x) { return STOKER_EACH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
inline F32 load(const float* p) { return STOKER_EACH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v[0]); _mm256_storeu_ps(p + 8, a.v[1]); }
// Past the caches: p on 64 bytes; stream_end() before another thread reads.
inline void stream(float* p, F32 a) { _mm256_stream_ps(p, a.v[0]); _mm256_stream_ps(p + 8, a.v[1]); }
inline void stream_end() { _mm_sfence(); }
#define STOKER_BINARY(T, name, op) \
  inline T name(T a, T b) { return STOKER_EACH(op(a.v[0], b.v[0]), op(a.v[1], b.v[1])); }
STOKER_BINARY(F32, operator+, _mm256_add_ps)
STOKER_BINARY(F32, operator-, _mm256_sub_ps)
STOKER_BINARY(F32, operator*, _mm256_mul_ps)
STOKER_BINARY(F32, operator/, _mm256_div_ps)
STOKER_BINARY(F32, vmin, _mm256_min_ps)
STOKER_BINARY(F32, vmax, _mm256_max_ps)
inline F32 fma(F32 a, F32 b, F32 c) {
  return STOKER_EACH(_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1]));
}
inline F32 vabs(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return STOKER_EACH(_mm256_andnot_ps(sign, a.v[0]), _mm256_andnot_ps(sign, a.v[1]));
}
inline F32 vsqrt(F32 a) { return STOKER_EACH(_mm256_sqrt_ps(a.v[0]), _mm256_sqrt_ps(a.v[1])); }
inline F32 swap_pairs(F32 a) { return STOKER_EACH(_mm256_permute_ps(a.v[0], 0xB1), _mm256_permute_ps(a.v[1], 0xB1)); }
inline F32 swap2(F32 a) { return STOKER_EACH(_mm256_permute_ps(a.v[0], 0x4E), _mm256_permute_ps(a.v[1], 0x4E)); }
inline F32 swap4(F32 a) {
  return STOKER_EACH(_mm256_permute2f128_ps(a.v[0], a.v[0], 1), _mm256_permute2f128_ps(a.v[1], a.v[1], 1));
}
inline F32 swap8(F32 a) { return STOKER_EACH(a.v[1], a.v[0]); }
inline F32 load_f16(const uint16_t* p) {
  return STOKER_EACH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
                     _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))));
}
inline void store_f16(uint16_t* p, F32 a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.v[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(a.v[1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline __m256 widen_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F32 load_bf16(const uint16_t* p) { return STOKER_EACH(widen_bf16(p), widen_bf16(p + 8)); }

inline I32 zero_i32() { return STOKER_EACH(_mm256_setzero_si256(), _mm256_setzero_si256()); }
inline I32 set1(int32_t x) { return STOKER_EACH(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
inline I32 broadcast(const int32_t* p) { return set1(*p); }
inline I32 iota() {
  return STOKER_EACH(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8));
}
inline I32 load(const int32_t* p) {
  return STOKER_EACH(_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8)));
}
inline void store(int32_t* p, I32 a) {
  _mm256_storeu_si256((__m256i*)p, a.v[0]);
  _mm256_storeu_si256((__m256i*)(p + 8), a.v[1]);
}
inline I32 load_u8(const uint8_t* p) {
  return STOKER_EACH(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
                     _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))));
}
inline I32 load_i8(const int8_t* p) {
  return STOKER_EACH(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
                     _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))));
}
inline void store_i8(int8_t* p, I32 a) {
  alignas(32) int32_t x[16];
  store(x, a);
  for (int i = 0; i < 16; ++i) p[i] = (int8_t)x[i];
}
STOKER_BINARY(I32, operator+, _mm256_add_epi32)
STOKER_BINARY(I32, operator-, _mm256_sub_epi32)
STOKER_BINARY(I32, operator*, _mm256_mullo_epi32)
STOKER_BINARY(I32, operator&, _mm256_and_si256)
STOKER_BINARY(I32, operator|, _mm256_or_si256)
STOKER_BINARY(I32, operator^, _mm256_xor_si256)
template <int N> inline I32 shl(I32 a) { return STOKER_EACH(_mm256_slli_epi32(a.v[0], N), _mm256_slli_epi32(a.v[1], N)); }
template <int N> inline I32 shr(I32 a) { return STOKER_EACH(_mm256_srli_epi32(a.v[0], N), _mm256_srli_epi32(a.v[1], N)); }
template <int N> inline I32 sar(I32 a) { return STOKER_EACH(_mm256_srai_epi32(a.v[0], N), _mm256_srai_epi32(a.v[1], N)); }
inline __m256i mulhi_u32_half(__m256i a, __m256i b) {
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(even, odd, 0xAA);
}
STOKER_BINARY(I32, mulhi_u32, mulhi_u32_half)

inline F32 to_f32(I32 a) { return STOKER_EACH(_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])); }
inline I32 to_i32(F32 a) { return STOKER_EACH(_mm256_cvtps_epi32(a.v[0]), _mm256_cvtps_epi32(a.v[1])); }
inline F32 as_f32(I32 a) { return STOKER_EACH(_mm256_castsi256_ps(a.v[0]), _mm256_castsi256_ps(a.v[1])); }
inline I32 as_i32(F32 a) { return STOKER_EACH(_mm256_castps_si256(a.v[0]), _mm256_castps_si256(a.v[1])); }

#define STOKER_COMPARE_F32(name, code)                                                \
  inline Mask name(F32 a, F32 b) {                                                    \
    return STOKER_EACH(_mm256_castps_si256(_mm256_cmp_ps(a.v[0], b.v[0], code)),      \
                       _mm256_castps_si256(_mm256_cmp_ps(a.v[1], b.v[1], code)));     \
  }
STOKER_COMPARE_F32(operator<, _CMP_LT_OQ)
STOKER_COMPARE_F32(operator>, _CMP_GT_OQ)
STOKER_COMPARE_F32(operator>=, _CMP_GE_OQ)
STOKER_COMPARE_F32(operator==, _CMP_EQ_OQ)
inline Mask operator>(I32 a, I32 b) {
  return STOKER_EACH(_mm256_cmpgt_epi32(a.v[0], b.v[0]), _mm256_cmpgt_epi32(a.v[1], b.v[1]));
}
inline Mask operator<(I32 a, I32 b) { return b > a; }
inline Mask operator==(I32 a, I32 b) {
  return STOKER_EACH(_mm256_cmpeq_epi32(a.v[0], b.v[0]), _mm256_cmpeq_epi32(a.v[1], b.v[1]));
}
STOKER_BINARY(Mask, operator&, _mm256_and_si256)
STOKER_BINARY(Mask, operator|, _mm256_or_si256)
inline Mask first_lanes(int n) { return iota() < set1((int32_t)n); }
inline Mask mask_from_bits(uint32_t b) {
  const I32 bit = STOKER_EACH(_mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1),
                              _mm256_set_epi32(32768, 16384, 8192, 4096, 2048, 1024, 512, 256));
  return (set1((int32_t)b) & bit) == bit;
}
inline uint32_t bits(Mask m) {
  return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(m.v[0])) |
         (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(m.v[1])) << 8;
}
inline F32 select(Mask m, F32 a, F32 b) {
  return STOKER_EACH(_mm256_blendv_ps(b.v[0], a.v[0], _mm256_castsi256_ps(m.v[0])),
                     _mm256_blendv_ps(b.v[1], a.v[1], _mm256_castsi256_ps(m.v[1])));
}
inline I32 select(Mask m, I32 a, I32 b) {
  return STOKER_EACH(_mm256_blendv_epi8(b.v[0], a.v[0], m.v[0]), _mm256_blendv_epi8(b.v[1], a.v[1], m.v[1]));
}

inline float reduce_add(F32 a) {
  const __m256 h = _mm256_add_ps(a.v[0], a.v[1]);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float reduce_max(F32 a) {
  const __m256 h = _mm256_max_ps(a.v[0], a.v[1]);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline int32_t reduce_add(I32 a) {
  const __m256i h = _mm256_add_epi32(a.v[0], a.v[1]);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}

inline U8x64 load_bytes(const uint8_t* p) {
  return STOKER_EACH(_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32)));
}
inline U8x64 low_nibbles(U8x64 a) {
  const __m256i f = _mm256_set1_epi8(15);
  return STOKER_EACH(_mm256_and_si256(a.v[0], f), _mm256_and_si256(a.v[1], f));
}
inline U8x64 high_nibbles(U8x64 a) {
  const __m256i f = _mm256_set1_epi8(15);
  return STOKER_EACH(_mm256_and_si256(_mm256_srli_epi16(a.v[0], 4), f), _mm256_and_si256(_mm256_srli_epi16(a.v[1], 4), f));
}
inline __m256i bit4_half(uint32_t set) {  // 16 in byte i where bit i is set
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32((int32_t)set),
      _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
  const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16));
}
inline U8x64 with_bit4(U8x64 a, uint64_t set) {
  return STOKER_EACH(_mm256_or_si256(a.v[0], bit4_half((uint32_t)set)),
                     _mm256_or_si256(a.v[1], bit4_half((uint32_t)(set >> 32))));
}
inline __m256i dot4_half(__m256i acc, __m256i u, __m256i s) {  // needs 2 · u · |s| < 32768
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
inline __m256i dot4_full_half(__m256i acc, __m256i u, __m256i s) {
  // maddubs saturates past 32767, so the top bit of u goes apart: u = low7 + 128 · top.
  const __m256i low7 = _mm256_and_si256(u, _mm256_set1_epi8(127));
  const __m256i top = _mm256_and_si256(_mm256_srli_epi16(u, 7), _mm256_set1_epi8(1));
  const __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(top, s), _mm256_set1_epi16(128));
  return _mm256_add_epi32(dot4_half(acc, low7, s), high);
}
inline __m256i four_bytes(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
inline I32 dot4(I32 acc, U8x64 w, const int8_t* a) {
  const __m256i s = four_bytes(a);
  return STOKER_EACH(dot4_half(acc.v[0], w.v[0], s), dot4_half(acc.v[1], w.v[1], s));
}
inline I32 dot4_full(I32 acc, U8x64 w, const int8_t* a) {
  const __m256i s = four_bytes(a);
  return STOKER_EACH(dot4_full_half(acc.v[0], w.v[0], s), dot4_full_half(acc.v[1], w.v[1], s));
}
inline I32 dot4_signed(I32 acc, const uint8_t* p, U8x64 v) {
  const __m256i u = four_bytes(p);
  return STOKER_EACH(dot4_full_half(acc.v[0], u, v.v[0]), dot4_full_half(acc.v[1], u, v.v[1]));
}
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }  // as for AVX-512
#undef STOKER_BINARY
#undef STOKER_COMPARE_F32
#undef STOKER_EACH
