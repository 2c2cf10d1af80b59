// Which units of attention a batch is computed in: Program's plans, one per shape of attention layer.
#include <algorithm>

#include "program.h"

namespace stoker {
namespace {

// Sharing costs two waits a layer more, about 5 us, and saves about 20 ns a row and chunk: below so many of them for
// each thread but the first it does not pay.
constexpr int64_t kLeastSharedWork = 256;

}  // namespace

const Program::UnitPlan& Program::plan_of(const AttentionStep& step) const {
  return *std::find_if(plans_.begin(), plans_.end(), [&](const UnitPlan& p) { return p.suits(step); });
}

bool Program::decodes_together(const BatchView& batch, const AttentionStep& step) const {
  return batch.tokens == batch.sequences && batch.sequences >= 4 * pool_.threads() && !reads_step_ && !plan_of(step).split;
}

bool Program::shares(const AttentionStep& step) const { return !plan_of(step).shared.empty(); }

// Query tokens of one unit: as many as it can take, or fewer where each thread would not have two units else.
int64_t Program::unit_tokens(const BatchView& batch, const AttentionStep& step) const {
  const int64_t most = std::max(1, kUnitRows / (step.heads / step.kv_heads)), wanted = 2 * pool_.threads();
  int64_t units = 0, longest = 1;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t tokens = batch.query_start[s + 1] - batch.query_start[s];
    units += (tokens + most - 1) / most * step.kv_heads;
    longest = std::max(longest, tokens);
  }
  if (units >= wanted || pool_.threads() == 1) return most;
  const int64_t tiles = (wanted + units - 1) / units;  // in place of each
  return (std::min(longest, most) + tiles - 1) / tiles;
}

void Program::plan_units(const BatchView& batch, const AttentionStep& step) {
  if (std::any_of(plans_.begin(), plans_.end(), [&](const UnitPlan& p) { return p.suits(step); })) return;
  const int group = step.heads / step.kv_heads;
  UnitPlan& plan = plans_.emplace_back();
  plan.kv_heads = step.kv_heads, plan.group = group, plan.head_size = step.head_size, plan.window = step.window;
  const int64_t tile = unit_tokens(batch, step);
  for (int64_t s = 0; s < batch.sequences; ++s)
    for (int64_t t = batch.query_start[s]; t < batch.query_start[s + 1]; t += tile) {
      const int64_t end = std::min<int64_t>(t + tile, batch.query_start[s + 1]);
      const int64_t first = batch.positions[t], last = batch.positions[end - 1];
      const int64_t oldest = step.window && first >= step.window ? first - step.window + 1 : 0;
      const int64_t shared_end = prefixes_.shared_end[(size_t)s] > oldest ? prefixes_.shared_end[(size_t)s] : 0;
      for (int h = 0; h < step.kv_heads; ++h)
        plan.owners.push_back({s, h, t, end, oldest / kSplitTokens, last / kSplitTokens + 1, shared_end});
    }
  if (!prefixes_.groups.empty()) plan_shared(batch, step, plan);
  // Few owners and long contexts: the splits are handed out one by one. The bits are the same either way.
  const auto own_splits = [](const AttentionUnit& u) { return u.split_end - std::max(u.split_begin, u.shared_end / kSplitTokens); };
  int64_t parts = 0;
  for (const AttentionUnit& u : plan.owners) parts += own_splits(u);
  const int64_t owners = (int64_t)plan.owners.size();
  plan.split = owners < 4 * pool_.threads() && parts > owners && pool_.threads() > 1;
  if (!plan.split) {
    plan.units = plan.owners;
  } else {
    for (const AttentionUnit& u : plan.owners) {
      plan.owner_first.push_back((int64_t)plan.units.size());
      plan.owner_parts.push_back(own_splits(u));
      for (int64_t i = u.split_end - own_splits(u); i < u.split_end; ++i)
        plan.units.push_back({u.sequence, u.kv_head, u.token_begin, u.token_end, i, i + 1});
      AttentionUnit& first = plan.units[(size_t)plan.owner_first.back()];  // it joins what was shared
      first.split_begin = u.split_begin, first.shared_end = u.shared_end;
    }
  }
  std::reverse(plan.units.begin(), plan.units.end());  // late tokens see most positions: the long units first
  partials_.grow((size_t)(partial_floats(step.head_size) * std::max<int64_t>(plan.split ? parts : 0, pool_.threads())));
}

