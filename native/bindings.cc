// The Python face of the core: check shapes, release the GIL, call. Nothing is computed here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "bind_sample.h"
#include "check_batch.h"
#include "draft_chain.h"
#include "pack.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace stoker;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntPairs = nb::ndarray<const int32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatTable = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::capsule owner_of(T* array) {
  return nb::capsule(array, [](void* p) noexcept { delete[] (T*)p; });
}

constexpr int64_t kSlabBytes = 16 << 20;  // large enough to keep all threads busy, small beside any model

// `read_up_to`, if given, is called with the number of bytes of `raw` that are not needed any more, slab by slab.
std::shared_ptr<PackedMatrix> pack(int type, Bytes raw, int64_t rows, int64_t columns, int threads, ThreadPool* pool,
                                   const nb::object& read_up_to) {
  const int64_t row_bytes = ggml_row_bytes(type, columns);
  if (rows < 1 || (int64_t)raw.size() / row_bytes != rows || (int64_t)raw.size() % row_bytes != 0)
    throw std::invalid_argument("raw has " + std::to_string(raw.size()) + " bytes; " + std::to_string(rows) + " rows of " +
                                std::to_string(row_bytes) + " bytes are needed");
  auto m = std::make_shared<PackedMatrix>(allocate_packed(type, rows, columns));
  std::unique_ptr<ThreadPool> own;
  if (!pool) own = std::make_unique<ThreadPool>(threads), pool = own.get();
  const int64_t slab = read_up_to.is_none() ? m->panels : std::max<int64_t>(1, kSlabBytes / (row_bytes * kPanelRows));
  for (int64_t first = 0; first < m->panels; first += slab) {
    const int64_t count = std::min(slab, m->panels - first), grain = std::max<int64_t>(1, count / (pool->threads() * 4));
    std::vector<PackResult> results((size_t)((count + grain - 1) / grain));
    {
      nb::gil_scoped_release release;
      pool->run(count, grain, [&](int64_t b, int64_t e, int) {
        results[(size_t)(b / grain)] = pack_panels(*m, type, raw.data(), first + b, first + e);
      });
    }
    for (const PackResult& r : results)
      if (!r.ok)
        throw std::invalid_argument("scale or minimum at row " + std::to_string(r.row) + ", column " + std::to_string(r.column) +
                                    " is NaN or infinite");
    if (!read_up_to.is_none()) read_up_to(std::min(rows, (first + count) * kPanelRows) * row_bytes);
  }
  return m;
}

struct LoadedProgram {  // keeps what the program borrows alive
  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<KvCache> cache;
  Program program;
  int64_t vocabulary, context_tokens;  // limits of a batch's token ids and positions
  LoadedProgram(std::shared_ptr<ThreadPool> p, std::shared_ptr<KvCache> c, int64_t max_tokens, int64_t vocabulary_, int64_t context_tokens_)
      : pool(std::move(p)), cache(std::move(c)), program(*pool, *cache, *choose_table(), max_tokens), vocabulary(vocabulary_),
        context_tokens(context_tokens_) {}
};

std::vector<float> vector_of(const Floats& a) { return std::vector<float>(a.data(), a.data() + a.size()); }

using RowsView = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

BatchView view_of(const LoadedProgram& self, const Ints& token_ids, const Ints& positions, const Ints& query_start,
                  const Ints& kv_tokens, const IntTable& tables, const Ints& logit_rows, const Ints& hidden_rows,
                  const IntPairs& kv_copies) {
  check_sizes({(int64_t)token_ids.size(), (int64_t)positions.size(), (int64_t)query_start.size(), (int64_t)kv_tokens.size(),
               (int64_t)tables.shape(0)});
  const BatchView b{(int64_t)token_ids.size(), (int64_t)kv_tokens.size(), (int64_t)tables.shape(1), (int64_t)logit_rows.size(),
              token_ids.data(), positions.data(), query_start.data(), kv_tokens.data(), tables.data(), logit_rows.data(),
              (int64_t)hidden_rows.size(), hidden_rows.data(), (int64_t)kv_copies.shape(0), kv_copies.data()};
  if (b.tokens > self.program.max_tokens())
    throw std::invalid_argument("a step of " + std::to_string(b.tokens) + " tokens; allowed: up to " +
                                std::to_string(self.program.max_tokens()));
  if (b.hidden && !self.program.hidden_width())
    throw std::invalid_argument("batch.hidden_rows has " + std::to_string(b.hidden) + " rows; allowed: none, as the program has no hidden states");
  check_batch(b, self.vocabulary, self.cache->blocks(), self.context_tokens);
  return b;
}

