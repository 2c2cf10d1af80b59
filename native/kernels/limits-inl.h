// What the machine can do at most, measured with this target's own instructions: bytes read per second and
// int8 dots per second. `stoker bench` prints them beside what the engine reaches.

// Reads [begin, begin + bytes), a multiple of 256 bytes; the result keeps the compiler from leaving it out.
uint64_t read_bytes(const uint8_t* begin, int64_t bytes) {
  I32 a = zero_i32(), b = a, c = a, d = a;
  for (int64_t i = 0; i < bytes; i += 256) {
    const int32_t* p = (const int32_t*)(begin + i);
    prefetch(begin + i + 4096);
    prefetch(begin + i + 4160);
    prefetch(begin + i + 4224);
    prefetch(begin + i + 4288);
    a = a ^ load(p);
    b = b ^ load(p + 16);
    c = c ^ load(p + 32);
    d = d ^ load(p + 48);
  }
  return (uint64_t)(uint32_t)reduce_add((a ^ b) ^ (c ^ d));
}

// rounds x 8 dots of 64 byte products each, on registers: 8 chains cover the dot's latency of 4 cycles.
uint64_t int8_dots(int64_t rounds) {
  alignas(64) uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = (uint8_t)(i & 15);
  const U8x64 w = load_bytes(bytes);
  alignas(64) int8_t x[4] = {1, -2, 3, -4};
  I32 a = zero_i32(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
  for (int64_t i = 0; i < rounds; ++i) {
    a = dot4(a, w, x), b = dot4(b, w, x), c = dot4(c, w, x), d = dot4(d, w, x);
    e = dot4(e, w, x), f = dot4(f, w, x), g = dot4(g, w, x), h = dot4(h, w, x);
  }
  const I32 all = ((a + b) + (c + d)) + ((e + f) + (g + h));
  return (uint64_t)(uint32_t)reduce_add(all);
}
