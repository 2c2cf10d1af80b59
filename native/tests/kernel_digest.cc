// Runs every function of the kernel table on fixed pseudo-random inputs of awkward shapes and prints a 64-bit
// digest of the result of each: the same lines on every target, compiler and machine, or E1 is broken.
// STOKER_TARGET chooses the table. Exit status 1 when a result depends on how its work was split.
// tests/numerics/test_neon.py compiles and compares; by hand:
//   c++ -std=c++20 -O3 -ffp-contract=off -Inative native/tests/kernel_digest.cc native/[!b]*.cc native/targets/*.cc
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernel_table.h"
#include "pack.h"
#include "program.h"

using namespace stoker;

namespace {

int failures = 0;

// Integers only, so that the inputs are the same everywhere.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 0x1234567) {}
  uint32_t bits() {  // PCG-XSH-RR 64/32 (O'Neill 2014)
    const uint64_t old = state;
    state = old * 6364136223846793005ull + 1442695040888963407ull;
    const uint32_t x = (uint32_t)(((old >> 18) ^ old) >> 27), r = (uint32_t)(old >> 59);
    return x >> r | x << (-r & 31);
  }
  int64_t below(int64_t n) { return (int64_t)(bits() % (uint64_t)n); }
  float unit() { return (float)(bits() >> 8) * 0x1p-24f; }          // [0, 1), exact
  float even() { return (float)((int32_t)bits() >> 8) * 0x1p-23f; }  // [-1, 1), exact
};

// Padded by a vector: elementwise kernels work on whole ones.
std::vector<float> floats(Random& random, int64_t n, float size = 1.0f) {
  std::vector<float> v((size_t)n + 16, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    v[(size_t)i] = random.even() * size;
    switch (random.bits() % 64) {  // what ordinary data has now and then
      case 0: v[(size_t)i] = 0.0f; break;
      case 1: v[(size_t)i] = -0.0f; break;
      case 2: v[(size_t)i] *= 40.0f; break;
      case 3: v[(size_t)i] *= 1e-20f; break;
      default: break;
    }
  }
  return v;
}

// Then rows that are all of one kind: zeros, subnormals, huge.
void spoil(std::vector<float>& v, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      float& x = v[(size_t)(r * width + i)];
      if (r % 7 == 3) x = 0.0f;
      if (r % 7 == 4) x *= 1e-42f;
      if (r % 7 == 5) x *= 1e17f;
    }
}

// FNV-1a, a word of four bytes at a time where there are four.
uint64_t fnv(uint64_t hash, const void* p, size_t bytes) {
  const uint8_t* at = (const uint8_t*)p;
  for (; bytes >= 4; bytes -= 4, at += 4) {
    uint32_t word;
    std::memcpy(&word, at, 4);
    hash = (hash ^ word) * 1099511628211ull;
    hash ^= hash >> 29;
  }
  for (; bytes > 0; --bytes, ++at) hash = (hash ^ *at) * 1099511628211ull;
  return hash;
}
uint64_t digest(const float* v, int64_t n, uint64_t hash = 14695981039346656037ull) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u;
    std::memcpy(&u, v + i, 4);
    if (v[i] != v[i]) u = 0x7FC00000;  // which NaN it is differs between machines
    hash = fnv(hash, &u, 4);
  }
  return hash;
}
uint64_t digest(const std::vector<float>& v, uint64_t hash = 14695981039346656037ull) { return digest(v.data(), (int64_t)v.size(), hash); }
template <class T>
uint64_t digest_bytes(const std::vector<T>& v, uint64_t hash = 14695981039346656037ull) { return fnv(hash, v.data(), v.size() * sizeof(T)); }

void print(uint64_t hash, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf(" %016llx\n", (unsigned long long)hash);
}
void expect(bool same, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  if (same) return;
  ++failures;
  std::printf("DIFFERS %s %lld %lld %lld\n", what, (long long)a, (long long)b, (long long)c);
}
bool same(const float* a, const float* b, int64_t n) { return digest(a, n) == digest(b, n); }

