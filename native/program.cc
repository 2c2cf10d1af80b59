#include "program.h"

#include <algorithm>
#include <cstring>

#include "pack.h"

namespace stoker {
namespace {

int64_t tiles_of(int64_t tokens) { return (tokens + 15) / 16; }

// Work items per chunk so that each thread gets several chunks (the cores are not equally free), but no more
// chunks than needed.
int64_t grain_for(int64_t count, int threads) { return std::clamp<int64_t>(count / (threads * 6), 1, 32); }

}  // namespace

int Program::float_buffer(int64_t width, bool selected) {
  floats_.push_back({width, selected, {}});
  return (int)floats_.size() - 1;
}

int Program::quantised_buffer(int64_t columns, bool selected) {
  quantised_.push_back({columns, selected, {}, {}, {}, {}, {}, {}, {}});
  return (int)quantised_.size() - 1;
}

int Program::rope_table(int rotary, bool interleaved, std::vector<float> frequency) {
  ropes_.push_back({rotary, interleaved, std::move(frequency), {}, {}});
  return (int)ropes_.size() - 1;
}

QuantisedRows Program::quantised(int buffer) {
  if (buffer < 0) return {};
  QuantisedBuffer& b = quantised_[(size_t)buffer];
  return {b.columns,         b.q.data(),           b.scale.data(),           b.scaled_sum.data(),    b.sum.data(),
          b.half_sum.data(), (int)b.outliers.size(), b.outliers.data(), b.outlier_values.data()};
}

QuantisedRows Program::rewritten(int buffer, const std::vector<int32_t>& outliers, int64_t tokens) {
  if (buffer < 0) return {};
  QuantisedBuffer& b = quantised_[(size_t)buffer];
  b.outliers = outliers;
  if (b.outlier_values.size() < outliers.size() * (size_t)tokens) b.outlier_values.resize(outliers.size() * (size_t)tokens);
  return quantised(buffer);
}

int64_t Program::buffer_bytes() const {
  int64_t bytes = (int64_t)(partials_.size() * 4 + q_int8_.size() + q_scale_.size() * 8);
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

const Program::UnitPlan& Program::plan_units(const BatchView& batch, const AttentionStep& step) {
  const int group = step.heads / step.kv_heads;
  for (const UnitPlan& p : plans_)
    if (p.kv_heads == step.kv_heads && p.group == group && p.head_size == step.head_size && p.window == step.window) return p;
  UnitPlan& plan = plans_.emplace_back();
  plan.kv_heads = step.kv_heads, plan.group = group, plan.head_size = step.head_size, plan.window = step.window;
  const int64_t tile = std::max(1, kUnitRows / group);
  for (int64_t s = 0; s < batch.sequences; ++s)
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; t += tile) {
      const int64_t end = std::min<int64_t>(t + tile, batch.query_start[s + 1]);
      const int64_t first = batch.positions[t], last = batch.positions[end - 1];
      const int64_t oldest = step.window && first >= step.window ? first - step.window + 1 : 0;
      for (int h = 0; h < step.kv_heads; ++h)
        plan.owners.push_back({s, h, t, end, oldest / kSplitTokens, last / kSplitTokens + 1});
    }
  // Few owners and long contexts: the splits are handed out one by one. The bits are the same either way.
  int64_t parts = 0;
  for (const AttentionUnit& u : plan.owners) parts += u.split_end - u.split_begin;
  const int64_t owners = (int64_t)plan.owners.size();
  plan.split = owners < 4 * pool_.threads() && parts > owners && pool_.threads() > 1;
  if (!plan.split) {
    plan.units = plan.owners;
  } else {
    for (const AttentionUnit& u : plan.owners) {
      plan.owner_first.push_back((int64_t)plan.units.size());
      plan.owner_parts.push_back(u.split_end - u.split_begin);
      for (int64_t i = u.split_begin; i < u.split_end; ++i)
        plan.units.push_back({u.sequence, u.kv_head, u.token_begin, u.token_end, i, i + 1});
    }
  }
  std::reverse(plan.units.begin(), plan.units.end());  // late tokens see most positions: the long units first
  return plan;
}

// Runs one step after another; `rows` is T until a SelectStep, R after it.
struct StepRunner {
  Program& p;
  const BatchView& batch;
  int64_t rows;
  int last_out = -1;

