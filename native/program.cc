#include "program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "step_runner.h"

namespace stoker {
namespace {

int64_t tiles_of(int64_t tokens) { return (tokens + 15) / 16; }

// Of a batch with one token of each sequence: whether a block that one writes into stands in another's table too, or a
// key is stored for two. A branch of a draft reads so what its stem writes. A wrong yes costs time only.
bool reads_step(const BatchView& b) {
  if (b.copies) return true;
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int32_t* column = b.block_tables + b.positions[s] / kBlockTokens;
    for (int64_t other = 0; other < b.sequences; ++other)
      if (other != s && column[other * b.table_stride] == column[s * b.table_stride]) return true;
  }
  return false;
}

}  // namespace

int Program::float_buffer(int64_t width, Rows rows) {
  floats_.push_back({width, rows, {}});
  return (int)floats_.size() - 1;
}

int Program::quantised_buffer(int64_t columns, Rows rows) {
  quantised_.push_back({columns, rows, {}, {}, {}, {}, {}, {}});
  return (int)quantised_.size() - 1;
}

int Program::rope_table(int rotary, bool interleaved, std::vector<float> frequency) {
  ropes_.push_back({rotary, interleaved, std::move(frequency), {}, {}});
  return (int)ropes_.size() - 1;
}

void Program::add(Step step) {
  std::visit([this]<class S>(const S& s) {
    if constexpr (std::is_same_v<S, LinearStep>) output_ = s.parts.back().out;
    else if constexpr (!std::is_same_v<S, QuantiseStep> && requires { s.out; }) output_ = s.out >= 0 ? s.out : output_;
  }, step);
  steps_.push_back(std::move(step));
}

void Program::set_input(const float* rows, int64_t count, int64_t width) {
  input_.grow((size_t)(count * width));
  std::copy(rows, rows + count * width, input_.data());
  input_rows_ = count, input_width_ = width;
}

QuantisedRows Program::quantised(int buffer, int outliers, const int32_t* columns) {
  if (buffer < 0) return {};
  QuantisedBuffer& b = quantised_[(size_t)buffer];
  return {b.columns,     b.q.data(),        b.scale.data(), b.scaled_sum.data(),    b.sum.data(),
          b.half_sum.data(), outliers, columns,        b.outlier_values.data()};
}

int64_t Program::buffer_bytes() const {
  int64_t bytes = (int64_t)(partials_.size() * 4 + shared_states_.size() * 4 + q_int8_.size() + q_scale_.size() * 8);
  for (const FloatBuffer& b : floats_) bytes += (int64_t)b.data.size() * 4;
  for (const QuantisedBuffer& b : quantised_) bytes += (int64_t)(b.q.size() + b.scale.size() * 20);
  return bytes;
}

void Program::make_rope_tables(const BatchView& batch) {
  for (RopeTable& table : ropes_) {
    const size_t need = (size_t)(batch.tokens * table.rotary);
    if (table.cosine.size() < need) table.cosine.resize(need), table.sine.resize(need);
    pool_.run(batch.tokens, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t)
        rope_row(table, batch.positions[t], &table.cosine[(size_t)(t * table.rotary)], &table.sine[(size_t)(t * table.rotary)]);
    });
  }
}