struct Quantised {
  std::vector<int8_t> q;
  std::vector<float> scale, scaled_sum, values;
  std::vector<int32_t> sum, half_sum, columns;
  QuantisedRows rows;
  Quantised(int64_t tokens, int64_t width, std::vector<int32_t> outliers = {}) : columns(std::move(outliers)) {
    const size_t slots = (size_t)((tokens + 15) / 16 * 16 * (width / 32));
    q.resize(slots * 32), scale.resize(slots), scaled_sum.resize(slots), sum.resize(slots), half_sum.resize(2 * slots);
    values.resize(columns.size() * (size_t)tokens + 1);
    rows = {width, q.data(), scale.data(), scaled_sum.data(), sum.data(), half_sum.data(), (int)columns.size(), columns.data(), values.data()};
  }
  uint64_t hash() const {
    return digest(values, digest_bytes(half_sum, digest_bytes(sum, digest(scaled_sum, digest(scale, digest_bytes(q))))));
  }
};

void norms(const KernelTable& k) {
  for (int64_t width : {32, 64, 96, 320, 576})
    for (int64_t rows : {1, 3, 15, 17}) {
      Random random(width * 100 + rows);
      std::vector<float> x = floats(random, rows * width, 3.0f), w = floats(random, width), r = floats(random, rows * width);
      spoil(x, rows, width);
      std::vector<float> out(x.size()), sum = r;
      k.rms_norm(x.data(), w.data(), width, 1e-6f, out.data(), 0, rows / 2);
      k.rms_norm(x.data(), w.data(), width, 1e-6f, out.data(), rows / 2, rows);
      print(digest(out), "rms_norm %d %d", (int)width, (int)rows);
      k.rms_norm_add(x.data(), w.data(), sum.data(), width, 1e-6f, sum.data(), 0, rows);
      print(digest(sum), "rms_norm_add %d %d", (int)width, (int)rows);
      for (int outliers : {0, 1, 4}) {
        std::vector<int32_t> columns;
        for (int i = 0; i < outliers; ++i) columns.push_back((int32_t)(i < 2 ? i : width - 5 + i));
        Quantised q(rows, width, columns);
        k.rms_norm_quantise(x.data(), w.data(), width, 1e-6f, q.rows, 0, rows);
        print(q.hash(), "rms_norm_quantise %d %d %d", (int)width, (int)rows, outliers);
        if (outliers) continue;
        Quantised twice(rows, width);
        k.quantise_rows(out.data(), width, twice.rows, 0, rows);
        expect(q.hash() == twice.hash(), "norm + quantise against both in one", width, rows);
      }
      Quantised q(rows, width);
      k.quantise_rows(x.data(), width, q.rows, 0, rows);
      print(q.hash(), "quantise_rows %d %d", (int)width, (int)rows);
    }
}

void elementwise(const KernelTable& k) {
  for (int64_t n : {16, 48, 1008}) {
    Random random(n);
    std::vector<float> a = floats(random, n, 30.0f), b = floats(random, n, 5.0f), out((size_t)n);
    a[0] = 200.0f, a[1] = -200.0f, a[2] = 88.5f, a[3] = -87.5f, a[4] = 1e30f, a[5] = -1e30f, a[6] = 1e-40f;
    for (Activation activation : {Activation::silu, Activation::gelu_tanh}) {
      k.gated_activation(activation, a.data(), b.data(), out.data(), 0, n);
      print(digest(out), "gated_activation %d %d", (int)activation, (int)n);
    }
    k.add_rows(a.data(), b.data(), out.data(), 0, n);
    print(digest(out), "add_rows %d", (int)n);
    k.scale_rows(a.data(), 25.298221f, out.data(), 0, n);
    print(digest(out), "scale_rows %d", (int)n);
    k.softcap_rows(a.data(), 15.0f, out.data(), 0, n);
    print(digest(out), "softcap_rows %d", (int)n);
  }
}

void ropes(const KernelTable& k) {
  RopeTable table{};
  for (bool interleaved : {false, true})
    for (int rotary : {2, 12, 16, 32, 48, 64}) {
      const int head_size = 64, heads = 3;
      table = {rotary, interleaved, rope_frequencies(10000.0, rotary), {}, {}};
      const int positions[] = {0, 1, 63, 4095, 131071};
      const int64_t tokens = 5;
      std::vector<float> cosine((size_t)(tokens * rotary)), sine = cosine;
      for (int64_t t = 0; t < tokens; ++t) rope_row(table, positions[t], &cosine[(size_t)(t * rotary)], &sine[(size_t)(t * rotary)]);
      print(digest(sine, digest(cosine, digest(table.frequency))), "angles %d %d", interleaved, rotary);
      Random random(rotary);
      std::vector<float> x = floats(random, tokens * heads * head_size), out(x.size());
      const RopeTask task{head_size, rotary, interleaved, cosine.data(), sine.data()};
      k.rope(task, x.data(), out.data(), heads, 0, tokens);
      print(digest(out), "rope %d %d", interleaved, rotary);
      k.rope(task, x.data(), x.data(), heads, 2, tokens);
      k.rope(task, x.data(), x.data(), heads, 0, 2);
      expect(same(x.data(), out.data(), (int64_t)x.size()), "rope in place", interleaved, rotary);
    }
}