nb::tuple run(LoadedProgram& self, Ints token_ids, Ints positions, Ints query_start, Ints kv_tokens, IntTable tables,
              Ints logit_rows, Ints hidden_rows, IntPairs kv_copies) {
  const BatchView b = view_of(self, token_ids, positions, query_start, kv_tokens, tables, logit_rows, hidden_rows, kv_copies);
  const float* out;
  {
    nb::gil_scoped_release release;
    out = self.program.run(b);
  }
  const auto view = [&](const float* rows, int64_t count, int64_t width) {
    return nb::cast(RowsView((float*)rows, {(size_t)count, (size_t)width}, nb::find(self)), nb::rv_policy::reference);
  };
  const int64_t width = self.program.hidden_width();
  return nb::make_tuple(view(out, b.rows, self.program.output_width()), b.hidden ? view(self.program.hidden(), b.hidden, width) : nb::none());
}

void check_block(const KvCache& cache, int64_t block) {
  if (block < 0 || block >= cache.blocks())
    throw std::invalid_argument("block " + std::to_string(block) + "; allowed: 0 to " + std::to_string(cache.blocks() - 1));
}

nb::tuple draft(LoadedProgram& self, LoadedProgram& own, Ints token_ids, int64_t start, const FloatTable& states, Ints table, Ints ids,
                int64_t passes, float least_reached) {
  if (self.cache != own.cache || !own.program.hidden_width() || self.program.hidden_width() != own.program.hidden_width())
    throw std::invalid_argument("own is another model's program; allowed: one on the same keys and values, with states as wide");
  const int64_t most = own.context_tokens, count = std::min((int64_t)token_ids.size(), most);
  start = std::clamp<int64_t>(start, -1, most), passes = std::clamp<int64_t>(passes, 0, most);
  const int64_t end = start + count;
  if (count < 1 || start < 0 || passes < 1 || end + passes - 1 > most)
    throw std::invalid_argument(std::to_string(count) + " tokens from " + std::to_string(start) + " and " + std::to_string(passes) +
                                " passes; allowed: 1 or more of each, up to position " + std::to_string(own.context_tokens));
  if ((int64_t)table.size() * kBlockTokens < end + passes - 1)
    throw std::invalid_argument("the block table has " + std::to_string(table.size()) + " blocks; allowed: as many as " +
                                std::to_string(end + passes - 1) + " tokens take");
  std::vector<int32_t> positions((size_t)count);
  for (int64_t i = 0; i < count; ++i) positions[(size_t)i] = (int32_t)(start + i);
  const int32_t begin[2] = {0, (int32_t)count}, kv = (int32_t)end, last = (int32_t)count - 1;
  const BatchView b{count, 1, (int64_t)table.size(), 1, token_ids.data(), positions.data(), begin, &kv, table.data(), &last, 1, &last};
  if ((int64_t)ids.size() != self.program.output_width() || (int64_t)ids.size() != own.program.output_width())
    throw std::invalid_argument(std::to_string(ids.size()) + " ids; allowed: " + std::to_string(own.program.output_width()) + ", one for each logit");
  if (count > self.program.max_tokens())
    throw std::invalid_argument("a step of " + std::to_string(count) + " tokens; allowed: up to " + std::to_string(self.program.max_tokens()));
  check_batch(b, self.vocabulary, self.cache->blocks(), self.context_tokens);
  for (int64_t i = 0; i < (int64_t)table.size(); ++i) check_block(*self.cache, table.data()[i]);
  std::vector<Likeliest> found;
  {
    nb::gil_scoped_release release;
    self.program.set_input(states.data(), (int64_t)states.shape(0), (int64_t)states.shape(1));
    found = draft_chain(self.program, own.program, b, {passes, least_reached, ids.data(), own.vocabulary});
  }
  nb::list out;
  for (const Likeliest& one : found) out.append(nb::make_tuple(one.first, one.share, one.second, one.second_share));
  return nb::tuple(out);
}