  ThreadPool& pool() { return p.pool_; }
  const KernelTable& k() { return p.kernels_; }
  int64_t width(int buffer) { return p.floats_[(size_t)buffer].width; }
  template <class Work>
  void over_rows(int64_t grain, Work&& work) {
    pool().run(rows, std::max(grain, grain_for(rows, pool().threads())), [&](int64_t b, int64_t e, int) { work(b, e); });
  }

  void operator()(const EmbedStep& s) {
    float* out = p.floats(s.out);
    const int64_t n = width(s.out);
    over_rows(4, [&](int64_t b, int64_t e) {
      for (int64_t t = b; t < e; ++t) unpack_rows(*s.table, batch.token_ids[t], batch.token_ids[t] + 1, out + t * n);
      if (s.scale != 1.0f) k().scale_rows(out + b * n, s.scale, out + b * n, 0, (e - b) * n);
    });
    last_out = s.out;
  }

  void operator()(const NormStep& s) {
    const int64_t n = (int64_t)s.weight.size();
    const float *x = p.floats(s.x), *residual = p.floats(s.residual), *w = s.weight.data();
    float* out = p.floats(s.out);
    const QuantisedRows quantised = p.rewritten(s.out_quantised, s.outliers, rows);
    over_rows(4, [&](int64_t b, int64_t e) {
      if (residual) k().rms_norm_add(x, w, residual, n, s.eps, out, b * s.groups, e * s.groups);
      else if (out) k().rms_norm(x, w, n, s.eps, out, b * s.groups, e * s.groups);
      if (!quantised.q) return;
      if (out && s.outliers.empty()) k().quantise_rows(out, n, quantised, b, e);
      else k().rms_norm_quantise(x, w, n, s.eps, quantised, b, e);
    });
    if (s.out >= 0) last_out = s.out;
  }

  void operator()(const QuantiseStep& s) {
    const QuantisedRows out = p.rewritten(s.out, {}, rows);
    over_rows(4, [&](int64_t b, int64_t e) { k().quantise_rows(p.floats(s.x), width(s.x), out, b, e); });
  }

  void operator()(const LinearStep& s) {
    int64_t panels = 0;
    for (const LinearPart& part : s.parts) panels += part.weight->panels;
    pool().run(panels, grain_for(panels, pool().threads()), [&](int64_t b, int64_t e, int) {
      for (const LinearPart& part : s.parts) {
        const int64_t n = part.weight->panels;
        if (b < n && e > 0) {
          LinearTask task;
          task.weight = part.weight.get();
          task.x = p.quantised(s.x_quantised);
          task.x_float = p.floats(s.x);
          task.outlier_weights = part.outlier_weights.data();
          task.tokens = rows;
          task.out = p.floats(part.out);
          task.out_stride = width(part.out);
          task.bias = part.bias.empty() ? nullptr : part.bias.data();
          task.add = part.add;
          k().linear(task, std::max<int64_t>(b, 0), std::min(e, n));
        }
        b -= n, e -= n;
      }
    });
    last_out = s.parts.back().out;
  }

  void operator()(const GatedLinearStep& s) {
    LinearTask task;
    task.weight = s.gate.get();
    task.up = s.up.get();
    task.activation = s.activation;
    task.x = p.quantised(s.x_quantised);
    task.tokens = rows;
    task.outlier_weights = s.gate_outlier_weights.data();
    task.up_outlier_weights = s.up_outlier_weights.data();
    task.out_quantised = p.rewritten(s.out_quantised, {}, rows);
    const int64_t pairs = s.gate->rows / 32;
    pool().run(pairs, grain_for(pairs, pool().threads()), [&](int64_t b, int64_t e, int) { k().linear_gated(task, b, e); });
  }

  void operator()(const GatedStep& s) {
    const int64_t n = width(s.out);
    over_rows(4, [&](int64_t b, int64_t e) {
      k().gated_activation(s.activation, p.floats(s.gate), p.floats(s.up), p.floats(s.out), b * n, e * n);
    });
    last_out = s.out;
  }

  void operator()(const RopeStep& s) {
    const RopeTable& table = p.ropes_[(size_t)s.table];
    const RopeTask task{s.head_size, table.rotary, table.interleaved, table.cosine.data(), table.sine.data()};
    over_rows(4, [&](int64_t b, int64_t e) { k().rope(task, p.floats(s.x), p.floats(s.out), s.heads, b, e); });
    last_out = s.out;
  }