struct Type {
  int id;
  const char* name;
  int block_columns, block_bytes;
  std::vector<int> scales;  // byte offsets of float16 scales
};
const std::vector<Type>& types() {
  static const std::vector<Type> all = {
      {0, "F32", 1, 4, {}}, {1, "F16", 1, 2, {}}, {30, "BF16", 1, 2, {}},
      {2, "Q4_0", 32, 18, {0}}, {3, "Q4_1", 32, 20, {0, 2}}, {6, "Q5_0", 32, 22, {0}}, {7, "Q5_1", 32, 24, {0, 2}},
      {8, "Q8_0", 32, 34, {0}}, {20, "IQ4_NL", 32, 18, {0}}, {10, "Q2_K", 256, 84, {80, 82}}, {11, "Q3_K", 256, 110, {108}},
      {12, "Q4_K", 256, 144, {0, 2}}, {13, "Q5_K", 256, 176, {0, 2}}, {14, "Q6_K", 256, 210, {208}},
  };
  return all;
}

PackedMatrix random_matrix(Random& random, const Type& type, int64_t rows, int64_t columns) {
  std::vector<uint8_t> raw((size_t)(rows * columns / type.block_columns * type.block_bytes));
  for (uint8_t& byte : raw) byte = (uint8_t)random.bits();
  for (size_t block = 0; block < raw.size(); block += (size_t)type.block_bytes) {
    for (int at : type.scales) {  // exponents of 2^-14 to 2^-7, either sign
      const uint16_t half = (uint16_t)((random.bits() & 0x83FF) | (1 + random.bits() % 8) << 10);
      std::memcpy(&raw[block + (size_t)at], &half, 2);
    }
    uint8_t& top = raw[block + (size_t)type.block_bytes - 1];
    if (type.scales.empty()) top = (uint8_t)((top & 0x80) | (type.id == 1 ? 0x30 : 0x3E) | (top & 1));  // around 1/4
  }
  PackedMatrix m = allocate_packed(type.id, rows, columns);
  if (!pack_panels(m, type.id, raw.data(), 0, m.panels).ok) expect(false, "pack");
  return m;
}

std::vector<float> outlier_weights(const PackedMatrix& m, const std::vector<int32_t>& columns) {
  std::vector<float> out((size_t)(m.panels * 16) * columns.size() + 1);
  for (int64_t row = 0; row < m.rows; ++row)
    for (size_t i = 0; i < columns.size(); ++i)
      out[((size_t)(row / 16) * columns.size() + i) * 16 + (size_t)(row % 16)] = packed_element(m, row, columns[i]);
  return out;
}

