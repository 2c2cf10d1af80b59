// Walsh-Hadamard transform of a head's numbers, unnormalised (entries +1 and -1), in place. It spreads
// outliers over all columns before rounding to int8: of everything tried it cut attention's rounding error
// most (docs/decisions/0002), costs nothing in the inner loops, and q . k = (Hq) . (Hk) / n undoes itself.

// The transform runs over blocks of the largest power of two that divides head_size (at least 16).
inline int hadamard_block(int head_size) { return head_size & -head_size; }

inline void hadamard(float* x, int head_size) {
  const int block = hadamard_block(head_size);
  const F32 one = set1(1.0f), minus = set1(-1.0f);
  const F32 sign1 = select(mask_from_bits(0xAAAA), minus, one), sign2 = select(mask_from_bits(0xCCCC), minus, one);
  const F32 sign4 = select(mask_from_bits(0xF0F0), minus, one), sign8 = select(mask_from_bits(0xFF00), minus, one);
  for (int i = 0; i < head_size; i += 16) {
    F32 v = load(x + i);
    v = swap_pairs(v) + v * sign1;
    v = swap2(v) + v * sign2;
    v = swap4(v) + v * sign4;
    v = swap8(v) + v * sign8;
    store(x + i, v);
  }
  for (int start = 0; start < head_size; start += block)
    for (int step = 16; step < block; step *= 2)
      for (int i = start; i < start + block; i += 2 * step)
        for (int j = i; j < i + step; j += 16) {
          const F32 a = load(x + j), b = load(x + j + step);
          store(x + j, a + b);
          store(x + j + step, a - b);
        }
}
