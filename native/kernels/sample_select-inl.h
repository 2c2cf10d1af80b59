// Selection without sorting: the first tokens in the order (key ascending, id ascending) whose weights reach
// a limit, by radix over the bits of non-negative floats. Weights are integers, so every order of adding agrees.

// Keep key < cut.key, and of those equal to it, by ascending id, as many as `before` leaves below the limit.
struct Cut {
  bool all;         // the weights never reach the limit: keep everything
  uint32_t key;     // bits of the key of the last token kept
  uint64_t before;  // weight of all tokens with smaller keys
};

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

// One digit of the radix selection: adds up the weights of the keys that begin with cut.key by their next
// kWidth bits, and extends cut.key by the digit where the limit falls. weight == nullptr counts tokens.
template <int kWidth, int kShift>
inline void extend_cut(Cut& cut, const float* key, const uint64_t* weight, int64_t n, uint64_t limit,
                       uint64_t* digit) {
  constexpr uint32_t kBuckets = 1u << kWidth;
  for (uint32_t b = 0; b < kBuckets; ++b) digit[b] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t k = bits_of(key[i]) >> kShift;
    if (k >> kWidth == cut.key) digit[k & (kBuckets - 1)] += weight ? weight[i] : 1;
  }
  uint32_t b = 0;
  while (b < kBuckets && cut.before + digit[b] < limit) cut.before += digit[b++];
  if (b == kBuckets)
    cut.all = true;  // only at the first digit, whose buckets hold everything
  else
    cut.key = cut.key << kWidth | b;
}

// A token is kept if the weight before it is below limit, limit >= 1. The sign bit of keys is zero.
inline Cut find_cut(const float* key, const uint64_t* weight, int64_t n, uint64_t limit, uint64_t* digit) {
  Cut cut{false, 0, 0};
  extend_cut<11, 20>(cut, key, weight, n, limit, digit);
  if (cut.all) return cut;
  extend_cut<10, 10>(cut, key, weight, n, limit, digit);
  extend_cut<10, 0>(cut, key, weight, n, limit, digit);
  return cut;
}

// Compacts the candidates to those the cut keeps; returns how many. mass may be nullptr (counting).
inline int64_t apply_cut(const Cut& cut, const float* key, uint64_t limit, SampleScratch& s, const uint64_t* mass,
                         int64_t n) {
  if (cut.all) return n;
  int64_t kept = 0;
  uint64_t before = cut.before;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t k = bits_of(key[i]);
    const uint64_t weight = mass ? mass[i] : 1;
    bool keep = k < cut.key;
    if (k == cut.key && before < limit) {
      keep = true;
      before += weight;
    }
    s.ids[kept] = s.ids[i];
    s.depth[kept] = s.depth[i];
    if (mass) s.mass[kept] = weight;
    kept += keep;
  }
  return kept;
}

// Whole mass as two ints: p = whole * 2^-20 + part * 2^-40, exact to half of the last unit. p in [0, 1].
struct FixedPoint { I32 whole, part; };

inline FixedPoint to_fixed(F32 p) {
  const F32 scaled = p * set1(0x1p20f);
  const I32 whole = to_i32(scaled);
  return {whole, to_i32((scaled - to_f32(whole)) * set1(0x1p20f))};
}

constexpr float kMassDepth = 28.5f;  // e^-28.5 * 2^40 < 1/2: deeper tokens have no mass

inline F32 exp_of_depth(F32 d) {  // 0 for NaN and for what has no mass anyway
  return select(set1(kMassDepth) >= d, vexp(zero_f32() - d), zero_f32());
}

inline uint64_t sum_fixed(I32 whole, I32 part) {
  alignas(64) int32_t a[16], b[16];
  store(a, whole);
  store(b, part);
  int64_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += ((int64_t)a[i] << 20) + b[i];
  return (uint64_t)sum;
}

// Writes the mass of each candidate; returns the sum. depth is padded to a multiple of 16.
inline uint64_t mass_of_candidates(SampleScratch& s, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const FixedPoint m = to_fixed(exp_of_depth(load(s.depth + i)));
    alignas(64) int32_t a[16], b[16];
    store(a, m.whole);
    store(b, m.part);
    for (int j = 0; j < 16; ++j) {
      const uint64_t mass = (uint64_t)(((int64_t)a[j] << 20) + b[j]);
      s.mass[i + j] = mass;
      sum += mass;
    }
  }
  return sum;
}

// The tokens kept by a share of the mass `total`: those with less than this before them.
inline uint64_t mass_limit(double share, uint64_t total) {
  const double whole = (double)total;
  double limit = __builtin_ceil(share * whole);
  if (limit < 1.0) limit = 1.0;
  if (limit > whole) limit = whole;
  const uint64_t result = (uint64_t)limit;
  return result < total ? result : total;  // `whole` may have been rounded up
}

inline float log_mass(uint64_t total) { return log1((float)total * 0x1p-40f); }