// All of 33 tokens at once; then parts of them, panel by panel, must give the same.
void linear_of(const KernelTable& k, const Type& type, int64_t rows, int64_t columns, int outliers) {
  constexpr int64_t kMost = 33;
  Random random(rows * 1000 + columns * 7 + type.id);
  const PackedMatrix m = random_matrix(random, type, rows, columns);
  std::vector<float> x = floats(random, kMost * columns), bias = floats(random, rows), start = floats(random, kMost * rows);
  std::vector<int32_t> chosen;
  for (int i = 0; i < outliers; ++i) chosen.push_back(i < 2 ? i : (int32_t)columns - 1);
  const std::vector<float> weights = outlier_weights(m, chosen), ones((size_t)columns, 1.0f);
  const bool is_float = type.scales.empty();
  const auto run = [&](int64_t first, int64_t tokens, bool with_bias, bool add, float* out, bool split) {
    Quantised q(tokens, is_float ? 32 : columns, chosen);
    LinearTask task;
    if (is_float) task.x_float = x.data() + first * columns;
    else k.rms_norm_quantise(x.data() + first * columns, ones.data(), columns, 1e-5f, q.rows, 0, tokens), task.x = q.rows;
    task.weight = &m, task.outlier_weights = weights.data();
    task.tokens = tokens, task.out = out, task.out_stride = rows;
    task.bias = with_bias ? bias.data() : nullptr, task.add = add;
    if (!split) return k.linear(task, 0, m.panels);
    for (int64_t p = m.panels; p-- > 0;) k.linear(task, p, p + 1);
  };
  std::vector<float> all((size_t)(kMost * rows)), part(all.size());
  run(0, kMost, false, false, all.data(), false);
  print(digest(all), "linear %s %d %d %d", type.name, (int)rows, (int)columns, outliers);
  run(0, kMost, false, false, part.data(), true);
  expect(same(all.data(), part.data(), kMost * rows), type.name, rows, columns, -1);
  for (int64_t tokens : {1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 31}) {
    run(kMost - tokens, tokens, false, false, part.data(), tokens % 2);
    expect(same(&all[(size_t)((kMost - tokens) * rows)], part.data(), tokens * rows), type.name, rows, columns, tokens);
  }
  std::vector<float> added = start;
  run(0, 7, true, true, added.data(), false);
  print(digest(added.data(), 7 * rows), "linear+bias+residual %s %d %d %d", type.name, (int)rows, (int)columns, outliers);
}

void linears(const KernelTable& k) {
  for (const Type& type : types())
    for (int64_t rows : {3, 16, 17}) {
      if (type.block_columns == 1)
        for (int64_t columns : {1, 3, 33}) linear_of(k, type, rows, columns, 0);
      else
        for (int64_t blocks : {1, 3}) linear_of(k, type, rows, blocks * type.block_columns, blocks == 3 ? 3 : 0);
    }
}

void gated_linears(const KernelTable& k) {
  for (const Type& type : types()) {
    if (type.scales.empty()) continue;
    const int64_t rows = 96, columns = type.block_columns * 2, tokens = 19;
    Random random(type.id);
    const PackedMatrix gate = random_matrix(random, type, rows, columns), up = random_matrix(random, types()[4], rows, columns);
    const std::vector<int32_t> chosen = {5, (int32_t)columns - 32};
    const std::vector<float> gate_weights = outlier_weights(gate, chosen), up_weights = outlier_weights(up, chosen);
    std::vector<float> x = floats(random, tokens * columns), ones((size_t)columns, 1.0f);
    Quantised q(tokens, columns, chosen), out(tokens, rows), split(tokens, rows);
    k.rms_norm_quantise(x.data(), ones.data(), columns, 1e-5f, q.rows, 0, tokens);
    LinearTask task;
    task.weight = &gate, task.up = &up, task.x = q.rows, task.tokens = tokens, task.out_quantised = out.rows;
    task.activation = type.id % 2 ? Activation::gelu_tanh : Activation::silu;
    task.outlier_weights = gate_weights.data(), task.up_outlier_weights = up_weights.data();
    k.linear_gated(task, 0, 3);
    print(out.hash(), "linear_gated %s", type.name);
    task.out_quantised = split.rows;
    k.linear_gated(task, 2, 3), k.linear_gated(task, 0, 2);
    expect(out.hash() == split.hash(), "linear_gated in parts", type.id);
  }
}

struct Shape {
  int head_size, heads, kv_heads;
  int64_t window;
  float softcap;
};

struct AttentionInputs {
  std::vector<float> keys, values, queries;  // of positions 0 .. kMostContext - 1
  static constexpr int kMostContext = 1030;
  explicit AttentionInputs(const Shape& s) {
    Random random(s.head_size * 31 + s.heads);
    keys = floats(random, (int64_t)kMostContext * s.kv_heads * s.head_size, 2.0f);
    values = floats(random, (int64_t)kMostContext * s.kv_heads * s.head_size);
    queries = floats(random, (int64_t)kMostContext * s.heads * s.head_size, 2.0f);
  }
};