void bind_steps(nb::class_<LoadedProgram>& c) {
  c.def("float_buffer", [](LoadedProgram& s, int64_t width, Rows rows) { return s.program.float_buffer(width, rows); },
        "width"_a, "rows"_a)
      .def("quantised_buffer",
           [](LoadedProgram& s, int64_t columns, Rows rows) { return s.program.quantised_buffer(columns, rows); },
           "columns"_a, "rows"_a)
      .def("rope_table",
           [](LoadedProgram& s, int rotary, bool interleaved, Floats frequency) {
             return s.program.rope_table(rotary, interleaved, vector_of(frequency));
           },
           "rotary"_a, "interleaved"_a, "frequency"_a)
      .def("embed", [](LoadedProgram& s, int out, std::shared_ptr<PackedMatrix> table, float scale) {
             s.program.add(EmbedStep{out, std::move(table), scale});
           }, "out"_a, "table"_a, "scale"_a)
      .def("input", [](LoadedProgram& s, int out) { s.program.add(InputStep{out}); }, "out"_a)
      .def("set_input",
           [](LoadedProgram& s, const FloatTable& rows) {
             s.program.set_input(rows.data(), (int64_t)rows.shape(0), (int64_t)rows.shape(1));
           },
           "rows"_a)
      .def("norm",
           [](LoadedProgram& s, int x, int residual, int out, int out_quantised, Floats weight, float eps, int64_t groups) {
             s.program.add(NormStep{x, residual, out, out_quantised, vector_of(weight), eps, groups, {}});
           },
           "x"_a, "residual"_a, "out"_a, "out_quantised"_a, "weight"_a, "eps"_a, "groups"_a)
      .def("quantise", [](LoadedProgram& s, int x, int out) { s.program.add(QuantiseStep{x, out}); }, "x"_a, "out"_a)
      .def("linear",
           [](LoadedProgram& s, int x, int x_quantised,
              std::vector<std::tuple<std::shared_ptr<PackedMatrix>, int, Floats, bool>> parts) {
             LinearStep step{x, x_quantised, {}};
             for (auto& [weight, out, bias, add] : parts) step.parts.push_back({weight, out, vector_of(bias), add, {}});
             s.program.add(std::move(step));
           },
           "x"_a, "x_quantised"_a, "parts"_a)
      .def("gated_linear",
           [](LoadedProgram& s, int x_quantised, int out_quantised, std::shared_ptr<PackedMatrix> gate,
              std::shared_ptr<PackedMatrix> up, bool gelu) {
             s.program.add(GatedLinearStep{x_quantised, out_quantised, std::move(gate), std::move(up),
                                           gelu ? Activation::gelu_tanh : Activation::silu, {}, {}});
           },
           "x_quantised"_a, "out_quantised"_a, "gate"_a, "up"_a, "gelu"_a)
      .def("gated",
           [](LoadedProgram& s, int gate, int up, int out, bool gelu) {
             s.program.add(GatedStep{gate, up, out, gelu ? Activation::gelu_tanh : Activation::silu});
           },
           "gate"_a, "up"_a, "out"_a, "gelu"_a)
      .def("rope",
           [](LoadedProgram& s, int x, int out, int table, int heads, int head_size) {
             s.program.add(RopeStep{x, out, table, heads, head_size});
           },
           "x"_a, "out"_a, "table"_a, "heads"_a, "head_size"_a)
      .def("attention",
           [](LoadedProgram& s, int q, int k, int v, int out, int out_quantised, int layer, int heads, int kv_heads,
              int head_size, float scale, float softcap, int64_t window) {
             s.program.add(AttentionStep{q, k, v, out, out_quantised, layer, heads, kv_heads, head_size, scale, softcap, window});
           },
           "q"_a, "k"_a, "v"_a, "out"_a, "out_quantised"_a, "layer"_a, "heads"_a, "kv_heads"_a, "head_size"_a, "scale"_a,
           "softcap"_a, "window"_a)
      .def("add", [](LoadedProgram& s, int a, int b, int out) { s.program.add(AddStep{a, b, out}); }, "a"_a, "b"_a, "out"_a)
      .def("scale", [](LoadedProgram& s, int x, int out, float f) { s.program.add(ScaleStep{x, out, f}); }, "x"_a, "out"_a, "factor"_a)
      .def("softcap", [](LoadedProgram& s, int x, int out, float c) { s.program.add(SoftcapStep{x, out, c}); }, "x"_a, "out"_a, "cap"_a)
      .def("select", [](LoadedProgram& s, int x, int out, Rows rows) { s.program.add(SelectStep{x, out, rows}); }, "x"_a, "out"_a,
           "rows"_a)
      .def("return_hidden", [](LoadedProgram& s, int buffer) { s.program.return_hidden(buffer); }, "buffer"_a)
      .def_prop_ro("hidden_width", [](const LoadedProgram& s) { return s.program.hidden_width(1); });
}

