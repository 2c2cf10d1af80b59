#include "check_batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace stoker {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("batch" + what); }

std::string number(int64_t n) { return std::to_string(n); }

void check_length(const char* name, int64_t length, int64_t allowed) {
  if (length != allowed)
    refuse("." + std::string(name) + " has " + number(length) + " entries; allowed: " + number(allowed));
}

// values in [low, end)
void check_range(const char* name, const int32_t* values, int64_t count, int64_t low, int64_t end) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < low || values[i] >= end)
      refuse("." + std::string(name) + " holds " + number(values[i]) + "; allowed: " + number(low) + " to " + number(end - 1));
}

void check_query_start(const BatchView& b) {
  for (int64_t s = 0; s <= b.sequences; ++s) {
    const int64_t start = b.query_start[s];
    const bool good = s == 0 ? start == 0 : start > b.query_start[s - 1];
    if (!good || (s == b.sequences && start != b.tokens))
      refuse(".query_start[" + number(s) + "] is " + number(start) + "; allowed: numbers rising from 0 to " + number(b.tokens));
  }
}

void check_positions(const BatchView& b) {
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t count = b.query_start[s + 1] - b.query_start[s];
    if (b.kv_tokens[s] < count)
      refuse(".kv_tokens[" + number(s) + "] is " + number(b.kv_tokens[s]) + "; allowed: at least its " + number(count) + " tokens");
  }
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t to_position = (int64_t)b.kv_tokens[s] - b.query_start[s + 1];
    for (int64_t t = b.query_start[s]; t < b.query_start[s + 1]; ++t)
      if (b.positions[t] != t + to_position)
        refuse(".positions[" + number(t) + "] is " + number(b.positions[t]) + "; allowed: " + number(t + to_position) +
               ", as its sequence ends at kv_tokens - 1");
  }
}

int64_t blocks_of(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

void check_blocks(const BatchView& b, int64_t num_blocks) {
  int64_t needed = 0;
  for (int64_t s = 0; s < b.sequences; ++s) needed = std::max(needed, blocks_of(b.kv_tokens[s]));
  if (b.table_stride < needed)
    refuse(".block_tables has " + number(b.table_stride) + " columns; allowed: at least " + number(needed));
  for (int64_t s = 0; s < b.sequences; ++s)
    check_range("block_tables", b.block_tables + s * b.table_stride, blocks_of(b.kv_tokens[s]), 0, num_blocks);
}

// Calls see(key) for each block that a sequence or a copy writes into: block id, then the slots [begin, end) of it, in
// one number that sorts in this order.
template <class See>
void over_written(const BatchView& b, See&& see) {
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t end = b.kv_tokens[s], begin = end - (b.query_start[s + 1] - b.query_start[s]);
    for (int64_t i = begin / kBlockTokens; i < blocks_of(end); ++i) {
      const int64_t first = std::max<int64_t>(begin - i * kBlockTokens, 0), last = std::min<int64_t>(end - i * kBlockTokens, kBlockTokens);
      see((uint64_t)b.block_tables[s * b.table_stride + i] << 16 | (uint64_t)first << 8 | (uint64_t)last);
    }
  }
  for (int64_t i = 0; i < b.copies; ++i) {
    const int64_t position = b.positions[b.kv_copies[2 * i]], slot = position % kBlockTokens;
    const int32_t block = b.block_tables[b.kv_copies[2 * i + 1] * b.table_stride + position / kBlockTokens];
    see((uint64_t)block << 16 | (uint64_t)slot << 8 | (uint64_t)(slot + 1));
  }
}

void check_copies(const BatchView& b) {
  for (int64_t i = 0; i < b.copies; ++i) {
    const int32_t token = b.kv_copies[2 * i], sequence = b.kv_copies[2 * i + 1];
    if (token < 0 || token >= b.tokens || sequence < 0 || sequence >= b.sequences)
      refuse(".kv_copies[" + number(i) + "] copies token " + number(token) + " for sequence " + number(sequence) +
             "; allowed: tokens 0 to " + number(b.tokens - 1) + ", sequences 0 to " + number(b.sequences - 1));
    if (i && std::make_pair(token, sequence) <= std::make_pair(b.kv_copies[2 * i - 2], b.kv_copies[2 * i - 1]))
      refuse(".kv_copies[" + number(i) + "] is not behind the one before it; allowed: rising tokens, and rising sequences of each");
    const int64_t first = b.positions[b.query_start[sequence]];
    if (b.positions[token] >= first)
      refuse(".kv_copies[" + number(i) + "] is of position " + number(b.positions[token]) + "; allowed: before position " +
             number(first) + ", where its sequence begins");
  }
}

void check_written(const BatchView& b) {
  int64_t count = 0;
  over_written(b, [&](uint64_t) { ++count; });
  uint64_t few[256];
  std::vector<uint64_t> many((size_t)(count > 256 ? count : 0));
  uint64_t* const keys = count > 256 ? many.data() : few;
  uint64_t* end = keys;
  over_written(b, [&](uint64_t key) { *end++ = key; });
  std::sort(keys, end);
  for (const uint64_t* key = keys + 1; key < end; ++key)
    if (key[-1] >> 16 == key[0] >> 16 && (key[0] >> 8 & 255) < (key[-1] & 255))
      refuse(".block_tables make two tokens of one step share a slot of block " + number((int64_t)(key[0] >> 16)));
}

void check_rows(const char* name, const int32_t* rows, int64_t count, int64_t tokens) {
  check_range(name, rows, count, 0, tokens);
  for (int64_t r = 1; r < count; ++r)
    if (rows[r] <= rows[r - 1])
      refuse(std::string(".").append(name) + "[" + number(r) + "] is " + number(rows[r]) + "; allowed: rising numbers");
}

}  // namespace

void check_sizes(const BatchSizes& sizes) {
  const int64_t tokens = sizes.token_ids, sequences = sizes.kv_tokens;
  if (sequences < 1 || sequences > tokens)
    refuse(" has " + number(sequences) + " sequences and " + number(tokens) + " tokens; allowed: one token each or more");
  check_length("positions", sizes.positions, tokens);
  check_length("query_start", sizes.query_start, sequences + 1);
  check_length("block_tables", sizes.table_rows, sequences);
}

void check_batch(const BatchView& b, int64_t vocabulary, int64_t num_blocks, int64_t context_tokens) {
  check_range("token_ids", b.token_ids, b.tokens, 0, vocabulary);
  check_query_start(b);
  check_range("kv_tokens", b.kv_tokens, b.sequences, 1, context_tokens + 1);
  check_positions(b);
  check_blocks(b, num_blocks);
  check_copies(b);
  check_written(b);
  check_rows("logit_rows", b.logit_rows, b.rows, b.tokens);
  check_rows("hidden_rows", b.hidden_rows, b.hidden, b.tokens);
}

}  // namespace stoker