// One sequence: `context` positions, the last `tokens` of which are queries. Returns [tokens][heads * head_size].
std::vector<float> attention_of(const KernelTable& k, KvType kind, const Shape& s, const AttentionInputs& in, int context, int tokens,
                                uint64_t* quantised, bool by_split) {
  const int blocks = (context + 15) / 16;
  KvCache cache(kind, {{s.kv_heads, s.head_size}}, blocks + 3);
  std::vector<int32_t> table((size_t)blocks), positions((size_t)context);
  for (int b = 0; b < blocks; ++b) table[(size_t)b] = blocks + 2 - b;
  for (int p = 0; p < context; ++p) positions[(size_t)p] = p;
  const int64_t width = s.heads * s.head_size, first = context - tokens;
  std::vector<float> out((size_t)(tokens * width));
  Quantised q(tokens, width % 32 ? 32 : width);
  std::vector<int8_t> q_int8((size_t)(tokens * width));
  std::vector<float> q_scale((size_t)(tokens * s.heads));
  std::vector<int32_t> q_sum((size_t)(tokens * s.heads));
  AttentionTask task{};
  task.cache = &cache, task.heads = s.heads, task.kv_heads = s.kv_heads, task.head_size = s.head_size;
  task.scale = 0.3f, task.window = s.window, task.softcap = s.softcap;
  task.positions = positions.data(), task.block_tables = table.data(), task.table_stride = blocks;
  for (int p = 0; p < context; ++p) k.store_keys(task, in.keys.data(), in.values.data(), p, 0);
  task.positions = positions.data() + first, task.q = in.queries.data() + first * width;
  task.q_int8 = q_int8.data(), task.q_scale = q_scale.data(), task.q_sum = q_sum.data(), task.out = out.data();
  if (quantised) task.out_quantised = q.rows;
  k.prepare_queries(task, 0, tokens);
  static AttentionScratch scratch;
  const int64_t size = kUnitRows * (s.head_size + 2), tile = kUnitRows / (s.heads / s.kv_heads);
  for (int64_t t = 0; t < tokens; t += tile)
    for (int h = 0; h < s.kv_heads; ++h) {
      const int64_t end = t + tile < tokens ? t + tile : tokens;
      const int64_t oldest = s.window && first + t >= s.window ? first + t - s.window + 1 : 0;
      const AttentionUnit unit{0, h, t, end, oldest / kSplitTokens, (first + end - 1) / kSplitTokens + 1};
      const int64_t splits = by_split ? unit.split_end - unit.split_begin : 1;
      std::vector<float> partials((size_t)(size * splits));
      for (int64_t i = 0; i < splits; ++i) {
        AttentionUnit part = unit;
        if (by_split) part.split_begin = unit.split_begin + i, part.split_end = part.split_begin + 1;
        k.attend(task, part, i % 2 ? &unit : nullptr, partials.data() + size * i, scratch);
      }
      k.finish(task, unit, partials.data(), size, splits);
    }
  if (quantised) *quantised = q.hash();
  return out;
}

void attentions(const KernelTable& k) {
  const std::vector<Shape> shapes = {
      {16, 4, 2, 0, 0}, {32, 3, 3, 0, 0}, {48, 4, 1, 40, 0}, {64, 9, 3, 0, 0}, {96, 4, 2, 0, 20},
      {128, 4, 1, 100, 0}, {256, 4, 1, 0, 0}, {512, 2, 1, 33, 50}, {16, 32, 1, 0, 0},
  };
  for (KvType kind : {KvType::int8, KvType::f16})
    for (const Shape& s : shapes) {
      const AttentionInputs in(s);
      for (int context : {1, 3, 15, 16, 17, 63, 64, 65, 130, 511, 512, 513, 1030}) {
        if (context > 130 && s.head_size > 48 && context != 513) continue;  // keeps an emulated run short
        const char* name = kind == KvType::int8 ? "int8" : "f16";
        const int tokens = context < 19 ? context : 19;
        const std::vector<float> all = attention_of(k, kind, s, in, context, tokens, nullptr, false);
        print(digest(all), "attention %s %d %d/%d %d %g %d", name, s.head_size, s.heads, s.kv_heads, (int)s.window, s.softcap, context);
        const std::vector<float> split = attention_of(k, kind, s, in, context, tokens, nullptr, true);
        expect(same(all.data(), split.data(), (int64_t)all.size()), "attention by splits", kind == KvType::int8, s.head_size, context);
        const int64_t width = s.heads * s.head_size;
        for (int few : {1, 3, 8}) {
          if (few > tokens) continue;
          const std::vector<float> part = attention_of(k, kind, s, in, context, few, nullptr, few % 2);
          expect(same(&all[(size_t)((tokens - few) * width)], part.data(), few * width), "attention of fewer tokens", few, s.head_size, context);
        }
        if (s.head_size % 32) continue;
        uint64_t hash = 0;
        attention_of(k, kind, s, in, context, tokens, &hash, false);
        print(hash, "attention quantised %s %d %d", name, s.head_size, context);
        Quantised q(tokens, width);
        k.quantise_rows(all.data(), width, q.rows, 0, tokens);
        expect(q.hash() == hash, "attention + quantise against both in one", s.head_size, context);
      }
    }
}