void Program::prepare(const BatchView& batch) {
  for (const Step& step : steps_)
    if (const InputStep* s = std::get_if<InputStep>(&step))
      if (input_rows_ != batch.tokens || input_width_ != floats_[(size_t)s->out].width)
        throw std::invalid_argument("the input has " + std::to_string(input_rows_) + " rows of " + std::to_string(input_width_) +
                                    " numbers; allowed: " + std::to_string(batch.tokens) + " of " +
                                    std::to_string(floats_[(size_t)s->out].width));
  // Buffers grow to the largest batch seen and stay: a step after the first of its size allocates nothing.
  for (FloatBuffer& b : floats_) {
    // 16 floats more: elementwise steps work on whole vectors, also on the last of an odd number of columns.
    const size_t need = (size_t)(batch.count(b.rows) * b.width + 16);
    b.data.grow(need);
  }
  for (QuantisedBuffer& b : quantised_) {
    b.outlier_values.grow(most_outliers_ * (size_t)batch.count(b.rows));
    const size_t slots = (size_t)(tiles_of(batch.count(b.rows)) * 16 * (b.columns / 32));
    b.q.grow(slots * 32), b.scale.grow(slots), b.scaled_sum.grow(slots), b.sum.grow(slots), b.half_sum.grow(2 * slots);
  }
  plans_.clear();
  reads_step_ = batch.tokens == batch.sequences && batch.sequences >= 4 * pool_.threads() && reads_step(batch);
  prefixes_.find(batch);
  size_t q_heads = 0, q_width = 0;
  for (const Step& step : steps_)
    if (const AttentionStep* a = std::get_if<AttentionStep>(&step)) {
      q_heads = std::max(q_heads, (size_t)a->heads);
      q_width = std::max(q_width, (size_t)a->heads * (size_t)a->head_size);
      plan_units(batch, *a);
    }
  q_int8_.grow((size_t)batch.tokens * q_width);
  q_scale_.grow((size_t)batch.tokens * q_heads), q_sum_.grow((size_t)batch.tokens * q_heads);
  make_rope_tables(batch);
}

// With enough rows, a thread takes a chunk of them through all steps up to the next attention (decoding: to the end)
// instead of sharing every step: fewer waits, and a row's numbers stay in one core's cache, where a shared step reads
// half of them from the other's. The price is that each chunk reads the weights, so chunks are 16 to 64 rows, enough to
// hide it, and only where they divide evenly. The bits are the same either way. docs/decisions/0004.
int64_t Program::rows_per_chunk(int64_t tokens) const {
  constexpr int64_t kMostTiles = 4;
  const int64_t threads = pool_.threads(), tiles = tiles_of(tokens), per_thread = (tiles + threads - 1) / threads;
  const int64_t rounds = (per_thread + kMostTiles - 1) / kMostTiles, chunk = (per_thread + rounds - 1) / rounds * 16;
  const bool even = per_thread * threads * 16 * 5 <= tokens * 6;  // the longest share at most 1.2 of the mean
  return even && chunk >= 8 * threads && tokens > 16 ? chunk : 0;
}

// Steps from `first` on, row chunk by row chunk, until an attention that needs all rows; returns the place after it.
// While decoding over shared prefixes that is only their part of it: the sequences' own parts are in the next chunks.
size_t Program::run_by_rows(const BatchView& batch, size_t first, int64_t chunk) {
  size_t last = first;
  const AttentionStep* attention = nullptr;
  for (; last < steps_.size() && !std::holds_alternative<SelectStep>(steps_[last]) && !attention; ++last) {
    const AttentionStep* a = std::get_if<AttentionStep>(&steps_[last]);
    if (a && (!decodes_together(batch, *a) || shares(*a))) attention = a;
  }
  const auto is_own_left = [&](size_t place) {  // after the shared part of the attention before `place`
    const AttentionStep* a = place ? std::get_if<AttentionStep>(&steps_[place - 1]) : nullptr;
    const bool by_rows = place < steps_.size() && !std::holds_alternative<SelectStep>(steps_[place]);
    return a && by_rows && decodes_together(batch, *a) && shares(*a) ? a : nullptr;
  };
  const AttentionStep* resumed = is_own_left(first);
  const size_t whole = attention ? last - 1 : last;
  pool_.run((batch.tokens + chunk - 1) / chunk, 1, [&](int64_t b, int64_t e, int thread) {
    for (int64_t c = b; c < e; ++c) {
      StepRunner runner{*this, batch, c * chunk, std::min((c + 1) * chunk, batch.tokens), thread};
      if (resumed) runner.attend_own(*resumed);
      for (size_t i = first; i < whole; ++i) std::visit(runner, steps_[i]);
      if (attention) runner.store_keys(*attention);
    }
  });
  if (attention) {
    StepRunner all{*this, batch, 0, batch.tokens};
    all.attend_shared(*attention);
    if (!is_own_left(last)) all.attend_own(*attention);
  }
  return last;
}