  void operator()(const AttentionStep& s) {
    AttentionTask task{};
    task.cache = &p.cache_;
    task.layer = s.layer, task.heads = s.heads, task.kv_heads = s.kv_heads, task.head_size = s.head_size;
    task.scale = s.scale, task.window = s.window, task.softcap = s.softcap;
    task.positions = batch.positions, task.block_tables = batch.block_tables, task.table_stride = batch.table_stride;
    task.q = p.floats(s.q), task.out = p.floats(s.out), task.out_quantised = p.rewritten(s.out_quantised, {}, rows);
    task.q_int8 = p.q_int8_.data(), task.q_scale = p.q_scale_.data(), task.q_sum = p.q_sum_.data();
    const float *keys = p.floats(s.k), *values = p.floats(s.v);
    const Program::UnitPlan& plan = p.plan_units(batch, s);
    if (batch.tokens == batch.sequences && batch.sequences >= 4 * pool().threads() && !plan.split) {
      decode_sequences(task, plan, keys, values);
    } else {
      over_rows(4, [&](int64_t b, int64_t e) {
        int64_t sequence = std::upper_bound(batch.query_start, batch.query_start + batch.sequences + 1, (int32_t)b) - batch.query_start - 1;
        for (int64_t t = b; t < e; ++t) {
          while (t >= batch.query_start[sequence + 1]) ++sequence;
          k().store_keys(task, keys, values, t, sequence);
        }
        k().prepare_queries(task, b, e);
      });
      if (plan.split) attend_splits(task, plan);
      else attend_owners(task, plan);
    }
    if (s.out >= 0) last_out = s.out;
  }

  int64_t partial_floats(const AttentionTask& task) { return (int64_t)kUnitRows * (task.head_size + 2); }

  // One token of each of many sequences: a thread stores a sequence's key and value and attends to it at once,
  // while the lines it wrote are in its cache. Owners are ordered by sequence, then kv head.
  void decode_sequences(const AttentionTask& task, const Program::UnitPlan& plan, const float* keys, const float* values) {
    const int64_t size = partial_floats(task), per_sequence = task.kv_heads, sequences = batch.sequences;
    reserve_partials(size * pool().threads());
    pool().run(sequences, std::clamp<int64_t>(sequences / (pool().threads() * 6), 1, 8), [&](int64_t b, int64_t e, int thread) {
      float* mine = p.partials_.data() + size * thread;
      for (int64_t s = b; s < e; ++s) {
        k().store_keys(task, keys, values, s, s);
        k().prepare_queries(task, s, s + 1);
        for (int64_t i = s * per_sequence; i < (s + 1) * per_sequence; ++i) {
          const AttentionUnit* next = i + 1 < e * per_sequence ? &plan.owners[(size_t)i + 1] : nullptr;
          k().attend(task, plan.owners[(size_t)i], next, mine, p.scratch_[(size_t)thread]);
          k().finish(task, plan.owners[(size_t)i], mine, 0, 1);
        }
      }
    });
  }

  void attend_owners(const AttentionTask& task, const Program::UnitPlan& plan) {
    const int64_t size = partial_floats(task);
    reserve_partials(size * pool().threads());
    const int64_t count = (int64_t)plan.units.size();
    // Several short units to a chunk, so that a thread knows which keys it needs next.
    pool().run(count, std::clamp<int64_t>(count / (pool().threads() * 8), 1, 8), [&](int64_t b, int64_t e, int thread) {
      for (int64_t i = b; i < e; ++i) {
        float* mine = p.partials_.data() + size * thread;
        const AttentionUnit* next = i + 1 < e ? &plan.units[(size_t)i + 1] : nullptr;
        k().attend(task, plan.units[(size_t)i], next, mine, p.scratch_[(size_t)thread]);
        k().finish(task, plan.units[(size_t)i], mine, 0, 1);
      }
    });
  }

