#include "step_runner.h"

#include <cstring>

#include "pack.h"

namespace stoker {
namespace {

// So many floats are normed or turned here and now in about a microsecond, sooner than other threads have them.
constexpr int64_t kFloatsAlone = 1 << 14;

const float* offset(const float* x, int64_t floats) { return x ? x + floats : nullptr; }

int64_t rows_alone(int64_t width) { return std::max<int64_t>(kFloatsAlone / width, 1); }

}  // namespace

// Runners work on different steps at the same time, whose norms keep different numbers of outliers: each runner's
// values start where they would if all kept the most, so that no two runners' meet.
QuantisedRows StepRunner::written(int buffer, int outliers, const int32_t* columns) {
  QuantisedRows x = p.quantised(buffer, outliers, columns);
  if (outliers) x.outlier_values += begin * ((int64_t)p.most_outliers_ - outliers);
  return x;
}

QuantisedRows StepRunner::own_rows(int buffer, int outliers) {
  QuantisedRows x = p.quantised(buffer, outliers);
  if (!x.q) return x;
  const int64_t slots = begin * (x.columns / 32);
  x.q += slots * 32, x.scale += slots, x.scaled_sum += slots, x.sum += slots, x.half_sum += 2 * slots;
  x.outlier_values += begin * (int64_t)p.most_outliers_;
  return x;
}

void StepRunner::operator()(const EmbedStep& s) {
  float* out = p.floats(s.out);
  const int64_t n = width(s.out);
  over_rows(4, [&](int64_t b, int64_t e) {
    for (int64_t t = b; t < e; ++t) unpack_rows(*s.table, batch.token_ids[t], batch.token_ids[t] + 1, out + t * n);
    if (s.scale != 1.0f) k().scale_rows(out + b * n, s.scale, out + b * n, 0, (e - b) * n);
  });
}

void StepRunner::operator()(const InputStep& s) {
  const int64_t n = width(s.out);
  std::memcpy(p.floats(s.out) + begin * n, p.input_.data() + begin * n, sizeof(float) * (size_t)(rows() * n));
}

void StepRunner::operator()(const NormStep& s) {
  const int64_t n = (int64_t)s.weight.size();
  const float *x = p.floats(s.x), *residual = p.floats(s.residual), *w = s.weight.data();
  float* out = p.floats(s.out);
  const QuantisedRows quantised = written(s.out_quantised, (int)s.outliers.size(), s.outliers.data());
  over_rows(rows_alone(n * s.groups), [&](int64_t b, int64_t e) {
    if (residual) k().rms_norm_add(x, w, residual, n, s.eps, out, b * s.groups, e * s.groups);
    else if (out) k().rms_norm(x, w, n, s.eps, out, b * s.groups, e * s.groups);
    if (!quantised.q) return;
    if (out && s.outliers.empty()) k().quantise_rows(out, n, quantised, b, e);
    else k().rms_norm_quantise(x, w, n, s.eps, quantised, b, e);
  });
}

void StepRunner::operator()(const QuantiseStep& s) {
  const QuantisedRows out = p.quantised(s.out);
  over_rows(rows_alone(width(s.x)), [&](int64_t b, int64_t e) { k().quantise_rows(p.floats(s.x), width(s.x), out, b, e); });
}

void StepRunner::operator()(const LinearStep& s) {
  int64_t panels = 0;
  for (const LinearPart& part : s.parts) panels += part.weight->panels;
  spread(panels, grain_for(panels), [&](int64_t b, int64_t e, int) {
    for (const LinearPart& part : s.parts) {
      const int64_t n = part.weight->panels;
      if (b < n && e > 0) {
        LinearTask task;
        task.weight = part.weight.get();
        task.x = own_rows(s.x_quantised, s.outliers);
        task.x_float = offset(p.floats(s.x), begin * part.weight->columns);
        task.outlier_weights = part.outlier_weights.data();
        task.tokens = rows();
        task.out_stride = width(part.out);
        task.out = p.floats(part.out) + begin * task.out_stride;
        task.bias = part.bias.empty() ? nullptr : part.bias.data();
        task.add = part.add;
        k().linear(task, std::max<int64_t>(b, 0), std::min(e, n));
      }
      b -= n, e -= n;
    }
  });
}

void StepRunner::operator()(const GatedLinearStep& s) {
  LinearTask task;
  task.weight = s.gate.get();
  task.up = s.up.get();
  task.activation = s.activation;
  task.x = own_rows(s.x_quantised, s.outliers);
  task.tokens = rows();
  task.outlier_weights = s.gate_outlier_weights.data();
  task.up_outlier_weights = s.up_outlier_weights.data();
  task.out_quantised = own_rows(s.out_quantised);
  const int64_t pairs = s.gate->rows / 32;
  spread(pairs, grain_for(pairs), [&](int64_t b, int64_t e, int) { k().linear_gated(task, b, e); });
}

void StepRunner::operator()(const GatedStep& s) {
  const int64_t n = width(s.out);
  over_rows(4, [&](int64_t b, int64_t e) {
    k().gated_activation(s.activation, p.floats(s.gate), p.floats(s.up), p.floats(s.out), b * n, e * n);
  });
}

void StepRunner::operator()(const RopeStep& s) {
  const RopeTable& table = p.ropes_[(size_t)s.table];
  const RopeTask task{s.head_size, table.rotary, table.interleaved, table.cosine.data(), table.sine.data()};
  over_rows(rows_alone(s.heads * (int64_t)s.head_size), [&](int64_t b, int64_t e) { k().rope(task, p.floats(s.x), p.floats(s.out), s.heads, b, e); });
}

void StepRunner::operator()(const AddStep& s) {
  const int64_t n = width(s.out);
  over_rows(4, [&](int64_t b, int64_t e) { k().add_rows(p.floats(s.a), p.floats(s.b), p.floats(s.out), b * n, e * n); });
}

void StepRunner::operator()(const ScaleStep& s) {
  const int64_t n = width(s.out);
  over_rows(4, [&](int64_t b, int64_t e) { k().scale_rows(p.floats(s.x), s.factor, p.floats(s.out), b * n, e * n); });
}

void StepRunner::operator()(const SoftcapStep& s) {
  const int64_t n = width(s.out);
  over_rows(1, [&](int64_t b, int64_t e) { k().softcap_rows(p.floats(s.x), s.cap, p.floats(s.out), b * n, e * n); });
}

void StepRunner::operator()(const SelectStep& s) {
  const int64_t n = width(s.x);
  const int32_t* wanted = s.rows == Rows::hidden ? batch.hidden_rows : batch.logit_rows;
  begin = 0, end = batch.count(s.rows);
  for (int64_t r = 0; r < end; ++r)
    std::memcpy(p.floats(s.out) + r * n, p.floats(s.x) + wanted[r] * n, sizeof(float) * (size_t)n);
}

// ---- attention -----------------------------------------------------------------------------------------

AttentionTask StepRunner::task_of(const AttentionStep& s) {
  AttentionTask task{};
  task.cache = &p.cache_;
  task.layer = s.layer, task.heads = s.heads, task.kv_heads = s.kv_heads, task.head_size = s.head_size;
  task.scale = s.scale, task.window = s.window, task.softcap = s.softcap;
  task.positions = batch.positions, task.block_tables = batch.block_tables, task.table_stride = batch.table_stride;
  task.q = p.floats(s.q), task.out = p.floats(s.out), task.out_quantised = p.quantised(s.out_quantised);
  task.q_int8 = p.q_int8_.data(), task.q_scale = p.q_scale_.data(), task.q_sum = p.q_sum_.data();
  task.shared_states = p.shared_states_.data(), task.shared_slot = p.plan_of(s).shared_slot.data();
  return task;
}

void StepRunner::operator()(const AttentionStep& s) {
  if (p.decodes_together(batch, s) && !p.shares(s)) return decode(s, true);
  store_keys(s);
  attend_shared(s);
  attend_own(s);
}

void StepRunner::store_keys(const AttentionStep& s) {
  const AttentionTask task = task_of(s);
  const float *keys = p.floats(s.k), *values = p.floats(s.v);
  over_rows(4, [&](int64_t b, int64_t e) {
    int64_t sequence = std::upper_bound(batch.query_start, batch.query_start + batch.sequences + 1, (int32_t)b) - batch.query_start - 1;
    for (int64_t t = b; t < e; ++t) {
      while (t >= batch.query_start[sequence + 1]) ++sequence;
      k().store_keys(task, keys, values, t, sequence);
    }
    const auto* copies = (const int32_t(*)[2])batch.kv_copies;
    const auto* first = std::lower_bound(copies, copies + batch.copies, b, [](const int32_t (&c)[2], int64_t t) { return c[0] < t; });
    for (; first < copies + batch.copies && (*first)[0] < e; ++first)
      k().store_keys(task, keys, values, (*first)[0], (*first)[1]);
    k().prepare_queries(task, b, e);
  });
}

void StepRunner::attend_shared(const AttentionStep& s) {
  const AttentionTask task = task_of(s);
  const std::vector<SharedUnit>& units = p.plan_of(s).shared;
  const int64_t count = (int64_t)units.size();
  // Units of one kv head and split follow one another: in one chunk they find its keys in the core's cache.
  p.pool_.run(count, std::clamp<int64_t>(count / (p.pool_.threads() * 4), 1, 4), [&](int64_t b, int64_t e, int on) {
    for (int64_t i = b; i < e; ++i)
      k().attend_shared(task, units[(size_t)i], i + 1 < e ? &units[(size_t)i + 1] : nullptr, p.scratch_[(size_t)on]);
  });
}

void StepRunner::attend_own(const AttentionStep& s) {
  if (p.decodes_together(batch, s)) return decode(s, false);
  const AttentionTask task = task_of(s);
  const Program::UnitPlan& plan = p.plan_of(s);
  if (plan.split) attend_splits(task, plan);
  else attend_owners(task, plan);
}

void StepRunner::decode(const AttentionStep& s, bool store) {
  const AttentionTask task = task_of(s);
  const Program::UnitPlan& plan = p.plan_of(s);
  const float *keys = store ? p.floats(s.k) : nullptr, *values = store ? p.floats(s.v) : nullptr;
  spread(rows(), std::clamp<int64_t>(rows() / (p.pool_.threads() * 6), 1, 8), [&](int64_t b, int64_t e, int on) {
    decode_sequences(task, plan, keys, values, begin + b, begin + e, on);
  });
}

// One token of each of many sequences: a thread stores a sequence's key and value (unless they are: no keys) and
// attends to it at once, while the lines it wrote are in its cache. Owners are ordered by sequence, then kv head.
void StepRunner::decode_sequences(const AttentionTask& task, const Program::UnitPlan& plan, const float* keys,
                                  const float* values, int64_t first, int64_t last, int on) {
  float* mine = p.partials_.data() + p.partial_floats(task.head_size) * on;
  const int64_t per_sequence = task.kv_heads;
  for (int64_t s = first; s < last; ++s) {
    if (keys) {
      k().store_keys(task, keys, values, s, s);
      k().prepare_queries(task, s, s + 1);
    }
    for (int64_t i = s * per_sequence; i < (s + 1) * per_sequence; ++i) {
      const AttentionUnit* next = i + 1 < last * per_sequence ? &plan.owners[(size_t)i + 1] : nullptr;
      k().attend(task, plan.owners[(size_t)i], next, mine, p.scratch_[(size_t)on]);
      k().finish(task, plan.owners[(size_t)i], mine, 0, 1);
    }
  }
}

void StepRunner::attend_owners(const AttentionTask& task, const Program::UnitPlan& plan) {
  const int64_t size = p.partial_floats(task.head_size), count = (int64_t)plan.units.size();
  // Several short units to a chunk, so that a thread knows which keys it needs next.
  p.pool_.run(count, std::clamp<int64_t>(count / (p.pool_.threads() * 8), 1, 8), [&](int64_t b, int64_t e, int on) {
    for (int64_t i = b; i < e; ++i) {
      float* mine = p.partials_.data() + size * on;
      const AttentionUnit* next = i + 1 < e ? &plan.units[(size_t)i + 1] : nullptr;
      k().attend(task, plan.units[(size_t)i], next, mine, p.scratch_[(size_t)on]);
      k().finish(task, plan.units[(size_t)i], mine, 0, 1);
    }
  });
}

void StepRunner::attend_splits(const AttentionTask& task, const Program::UnitPlan& plan) {
  const int64_t size = p.partial_floats(task.head_size), count = (int64_t)plan.units.size();
  // plan.units is reversed: unit i of the owners' order is at count - 1 - i; its partials lie at i. A few splits to
  // a chunk, so that the next one's first keys are fetched while the present one is computed.
  p.pool_.run(count, std::clamp<int64_t>(count / (p.pool_.threads() * 4), 1, 4), [&](int64_t b, int64_t e, int on) {
    for (int64_t i = b; i < e; ++i) {
      const AttentionUnit* next = i + 1 < e ? &plan.units[(size_t)i + 1] : nullptr;
      k().attend(task, plan.units[(size_t)i], next, p.partials_.data() + size * (count - 1 - i), p.scratch_[(size_t)on]);
    }
  });
  p.pool_.run((int64_t)plan.owners.size(), 1, [&](int64_t b, int64_t e, int) {
    for (int64_t i = b; i < e; ++i)
      k().finish(task, plan.owners[(size_t)i], p.partials_.data() + size * plan.owner_first[(size_t)i], size,
                 plan.owner_parts[(size_t)i]);
  });
}

}  // namespace stoker
