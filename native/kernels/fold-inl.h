// Lanes of many rows folded together: sixteen rows at a time take half the operations of one by one. The pairs that are
// added are those of reduce_add's fixed tree, so the bits are the same.

inline I32 swap_pairs(I32 a) { return as_i32(swap_pairs(as_f32(a))); }
inline I32 swap2(I32 a) { return as_i32(swap2(as_f32(a))); }
inline I32 swap4(I32 a) { return as_i32(swap4(as_f32(a))); }
inline I32 swap8(I32 a) { return as_i32(swap8(as_f32(a))); }

struct Add {
  template <class V>
  static V of(V a, V b) { return a + b; }
  static float all(F32 a) { return reduce_add(a); }
};
struct Max {
  static F32 of(F32 a, F32 b) { return vmax(a, b); }
  static float all(F32 a) { return reduce_max(a); }
};
// Of rows a and b, one half of their lanes folded onto the other: a's where `second` is clear, b's where it is set.
template <class Fold, class V>
inline V fold(V a, V b, Mask second, V (*swap)(V)) {
  return Fold::of(select(second, b, a), swap(select(second, a, b)));
}
// Lane r of the result = the 16 lanes of v[r] folded; writes over v.
template <class Fold, class V>
inline V fold16(V* v) {
  const Mask m8 = mask_from_bits(0xFF00), m4 = mask_from_bits(0xF0F0), m2 = mask_from_bits(0xCCCC), m1 = mask_from_bits(0xAAAA);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = fold<Fold, V>(v[i], v[i + 8], m8, swap8);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) v[i] = fold<Fold, V>(v[i], v[i + 4], m4, swap4);
  for (int i = 0; i < 2; ++i) v[i] = fold<Fold, V>(v[i], v[i + 2], m2, swap2);
  return fold<Fold, V>(v[0], v[1], m1, swap_pairs);
}
// out[r] = the 16 lanes of row r folded.
template <class Fold>
inline void fold_rows(const float* lanes, int rows, float* out) {
  int first = 0;
  for (; first + 6 <= rows; first += 16) {  // rows past the last hold stale numbers, and nobody reads theirs
    F32 v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = load(lanes + 16 * (first + i));
    store(out + first, fold16<Fold>(v));
  }
  for (; first < rows; ++first) out[first] = Fold::all(load(lanes + 16 * first));
}