// The rows of several sequences that have the same blocks, group by group, and a slot for the state that each row gets
// of each split; returns how many slots. Owners must be there.
int64_t Program::collect_shared_rows(const BatchView& batch, const AttentionStep& step, UnitPlan& plan, std::vector<SharedRows>& all) {
  plan.shared_slot.assign((size_t)batch.tokens, 0);
  std::vector<const AttentionUnit*> owner((size_t)batch.tokens, nullptr);  // of kv head 0
  int64_t slots = 0;
  for (size_t i = 0; i < plan.owners.size(); i += (size_t)step.kv_heads) {
    const AttentionUnit& u = plan.owners[i];
    if (!u.shared_end) continue;
    const int64_t splits = (u.shared_end + kSplitTokens - 1) / kSplitTokens - u.split_begin;
    for (int64_t t = u.token_begin; t < u.token_end; ++t, slots += splits) {
      plan.shared_slot[(size_t)t] = (int32_t)(slots - u.split_begin);
      owner[(size_t)t] = &u;
    }
  }
  for (const SharedPrefixes::Group& g : prefixes_.groups) {
    SharedRows rows{&g, 0, (int64_t)plan.shared_rows.size(), 0};
    int64_t oldest = g.end;
    for (int64_t m = g.first; m < g.last; ++m) {
      const int32_t s = prefixes_.members[(size_t)m];
      for (int32_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
        const AttentionUnit* u = owner[(size_t)t];
        if (!u || u->split_begin > g.split) continue;  // a window that begins later
        const int64_t first = batch.positions[u->token_begin];
        oldest = std::min(oldest, step.window && first >= step.window ? first - step.window + 1 : 0);
        for (int head = 0; head < plan.group; ++head) plan.shared_rows.push_back({t, head});
      }
    }
    rows.begin = std::max(g.split * kSplitTokens, oldest / kChunkTokens * kChunkTokens);
    rows.last = (int64_t)plan.shared_rows.size();
    if (rows.last > rows.first) all.push_back(rows);
  }
  return slots;
}

// Units of up to kUnitRows rows of several sequences, or none when that would not pay. Owners must be there.
void Program::plan_shared(const BatchView& batch, const AttentionStep& step, UnitPlan& plan) {
  std::vector<SharedRows> all;
  const int64_t slots = collect_shared_rows(batch, step, plan, all);
  int64_t work = 0;  // rows times chunks of 64 positions
  for (const SharedRows& r : all) work += (r.last - r.first) * step.kv_heads * (r.group->end - r.begin) / kChunkTokens;
  if (work < kLeastSharedWork * (pool_.threads() - 1)) {
    for (AttentionUnit& u : plan.owners) u.shared_end = 0;
    return;
  }
  // Smaller units when the threads would have too few of them.
  const auto units_of = [&](const SharedRows& r, int64_t tile) { return (r.last - r.first + tile - 1) / tile; };
  int64_t tile = kUnitRows;
  for (; tile > 8; tile /= 2) {
    int64_t units = 0;
    for (const SharedRows& r : all) units += units_of(r, tile) * step.kv_heads;
    if (units >= 4 * pool_.threads()) break;
  }
  for (const SharedRows& r : all) {
    const int64_t sequence = prefixes_.members[(size_t)r.group->first];
    const int64_t units = units_of(r, tile), even = ((r.last - r.first + units - 1) / units + 7) / 8 * 8;  // 8 rows to a pass
    for (int h = 0; h < step.kv_heads; ++h)
      for (int64_t i = r.first; i < r.last; i += even)
        plan.shared.push_back({sequence, h, r.group->split, r.begin, r.group->end, &plan.shared_rows[(size_t)i], (int)std::min(even, r.last - i)});
  }
  shared_states_.grow((size_t)(slots * step.heads * (step.head_size + 2)));
}

}  // namespace stoker
