// The two largest of n logits, a multiple of 16, the first of equals, and their shares of the distribution: 1 / sum of
// e^(x - top). None (-1) where no number is above -infinity. With
// NaNs among them some place or none.
inline int32_t first_place(const float* x, int64_t n, float wanted, int32_t but) {
  for (int64_t i = 0; i < n; i += 16)
    if (uint32_t found = bits(load(x + i) == set1(wanted))) {
      if (but >= i && but < i + 16) found &= ~(1u << (but - i));
      if (found) return (int32_t)(i + std::countr_zero(found));
    }
  return -1;
}

void likeliest(const float* x, int64_t n, Likeliest& out) {
  F32 most = set1(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i += 16) most = vmax(most, load(x + i));
  const float top = reduce_max(most);
  out = {};
  if (!(top > -std::numeric_limits<float>::infinity())) return;
  out.first = first_place(x, n, top, -1);
  if (out.first < 0) return;
  F32 sum = zero_f32(), rest = set1(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i += 16) {
    const F32 v = load(x + i);
    sum = sum + vexp(v - set1(top));
    const uint32_t is_first = out.first >= i && out.first < i + 16 ? 1u << (out.first - i) : 0;
    rest = vmax(rest, select(mask_from_bits(is_first), set1(-std::numeric_limits<float>::infinity()), v));
  }
  out.share = 1.0f / reduce_add(sum);
  const float second = reduce_max(rest);
  if (!(second > -std::numeric_limits<float>::infinity())) return;
  out.second = first_place(x, n, second, out.first);
  alignas(64) float lanes[16];
  store(lanes, vexp(set1(second - top)));
  out.second_share = out.share * lanes[0];
}