void samples(const KernelTable& k) {
  SampleMemory memory;
  for (int64_t n : {1, 3, 15, 16, 17, 63, 64, 65, 1000, 5003})
    for (int which = 0; which < 12; ++which) {
      Random random(n * 100 + which);
      std::vector<float> logits = floats(random, n, 8.0f);
      for (int64_t i = 0; i < n; ++i) {
        if (which == 3) logits[(size_t)i] = (float)(int)logits[(size_t)i];  // many ties
        if (which == 4 && i % 3) logits[(size_t)i] = -__builtin_inff();
        if (which == 5) logits[(size_t)i] *= 1e30f;
      }
      std::vector<int32_t> history, banned = {(int32_t)(n - 1)}, bias_ids = {0};
      for (int i = 0; i < 20; ++i) history.push_back((int32_t)random.below(n));
      const std::vector<float> bias = {1.5f};
      std::vector<uint32_t> mask((size_t)(n + 31) / 32 + 2);
      for (uint32_t& word : mask) word = random.bits() | random.bits();
      SampleRecord record{};
      record.seed = 42 + (uint64_t)which, record.position = 1000 + which * (int64_t)0x100000000;
      record.top_p = which % 3 == 1 ? 0.9 : 1, record.typical_p = which % 4 == 2 ? 0.8 : 1;
      record.temperature = which == 0 ? 0.0f : which % 2 ? 0.8f : 1.3f;
      record.min_p = which % 5 == 3 ? 0.02f : 0.0f, record.top_k = which % 4 == 1 ? 40 : 0;
      record.repetition_penalty = which > 7 ? 1.1f : 1.0f;
      record.frequency_penalty = which > 7 ? 0.3f : 0.0f, record.presence_penalty = which > 9 ? -0.2f : 0.0f;
      record.top_logprobs = 5, record.forced_token = which == 6 ? (int32_t)(n / 2) : -1;
      record.bias_count = which > 5, record.banned_count = which == 8 && n > 1;
      record.prompt_count = 7, record.history_count = which > 7 ? 20 : 0;
      record.mask_row = which == 9 ? 0 : -1;
      const SampleTask task{record, logits.data(), n, bias_ids.data(), bias.data(), banned.data(), history.data(), which == 9 ? mask.data() : nullptr};
      std::vector<int32_t> top(5);
      std::vector<float> logprobs(5);
      SampleOutput out{-1, 0.0f, top.data(), logprobs.data()};
      k.sample_row(task, out, memory.reserve(n));
      uint64_t hash = digest(logprobs, digest_bytes(top));
      hash = digest(&out.logprob, 1, fnv(hash, &out.token, 4));
      print(hash, "sample %d %d %d", (int)n, which, (int)out.token);
    }
}

// A whole small model, with the choice of outlier columns, on two threads.
struct Model {
  static constexpr int kWidth = 64, kHidden = 96, kHeads = 4, kKvHeads = 2, kHead = 32, kVocabulary = 83;
  ThreadPool pool{2};
  KvCache cache;
  Program program;
  Random random{7};
  explicit Model(const KernelTable& k, KvType kind) : cache(kind, {{kKvHeads, kHead}}, 64), program(pool, cache, k, 700) { build(); }