// Median-of-5 rates of this machine with `threads` threads: bytes read per second from memory that no cache
// holds, and int8 operations (multiply and add apart) per second.
nb::dict measure_limits(int threads) {
  using Clock = std::chrono::steady_clock;
  const KernelTable& k = *choose_table();
  ThreadPool pool(threads);
  const int64_t bytes = 384LL << 20, rounds = 4'000'000;
  std::vector<double> read, dots;
  {
    nb::gil_scoped_release release;
    std::unique_ptr<uint8_t[]> memory(new uint8_t[(size_t)bytes]);
    pool.run(threads, 1, [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i) std::memset(memory.get() + bytes / threads * i, (int)i, (size_t)(bytes / threads));
    });
    std::atomic<uint64_t> keep{0};
    for (int i = 0; i < 5; ++i) {
      const auto t0 = Clock::now();
      const int64_t part = bytes / threads / 256 * 256;
      pool.run(threads, 1, [&](int64_t b, int64_t e, int) {
        for (int64_t j = b; j < e; ++j) keep += k.read_bytes(memory.get() + part * j, part);
      });
      const auto t1 = Clock::now();
      pool.run(threads, 1, [&](int64_t b, int64_t e, int) {
        for (int64_t j = b; j < e; ++j) keep += k.int8_dots(rounds / threads);
      });
      const auto t2 = Clock::now();
      read.push_back((double)(part * threads) / std::chrono::duration<double>(t1 - t0).count());
      dots.push_back((double)(rounds / threads * threads * 8) * 128 / std::chrono::duration<double>(t2 - t1).count());
    }
  }
  std::sort(read.begin(), read.end());
  std::sort(dots.begin(), dots.end());
  nb::dict d;
  d["dram_gb_s"] = read[2] / 1e9;
  d["int8_tops"] = dots[2] / 1e12;
  return d;
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("target") = nb::str(choose_table()->name);
  m.attr("available_targets") = nb::str(available_targets());
  m.def("measure_limits", &measure_limits, "threads"_a);
  m.def("rope_frequencies", [](double base, int rotary) {
    const std::vector<float> f = rope_frequencies(base, rotary);
    float* out = new float[f.size()];
    std::copy(f.begin(), f.end(), out);
    return nb::ndarray<nb::numpy, float, nb::ndim<1>>(out, {f.size()}, owner_of(out));
  }, "base"_a, "rotary"_a);

  nb::class_<ThreadPool>(m, "ThreadPool").def(nb::init<int>(), "threads"_a).def_prop_ro("threads", &ThreadPool::threads);

  nb::class_<PackedMatrix>(m, "PackedMatrix")
      .def_static("pack", &pack, "ggml_type"_a, "raw"_a, "rows"_a, "columns"_a, "threads"_a = 1, "pool"_a.none() = nb::none(),
                  "read_up_to"_a.none() = nb::none())
      .def_ro("rows", &PackedMatrix::rows)
      .def_ro("columns", &PackedMatrix::columns)
      .def_prop_ro("nbytes", &PackedMatrix::bytes)
      .def_prop_ro("is_float", [](const PackedMatrix& s) { return s.layout.kind != Kind::quantised; })
      .def("element", [](const PackedMatrix& s, int64_t row, int64_t column) {
        if (row < 0 || row >= s.rows || column < 0 || column >= s.columns) throw std::invalid_argument("no such element");
        return packed_element(s, row, column);
      }, "row"_a, "column"_a)
      .def("panels_bytes", [](const PackedMatrix& s) {
        uint8_t* out = new uint8_t[(size_t)s.bytes()];
        std::memcpy(out, s.data.get(), (size_t)s.bytes());
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>(out, {(size_t)s.panels, (size_t)s.panel_bytes}, owner_of(out));
      })
      .def("unpack", [](const PackedMatrix& s, int64_t begin, int64_t end) {
        if (begin < 0 || end < begin || end > s.rows)
          throw std::invalid_argument("rows " + std::to_string(begin) + " to " + std::to_string(end) + " of " + std::to_string(s.rows));
        const int64_t count = end - begin;
        std::unique_ptr<float[]> out(new float[(size_t)(count * s.columns)]);
        unpack_rows(s, begin, end, out.get());
        float* p = out.release();
        return nb::ndarray<nb::numpy, float, nb::ndim<2>>(p, {(size_t)count, (size_t)s.columns}, owner_of(p));
      }, "row_begin"_a, "row_end"_a);

  nb::class_<KvCache>(m, "KvCache")
      .def("__init__", [](KvCache* self, bool int8, std::vector<std::tuple<int, int>> layers, int64_t blocks) {
        std::vector<KvLayerShape> shapes;
        for (auto& [kv_heads, head_size] : layers) shapes.push_back({kv_heads, head_size});
        new (self) KvCache(int8 ? KvType::int8 : KvType::f16, std::move(shapes), blocks);
      }, "int8"_a, "layers"_a, "blocks"_a)
      .def_prop_ro("blocks", &KvCache::blocks)
      .def_prop_ro("block_bytes", &KvCache::block_bytes)
      .def("copy_block", [](KvCache& s, int64_t source, int64_t destination) {
        check_block(s, source);
        check_block(s, destination);
        s.copy_block(source, destination);
      }, "source"_a, "destination"_a)
      .def("read_block", [](const KvCache& s, int64_t block) {
        check_block(s, block);
        uint8_t* out = new uint8_t[(size_t)s.block_bytes()];
        s.read_block(block, out);
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(out, {(size_t)s.block_bytes()}, owner_of(out));
      }, "block"_a)
      .def("write_block", [](KvCache& s, int64_t block, Bytes payload) {
        check_block(s, block);
        if ((int64_t)payload.size() != s.block_bytes())
          throw std::invalid_argument("a block of " + std::to_string(payload.size()) + " bytes; allowed: " + std::to_string(s.block_bytes()));
        s.write_block(block, payload.data());
      }, "block"_a, "payload"_a.noconvert());

  nb::enum_<Rows>(m, "Rows").value("TOKENS", Rows::tokens).value("LOGITS", Rows::logits).value("HIDDEN", Rows::hidden);

  nb::class_<LoadedProgram> program(m, "Program");
  program.def(nb::init<std::shared_ptr<ThreadPool>, std::shared_ptr<KvCache>, int64_t, int64_t, int64_t>(), "pool"_a, "cache"_a,
              "max_tokens"_a, "vocabulary"_a, "context_tokens"_a)
      .def_prop_ro("buffer_bytes", [](const LoadedProgram& s) { return s.program.buffer_bytes(); })
      .def("calibrate",
           [](LoadedProgram& self, Ints token_ids, Ints positions, Ints query_start, Ints kv_tokens, IntTable tables, Ints logit_rows,
              Ints hidden_rows, IntPairs kv_copies, int most) {
             const BatchView b = view_of(self, token_ids, positions, query_start, kv_tokens, tables, logit_rows, hidden_rows, kv_copies);
             nb::gil_scoped_release release;
             self.program.calibrate(b, most);
           },
           "token_ids"_a, "positions"_a, "query_start"_a, "kv_tokens"_a, "block_tables"_a, "logit_rows"_a, "hidden_rows"_a,
           "kv_copies"_a, "most"_a)
      .def("run", &run, "token_ids"_a.noconvert(), "positions"_a.noconvert(), "query_start"_a.noconvert(), "kv_tokens"_a.noconvert(),
           "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(), "hidden_rows"_a.noconvert(), "kv_copies"_a.noconvert())
      .def("draft", &draft, "own"_a, "token_ids"_a.noconvert(), "start"_a, "states"_a.noconvert(), "block_table"_a.noconvert(),
           "ids"_a.noconvert(), "passes"_a, "least_reached"_a);
  bind_steps(program);
  bind_sample(m);
}
