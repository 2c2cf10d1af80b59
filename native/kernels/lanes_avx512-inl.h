// Lanes on AVX-512 (F, BW, VL, DQ, VNNI): one zmm register each.
// <immintrin.h> is included by the target's .cc, outside every namespace.

struct F32 { __m512 v; };
struct I32 { __m512i v; };
struct U8x64 { __m512i v; };
struct Mask { __mmask16 m; };

constexpr int kTokenTile = 16;  // sums a matmul tile keeps in registers: 16 of the 32 zmm
constexpr int kByteBias = 0;    // dot4_full multiplies unsigned bytes as they are

inline F32 zero_f32() { return {_mm512_setzero_ps()}; }
inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
// Past the caches: p on 64 bytes; stream_end() before another thread reads.
inline void stream(float* p, F32 a) { _mm512_stream_ps(p, a.v); }
inline void stream_end() { _mm_sfence(); }
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 vmin(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 vmax(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 vabs(F32 a) { return {_mm512_abs_ps(a.v)}; }
inline F32 vsqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32 swap_pairs(F32 a) { return {_mm512_permute_ps(a.v, 0xB1)}; }  // lanes 1 0 3 2 ...
inline F32 swap2(F32 a) { return {_mm512_permute_ps(a.v, 0x4E)}; }        // lanes 2 3 0 1 ...
inline F32 swap4(F32 a) { return {_mm512_shuffle_f32x4(a.v, a.v, 0xB1)}; }
inline F32 swap8(F32 a) { return {_mm512_shuffle_f32x4(a.v, a.v, 0x4E)}; }
inline F32 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F32 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}

inline I32 zero_i32() { return {_mm512_setzero_si512()}; }
inline I32 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32 broadcast(const int32_t* p) { return {_mm512_set1_epi32(*p)}; }
inline I32 iota() { return {_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}; }
inline I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
inline I32 load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline I32 load_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline void store_i8(int8_t* p, I32 a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a.v)); }  // low bytes
inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N> inline I32 shl(I32 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N> inline I32 shr(I32 a) { return {_mm512_srli_epi32(a.v, N)}; }   // logical
template <int N> inline I32 sar(I32 a) { return {_mm512_srai_epi32(a.v, N)}; }   // arithmetic
inline I32 mulhi_u32(I32 a, I32 b) {  // high halves of the unsigned 64-bit products
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a.v, b.v), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), _mm512_srli_epi64(b.v, 32));
  return {_mm512_mask_blend_epi32(0xAAAA, even, odd)};
}

inline F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32 to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32 as_f32(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I32 as_i32(F32 a) { return {_mm512_castps_si512(a.v)}; }

inline Mask operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator>(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask operator>=(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator==(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask operator<(I32 a, I32 b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
inline Mask operator>(I32 a, I32 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
inline Mask operator==(I32 a, I32 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline Mask operator&(Mask a, Mask b) { return {(__mmask16)(a.m & b.m)}; }
inline Mask operator|(Mask a, Mask b) { return {(__mmask16)(a.m | b.m)}; }
inline Mask first_lanes(int n) { return {(__mmask16)((1u << n) - 1)}; }  // 0 <= n <= 16
inline Mask mask_from_bits(uint32_t bits) { return {(__mmask16)bits}; }
inline uint32_t bits(Mask m) { return m.m; }  // bit i = lane i
inline F32 select(Mask m, F32 a, F32 b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }  // m ? a : b
inline I32 select(Mask m, I32 a, I32 b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }

inline float reduce_add(F32 a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
inline float reduce_max(F32 a) { return _mm512_reduce_max_ps(a.v); }
inline int32_t reduce_add(I32 a) { return _mm512_reduce_add_epi32(a.v); }

inline U8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline U8x64 low_nibbles(U8x64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline U8x64 high_nibbles(U8x64 a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
inline U8x64 with_bit4(U8x64 a, uint64_t set) {  // byte i += 16 where bit i is set; bytes are below 16
  return {_mm512_mask_add_epi8(a.v, set, a.v, _mm512_set1_epi8(16))};
}
// Four signed bytes at `a` against every lane's four weight bytes below 32. In assembly because gcc 12 makes a
// broadcast and a dot of it, two micro-operations where the instruction's own broadcast takes one.
inline I32 dot4(I32 acc, U8x64 w, const int8_t* a) {
  typedef int32_t __attribute__((may_alias, aligned(1))) Four;
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(w.v), "m"(*(const Four*)a));
  return acc;
}
// The same for weight bytes of the full range, stored as q; the target multiplies q - kByteBias.
inline I32 dot4_full(I32 acc, U8x64 w, const int8_t* a) { return dot4(acc, w, a); }
// Four unsigned bytes at `p` (the same for all lanes) against every lane's four bytes of v, read as signed.
inline I32 dot4_signed(I32 acc, const uint8_t* p, U8x64 v) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_dpbusd_epi32(acc.v, _mm512_set1_epi32(four), v.v)};
}
// Past the first cache: its few outstanding misses would hold up the loads that hit (decode 15 to 20 % faster on Zen 4).
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }
