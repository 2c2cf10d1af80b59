#include "shared_prefix.h"

#include <algorithm>

#include "program.h"

namespace stoker {
namespace {

constexpr int64_t kChunkBlocks = kChunkTokens / kBlockTokens, kSplitBlocks = kSplitTokens / kBlockTokens;
constexpr int kSplitChunks = kSplitTokens / kChunkTokens;

// Whole chunks of the split that lie before a sequence's first query token.
int64_t finished_chunks(const BatchView& batch, int64_t sequence, int64_t split) {
  const int64_t tokens = batch.positions[batch.query_start[sequence]] - split * kSplitTokens;
  return std::clamp<int64_t>(tokens / kChunkTokens, 0, kSplitChunks);
}

}  // namespace

void SharedPrefixes::find(const BatchView& batch) {
  groups.clear(), members.clear(), waiting_.clear();
  shared_end.assign((size_t)batch.sequences, 0);
  if (batch.sequences < 2) return;
  for (int64_t s = 0; s < batch.sequences; ++s)
    if (batch.query_start[s + 1] - batch.query_start[s] <= kMostSharedTokens) members.push_back((int32_t)s);
  waiting_.push_back({0, 0, (int64_t)members.size()});
  for (size_t i = 0; i < waiting_.size(); ++i) divide(batch, Candidates(waiting_[i]));
}

// Splits candidates, which have the same blocks up to the split, into groups: around the first of those left, as many
// chunks as save most loads; those that part from it earlier form groups of their own.
void SharedPrefixes::divide(const BatchView& batch, const Candidates& candidates) {
  const auto table = [&](uint64_t entry) {
    return batch.block_tables + (int64_t)(entry & 0xffffffff) * batch.table_stride + candidates.split * kSplitBlocks;
  };
  order_.clear();
  for (int64_t i = candidates.first; i < candidates.last; ++i) {
    const uint64_t s = (uint64_t)members[(size_t)i];
    if (finished_chunks(batch, (int64_t)s, candidates.split)) order_.push_back((uint64_t)*table(s) << 32 | s);
  }
  std::sort(order_.begin(), order_.end());
  for (size_t first = 0, last; first < order_.size(); first = last) {
    for (last = first + 1; last < order_.size() && order_[last] >> 32 == order_[first] >> 32;) ++last;
    rest_.assign(order_.begin() + (int64_t)first, order_.begin() + (int64_t)last);
    while (rest_.size() > 1) {
      const int64_t leads = finished_chunks(batch, (int64_t)(rest_[0] & 0xffffffff), candidates.split);
      int64_t count[kSplitChunks + 1] = {};
      const auto common = [&](uint64_t entry) {
        const int64_t most = std::min(leads, finished_chunks(batch, (int64_t)(entry & 0xffffffff), candidates.split));
        const int32_t* mine = table(entry);
        return (std::mismatch(mine, mine + most * kChunkBlocks, table(rest_[0])).first - mine) / kChunkBlocks;
      };
      for (const uint64_t entry : rest_) ++count[common(entry)];
      int64_t chunks = 0, with = 0, saved = 0;  // loads saved: of every member but one
      for (int64_t c = kSplitChunks; c > 0; --c) {
        with += count[c];
        if ((with - 1) * c > saved) saved = (with - 1) * c, chunks = c;
      }
      const auto parts = chunks ? std::stable_partition(rest_.begin() + 1, rest_.end(), [&](uint64_t e) { return common(e) >= chunks; })
                                : rest_.begin() + 1;
      if (chunks) {
        const int64_t end = candidates.split * kSplitTokens + chunks * kChunkTokens, begin = (int64_t)members.size();
        for (auto e = rest_.begin(); e != parts; ++e) {
          members.push_back((int32_t)(*e & 0xffffffff));
          shared_end[(size_t)members.back()] = end;
        }
        groups.push_back({candidates.split, end, begin, (int64_t)members.size()});
        if (chunks == kSplitChunks) waiting_.push_back({candidates.split + 1, begin, (int64_t)members.size()});
      }
      rest_.erase(rest_.begin(), parts);
    }
  }
}

}  // namespace stoker