  Matrix matrix(int type, int64_t rows, int64_t columns) {
    return std::make_shared<PackedMatrix>(random_matrix(random, types()[(size_t)type], rows, columns));
  }
  std::vector<float> weight() {
    std::vector<float> w = floats(random, kWidth);
    w.resize(kWidth);
    for (float& x : w) x += 1.0f;
    w[5] = 30.0f;  // a channel worth keeping out
    return w;
  }
  void build() {
    const int x = program.float_buffer(kWidth, Rows::tokens), q = program.float_buffer(kHeads * kHead, Rows::tokens);
    const int key = program.float_buffer(kKvHeads * kHead, Rows::tokens), value = program.float_buffer(kKvHeads * kHead, Rows::tokens);
    const int normed = program.quantised_buffer(kWidth, Rows::tokens), mixed = program.quantised_buffer(kHeads * kHead, Rows::tokens);
    const int hidden = program.quantised_buffer(kHidden, Rows::tokens), rows = program.float_buffer(kWidth, Rows::logits);
    const int final_norm = program.quantised_buffer(kWidth, Rows::logits), logits = program.float_buffer(kVocabulary, Rows::logits);
    const int rope = program.rope_table(kHead, true, rope_frequencies(10000.0, kHead));
    const Matrix table = matrix(7, kVocabulary, kWidth);
    program.add(EmbedStep{x, table, 3.0f});
    program.add(NormStep{x, -1, -1, normed, weight(), 1e-5f, 1, {}});
    LinearStep qkv{-1, normed, {}};
    qkv.parts.push_back({matrix(4, kHeads * kHead, kWidth), q, {}, false, {}});
    qkv.parts.push_back({matrix(3, kKvHeads * kHead, kWidth), key, {}, false, {}});
    qkv.parts.push_back({matrix(6, kKvHeads * kHead, kWidth), value, {}, false, {}});
    program.add(std::move(qkv));
    program.add(RopeStep{q, q, rope, kHeads, kHead});
    program.add(RopeStep{key, key, rope, kKvHeads, kHead});
    program.add(AttentionStep{q, key, value, -1, mixed, 0, kHeads, kKvHeads, kHead, 0.2f, 0.0f, 600});
    LinearStep back{-1, mixed, {}};
    back.parts.push_back({matrix(5, kWidth, kHeads * kHead), x, {}, true, {}});
    program.add(std::move(back));
    program.add(NormStep{x, -1, -1, normed, weight(), 1e-5f, 1, {}});
    program.add(GatedLinearStep{normed, hidden, matrix(4, kHidden, kWidth), matrix(3, kHidden, kWidth), Activation::silu, {}, {}});
    LinearStep down{-1, hidden, {}};
    down.parts.push_back({matrix(8, kWidth, kHidden), x, {}, true, {}});
    program.add(std::move(down));
    program.add(SelectStep{x, rows});
    program.add(NormStep{rows, -1, -1, final_norm, weight(), 1e-5f, 1, {}});
    LinearStep head{-1, final_norm, {}};
    head.parts.push_back({table, logits, {}, false, {}});
    program.add(std::move(head));
  }
  // Tokens [begin, end) of the fixed text; the digest of the logits of the last one.
  uint64_t step(int begin, int end, bool calibrate) {
    std::vector<int32_t> ids, positions, table;
    for (int p = begin; p < end; ++p) ids.push_back(p * 29 % kVocabulary), positions.push_back(p);
    for (int b = 0; b < 64; ++b) table.push_back(63 - b);
    const std::vector<int32_t> start = {0, end - begin}, kv = {end}, row = {end - begin - 1};
    const BatchView batch{end - begin, 1, 64, 1, ids.data(), positions.data(), start.data(), kv.data(), table.data(), row.data()};
    if (calibrate) return program.calibrate(batch, 4), 0;
    return digest(program.run(batch), kVocabulary);
  }
};

void models(const KernelTable& k) {
  for (KvType kind : {KvType::int8, KvType::f16}) {
    const char* name = kind == KvType::int8 ? "int8" : "f16";
    Model whole(k, kind), chunked(k, kind);
    whole.step(0, 16, true), chunked.step(0, 16, true);
    const uint64_t prefilled = whole.step(0, 643, false);
    print(prefilled, "model %s 643", name);
    for (int at = 0; at < 640; at += 40) chunked.step(at, at + 40, false);
    for (int at = 640; at < 642; ++at) chunked.step(at, at + 1, false);
    expect(chunked.step(642, 643, false) == prefilled, "model in chunks", kind == KvType::int8);
    print(whole.step(643, 644, false), "model %s 644", name);
  }
}

}  // namespace

int main() {
  const KernelTable& k = *choose_table();
  std::fprintf(stderr, "%s of %s\n", k.name, available_targets());
  norms(k);
  elementwise(k);
  ropes(k);
  linears(k);
  gated_linears(k);
  attentions(k);
  samples(k);
  models(k);
  return failures ? 1 : 0;
}