// What a thread of the whole pool reads first of a linear layer; nothing of any other step.
ThreadPool::Reads Program::reads_of(const Step& step, int thread) const {
  constexpr int64_t kMostBytes = 64 << 10;  // a sixteenth of a core's own caches: more is not fetched while it waits
  ThreadPool::Reads reads;
  const auto from = [](const PackedMatrix& m, int64_t begin, int64_t end, int64_t most) {
    return ThreadPool::Memory{m.panel(begin), std::min(most, (end - begin) * m.panel_bytes)};
  };
  if (const GatedLinearStep* gated = std::get_if<GatedLinearStep>(&step)) {
    const int64_t pairs = gated->gate->rows / 32;
    const auto [begin, end] = pool_.share_of(pairs, grain_for(pairs), thread);
    reads = {from(*gated->gate, 2 * begin, 2 * end, kMostBytes / 2), from(*gated->up, 2 * begin, 2 * end, kMostBytes / 2)};
  } else if (const LinearStep* linear = std::get_if<LinearStep>(&step)) {
    int64_t panels = 0;
    for (const LinearPart& part : linear->parts) panels += part.weight->panels;
    auto [begin, end] = pool_.share_of(panels, grain_for(panels), thread);
    for (const LinearPart& part : linear->parts) {
      const int64_t own = part.weight->panels;
      if (begin >= 0 && begin < own) reads[0] = from(*part.weight, begin, std::min(end, own), kMostBytes);
      begin -= own, end -= own;
    }
  }
  return reads;
}

void Program::find_reads() {
  if (pool_.threads() == 1 || reads_after_.size() == steps_.size()) return;
  reads_after_.assign(steps_.size(), {});
  size_t next = steps_.size();
  for (size_t i = steps_.size(); i-- > 0;) {
    // Told once, after the linear layer before: what a thread has fetched it need not be told again.
    if (next < steps_.size() && (i == 0 || std::holds_alternative<LinearStep>(steps_[i]) || std::holds_alternative<GatedLinearStep>(steps_[i])))
      for (int t = 0; t < pool_.threads(); ++t) reads_after_[i].push_back(reads_of(steps_[next], t));
    if (std::holds_alternative<LinearStep>(steps_[i]) || std::holds_alternative<GatedLinearStep>(steps_[i])) next = i;
  }
}

// Before a step is run: between two linear layers DRAM would be idle otherwise.
void Program::announce_reads(size_t place) {
  if (reads_after_.empty()) return;
  const std::vector<ThreadPool::Reads>& reads = reads_after_[place];
  for (size_t t = 0; t < reads.size(); ++t) pool_.will_read((int)t, reads[t]);
}

const float* Program::run(const BatchView& batch) {
  prepare(batch);
  find_reads();
  size_t next = 0;
  if (const int64_t chunk = rows_per_chunk(batch.tokens))
    while (next < steps_.size() && !std::holds_alternative<SelectStep>(steps_[next])) next = run_by_rows(batch, next, chunk);
  StepRunner runner{*this, batch, 0, batch.tokens};
  for (; next < steps_.size(); ++next) {
    announce_reads(next);
    std::visit(runner, steps_[next]);
  }
  if (hidden_.size() > 1) join_hidden(batch.hidden);
  return floats(output_);
}

void Program::join_hidden(int64_t rows) {
  const int64_t all = hidden_width();
  hidden_rows_.grow((size_t)(rows * all));
  int64_t column = 0;
  for (const int buffer : hidden_) {
    const int64_t width = floats_[(size_t)buffer].width;
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(floats(buffer) + r * width, width, hidden_rows_.data() + r * all + column);
    column += width;
  }
}

void Program::run_watched(const BatchView& batch, const std::function<void(Step&, int64_t rows)>& before) {
  prepare(batch);
  StepRunner runner{*this, batch, 0, batch.tokens};
  for (Step& step : steps_) {
    before(step, runner.end);
    std::visit(runner, step);
  }
}

}  // namespace stoker
