// Plain types of sampling. docs/concepts/sampling.md has the definition, sampling/reference.py the same in numpy.
#pragma once
#include <cstddef>
#include <cstdint>

namespace stoker {

// One row's parameters as Python packs them: TASK in sampling/rows.py, field for field.
struct SampleRecord {
  uint64_t seed;
  int64_t position;  // absolute position the new token takes, >= 0
  double top_p;      // (0, 1]; 1: off
  double typical_p;  // (0, 1]; 1: off
  int64_t history_start;
  float temperature;  // >= 0; 0: argmax
  float min_p;        // 0: off, else 2^-100 .. 1
  float repetition_penalty, frequency_penalty, presence_penalty;
  int32_t top_k;         // 0: off
  int32_t top_logprobs;  // -1: no logprobs
  int32_t forced_token;  // -1: sample
  int32_t bias_start, bias_count;
  int32_t banned_start, banned_count;
  int32_t prompt_count, history_count;
  int32_t mask_row;  // -1: none
  int32_t reserved;
};
static_assert(sizeof(SampleRecord) == 104, "TASK in sampling/rows.py has the same 104 bytes");

// One row with its arrays. The logits are only read.
struct SampleTask {
  SampleRecord record;
  const float* logits;        // [vocabulary]
  int64_t vocabulary;         // 1 .. 2^23
  const int32_t* bias_ids;    // [bias_count]
  const float* bias_values;   // [bias_count]
  const int32_t* banned_ids;  // [banned_count]
  const int32_t* history;     // [history_count], the first prompt_count are the prompt's
  const uint32_t* mask;       // [ceil(vocabulary / 32)] or nullptr; set bits are allowed
};

struct SampleOutput {
  int32_t token;       // -1: no token had a logit above -inf
  float logprob;       // of `token`, raw logits; NaN if none was asked for
  int32_t* top_ids;    // [record.top_logprobs], -1 where there are fewer
  float* top_logprobs;
};

constexpr int64_t kSampleBlock = 64;       // tokens that 16 Philox counters serve
constexpr int64_t kSampleDigits = 2048;    // buckets of the radix selection: 11 bits at a time

// Working memory of one thread for vocabularies up to `vocabulary`. Pages are touched only as rows need them.
struct SampleScratch {
  int64_t vocabulary = 0;
  float* row = nullptr;        // [V + 64], a modified copy of the logits
  float* block_top = nullptr;  // [V / 64 + 16], largest logit of each block
  int32_t* ids = nullptr;      // [V + 64], candidates in ascending order
  float* depth = nullptr;      // [V + 64], of the candidates: (largest logit - logit) / temperature
  float* distance = nullptr;   // [V + 64], typical_p's second key
  uint64_t* mass = nullptr;    // [V + 64], of the candidates: e^-depth in units of 2^-40
  uint32_t* count = nullptr;   // [V], all zero between rows
  uint64_t* digit = nullptr;   // [2048]
};

// Owns one thread's SampleScratch. Grows, never shrinks.
class SampleMemory {
 public:
  SampleMemory() = default;
  SampleMemory(const SampleMemory&) = delete;
  SampleMemory& operator=(const SampleMemory&) = delete;
  ~SampleMemory();
  // Scratch for rows of `vocabulary` logits. Throws std::bad_alloc.
  SampleScratch& reserve(int64_t vocabulary);

 private:
  void* bytes_ = nullptr;
  SampleScratch scratch_;
};

}  // namespace stoker
