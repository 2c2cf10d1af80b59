// Rotary position embedding (Su et al. 2021) from a table made once per step: every column i of a head has
// cosine[i] and a sine that carries the sign, so out = x * cosine + partner(x) * sine for either pairing.

// x, out: [tokens][heads * head_size], may be the same; rotates tokens [begin, end).
void rope(const RopeTask& task, const float* x, float* out, int64_t heads, int64_t begin, int64_t end) {
  const int half = task.rotary / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float* c = task.cosine + t * task.rotary;
    const float* s = task.sine + t * task.rotary;
    for (int64_t h = 0; h < heads; ++h) {
      const float* p = x + (t * heads + h) * task.head_size;
      float* o = out + (t * heads + h) * task.head_size;
      if (task.interleaved && task.rotary % 16 == 0) {
        for (int i = 0; i < task.rotary; i += 16) {
          const F32 v = load(p + i);
          store(o + i, fma(v, load(c + i), swap_pairs(v) * load(s + i)));
        }
      } else if (!task.interleaved && half % 16 == 0) {
        for (int i = 0; i < half; i += 16) {
          const F32 a = load(p + i), b = load(p + half + i);
          store(o + i, fma(a, load(c + i), b * load(s + i)));
          store(o + half + i, fma(b, load(c + half + i), a * load(s + half + i)));
        }
      } else {  // odd sizes: the same operations, a pair at a time
        for (int i = 0; i < half; ++i) {
          const int first = task.interleaved ? 2 * i : i, second = task.interleaved ? 2 * i + 1 : i + half;
          const float a = p[first], b = p[second];
          o[first] = __builtin_fmaf(a, c[first], b * s[first]);
          o[second] = __builtin_fmaf(b, c[second], a * s[second]);
        }
      }
      if (o != p)
        for (int i = task.rotary; i < task.head_size; ++i) o[i] = p[i];
    }
  }
}
