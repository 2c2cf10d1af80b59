// A draft head's whole chain in one call: a pass after the target's states, then passes after its own, each after the
// likeliest token so far. Between two passes Python would take as long as half a pass.
#pragma once
#include <cstdint>
#include <vector>

#include "kernel_table.h"
#include "program.h"

namespace stoker {

struct ChainTask {
  int64_t passes = 1;          // at most
  float least_reached = 0;     // no pass after a token that is less likely to be reached, by the head's confidence
  const int32_t* ids = nullptr;  // [columns of the logits] the target's id of each
  int64_t vocabulary = 0;        // of the target
};

// `batch` is what `first` is run on, with its input set: one sequence, one row of logits and one hidden one, its last.
// `own` takes what they hand on, at the positions after it, which the block table must reach. Of each pass the two
// likeliest tokens, by the target's ids; the last may have none. Throws std::invalid_argument for an id past the
// vocabulary.
std::vector<Likeliest> draft_chain(Program& first, Program& own, const BatchView& batch, const ChainTask& task);

}  // namespace stoker