  void attend_splits(const AttentionTask& task, const Program::UnitPlan& plan) {
    const int64_t size = partial_floats(task), count = (int64_t)plan.units.size();
    reserve_partials(size * count);
    // plan.units is reversed: unit i of the owners' order is at count - 1 - i; its partials lie at i. A few splits to
    // a chunk, so that the next one's first keys are fetched while the present one is computed.
    pool().run(count, std::clamp<int64_t>(count / (pool().threads() * 4), 1, 4), [&](int64_t b, int64_t e, int thread) {
      for (int64_t i = b; i < e; ++i) {
        const AttentionUnit* next = i + 1 < e ? &plan.units[(size_t)i + 1] : nullptr;
        k().attend(task, plan.units[(size_t)i], next, p.partials_.data() + size * (count - 1 - i), p.scratch_[(size_t)thread]);
      }
    });
    pool().run((int64_t)plan.owners.size(), 1, [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i)
        k().finish(task, plan.owners[(size_t)i], p.partials_.data() + size * plan.owner_first[(size_t)i], size,
                   plan.owner_parts[(size_t)i]);
    });
  }

  void reserve_partials(int64_t floats) {
    if ((int64_t)p.partials_.size() < floats) p.partials_.resize((size_t)floats);
  }

  void operator()(const AddStep& s) {
    const int64_t n = width(s.out);
    over_rows(4, [&](int64_t b, int64_t e) { k().add_rows(p.floats(s.a), p.floats(s.b), p.floats(s.out), b * n, e * n); });
    last_out = s.out;
  }
  void operator()(const ScaleStep& s) {
    const int64_t n = width(s.out);
    over_rows(4, [&](int64_t b, int64_t e) { k().scale_rows(p.floats(s.x), s.factor, p.floats(s.out), b * n, e * n); });
    last_out = s.out;
  }
  void operator()(const SoftcapStep& s) {
    const int64_t n = width(s.out);
    over_rows(1, [&](int64_t b, int64_t e) { k().softcap_rows(p.floats(s.x), s.cap, p.floats(s.out), b * n, e * n); });
    last_out = s.out;
  }
  void operator()(const SelectStep& s) {
    const int64_t n = width(s.x);
    rows = batch.rows;
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(p.floats(s.out) + r * n, p.floats(s.x) + batch.logit_rows[r] * n, sizeof(float) * (size_t)n);
    last_out = s.out;
  }
};

void Program::prepare(const BatchView& batch) {
  // Buffers grow to the largest batch seen and stay: a step after the first of its size allocates nothing.
  for (FloatBuffer& b : floats_) {
    // 16 floats more: elementwise steps work on whole vectors, also on the last of an odd number of columns.
    const size_t need = (size_t)((b.selected ? batch.rows : batch.tokens) * b.width + 16);
    // A new vector rather than a resize: two sizes at once could be 96 MB of logits.
    if (b.data.size() < need) std::vector<float>().swap(b.data), b.data.resize(need);
  }
  for (QuantisedBuffer& b : quantised_) {
    const size_t slots = (size_t)(tiles_of(b.selected ? batch.rows : batch.tokens) * 16 * (b.columns / 32));
    if (b.scale.size() >= slots) continue;
    b.q.resize(slots * 32), b.scale.resize(slots), b.scaled_sum.resize(slots), b.sum.resize(slots), b.half_sum.resize(2 * slots);
  }
  size_t q_heads = 0, q_width = 0;
  for (const Step& step : steps_)
    if (const AttentionStep* a = std::get_if<AttentionStep>(&step)) {
      q_heads = std::max(q_heads, (size_t)a->heads);
      q_width = std::max(q_width, (size_t)a->heads * (size_t)a->head_size);
    }
  if (q_int8_.size() < (size_t)batch.tokens * q_width) q_int8_.resize((size_t)batch.tokens * q_width);
  if (q_scale_.size() < (size_t)batch.tokens * q_heads) q_scale_.resize((size_t)batch.tokens * q_heads), q_sum_.resize((size_t)batch.tokens * q_heads);
  plans_.clear();
  plans_.reserve(64);  // plan_units hands out references
  make_rope_tables(batch);
}

const float* Program::run(const BatchView& batch) {
  prepare(batch);
  StepRunner runner{*this, batch, batch.tokens};
  for (const Step& step : steps_) std::visit(runner, step);
  return floats(runner.last_out);
}

void Program::run_watched(const BatchView& batch, const std::function<void(Step&, int64_t rows)>& before) {
  prepare(batch);
  StepRunner runner{*this, batch, batch.tokens};
  for (Step& step : steps_) {
    before(step, runner.rows);
    std::visit(runner, step);
  }
}

}  // namespace stoker
