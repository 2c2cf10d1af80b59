// Refuses a batch that contradicts itself before anything is written: what keeps a scheduler's mistake from
// becoming an access outside the KV memory, or two tokens writing one slot. The messages name the field, its
// value and what is allowed; kernels/interpreter.py check_batch says the same, slower, for other interpreters.
#pragma once
#include "program.h"

namespace stoker {

// Lengths of the arrays as they came from Python; a BatchView keeps only those that cannot be derived.
struct BatchSizes {
  int64_t token_ids, positions, query_start, kv_tokens, table_rows;
};

// Throws std::invalid_argument unless the arrays fit together.
void check_sizes(const BatchSizes& sizes);

// Throws std::invalid_argument for the first value that is wrong. Sizes were checked before.
// O(T + blocks in the tables); no memory is taken unless a step writes more than 256 blocks.
void check_batch(const BatchView& batch, int64_t vocabulary, int64_t num_blocks, int64_t context_tokens);

}  // namespace stoker
