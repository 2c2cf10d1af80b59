// Which sequences of a batch have the same blocks at the same positions: their attention over these can load each
// key and value once for all of them. docs/decisions/0005.
#pragma once
#include <cstdint>
#include <vector>

namespace stoker {

struct BatchView;

struct SharedPrefixes {
  // Two or more sequences, members[first .. last), have the same blocks from position split * kSplitTokens to `end`, a
  // multiple of kChunkTokens in that split, and from position 0 up to that split. None of them writes there in this step;
  // what another one does (the stem of branches) is stored before anything attends.
  struct Group {
    int64_t split, end, first, last;
  };
  std::vector<Group> groups;  // splits ascend
  std::vector<int32_t> members;
  std::vector<int64_t> shared_end;  // [sequences]: where a sequence's last group ends, 0 without one

  // Finds the groups of a batch in O(sequences log sequences) per split that is shared. Only sequences of up to
  // kMostSharedTokens query tokens take part: one with more fills a unit's rows by itself.
  void find(const BatchView& batch);

 private:
  struct Candidates {
    int64_t split, first, last;  // of members
  };
  void divide(const BatchView& batch, const Candidates& candidates);

  std::vector<Candidates> waiting_;
  std::vector<uint64_t> order_;  // first block id of the split << 32 | sequence
  std::vector<uint64_t> rest_;
};

constexpr int64_t kMostSharedTokens = 4;

}  // namespace stoker
