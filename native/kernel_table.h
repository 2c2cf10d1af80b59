// Everything the native code can compute, as one table of functions per CPU target. dispatch.cc picks the
// table once; program.cc calls through it. All functions are pure in (arguments -> outputs), work on ranges
// that a thread pool hands out, and give the same bits for any split of the ranges and on any target.
#pragma once
#include <cstdint>

#include "kv_cache.h"
#include "packed.h"
#include "sample.h"

namespace stoker {

enum class Activation : uint8_t { silu, gelu_tanh };

// Activations of T tokens as int8, in tiles of 16 tokens: tile, block of 32 columns, token, 32 columns.
// Unused tokens of the last tile hold zeros or stale finite values; nobody reads their results.
struct QuantisedRows {
  int64_t columns = 0;
  int8_t* q = nullptr;           // [tiles][columns/32][16][32]
  float* scale = nullptr;        // [tiles][columns/32][16]
  float* scaled_sum = nullptr;   // [tiles][columns/32][16]: scale * sum of q
  int32_t* sum = nullptr;        // [tiles][columns/32][16]
  int32_t* half_sum = nullptr;   // [tiles][columns/32][16][2]: sums of 16 columns
  // Columns kept out of the int8 groups because their size would coarsen the whole group; in float32 instead.
  int outliers = 0;
  const int32_t* outlier_columns = nullptr;  // [outliers], ascending
  float* outlier_values = nullptr;           // [tokens][outliers]
};

// out[t][r] = x[t] . w[r] (+ bias[r]) (+ out[t][r] when add), rows of the panels asked for.
struct LinearTask {
  const PackedMatrix* weight;
  const PackedMatrix* up = nullptr;  // gated: weight is the gate, out = activation(gate) * up
  Activation activation = Activation::silu;
  QuantisedRows x;           // for quantised weights
  const float* outlier_weights = nullptr;     // [panels][x.outliers][16]: the weights of the outlier columns
  const float* up_outlier_weights = nullptr;  // the same of `up`
  const float* x_float = nullptr;  // [tokens][columns], for float weights
  int64_t tokens = 0;
  float* out = nullptr;      // [tokens][out_stride]
  int64_t out_stride = 0;
  const float* bias = nullptr;
  bool add = false;
  QuantisedRows out_quantised;  // gated only: set q to get the result quantised instead of `out`
};

struct RopeTask {
  int head_size, rotary;
  bool interleaved;
  const float* cosine;  // [tokens][rotary/2]
  const float* sine;
};

// One attention layer of one step; docs/concepts/attention.md has the arithmetic.
struct AttentionTask {
  const KvCache* cache;
  int layer;
  int heads, kv_heads, head_size;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  const int32_t* positions;     // [T]
  const int32_t* block_tables;  // [S][table_stride]
  int64_t table_stride;
  const float* q;     // [T][heads * head_size], rotated; read by the f16 kernel
  int8_t* q_int8;     // [T][heads * head_size]; written by prepare_queries, read by the int8 kernel
  float* q_scale;     // [T][heads]: of q_int8, times the logit scale and log2(e)
  int32_t* q_sum;     // [T][heads]: what a score of q_int8 begins with, see prepare_queries_int8
  float* out;         // [T][heads * head_size]
  QuantisedRows out_quantised;  // set q to get the result quantised instead of `out`
  // What shared units leave for the tokens' own units: numbers, maximum and sum of each split they computed, at
  // [shared_slot[token] + split][heads][head_size + 2]. Null when nothing is shared.
  float* shared_states;
  const int32_t* shared_slot;  // [T]
};

// Rows of one unit of attention work: tokens [token_begin, token_end) of one sequence, one kv head,
// splits [split_begin, split_end) of kSplitTokens positions each. Positions before shared_end, a multiple of
// kChunkTokens, were computed by shared units: the unit goes on from the states they left. 0: it computes all.
struct AttentionUnit {
  int64_t sequence, kv_head, token_begin, token_end, split_begin, split_end, shared_end = 0;
};

// A row of a shared unit: a query token and which of the heads that share the unit's kv head.
struct SharedRow {
  int32_t token, head;
};

// Positions [begin, end) of one split, whole chunks, of one kv head, for rows of several sequences that have the
// same blocks there: each key and value is loaded once for all of them. Every row's position is end or later.
struct SharedUnit {
  int64_t sequence;  // any of theirs: whose block table is read
  int64_t kv_head, split, begin, end;
  const SharedRow* rows;
  int count;  // at most kUnitRows
};

// Most rows (query tokens x heads that share a kv head) of one unit: their probabilities and sums stay in L1/L2.
constexpr int kUnitRows = 32;
constexpr int kMaxHeadSize = 512;

// One thread's working memory for attention.
struct AttentionScratch {
  alignas(64) float scores[kUnitRows * kChunkTokens];
  alignas(64) uint8_t bytes[kUnitRows * kChunkTokens];  // probabilities as u8 (int8 cache)
  alignas(64) float sums[kUnitRows * kMaxHeadSize];     // of the current split
  // Per row, worked on 16 at a time: running maximum and sum of the split; of the present chunk its maximum, its
  // sum, its largest weighted probability (int8); what to multiply the sums so far and the chunk's with.
  alignas(64) float most[kUnitRows], total[kUnitRows], here[kUnitRows], sum[kUnitRows], top[kUnitRows];
  alignas(64) float factor[kUnitRows], decay[kUnitRows];
  alignas(64) float lanes[kUnitRows * 16], top_lanes[kUnitRows * 16];  // what becomes a maximum or sum of each row
  int32_t flat[kUnitRows], position[kUnitRows];  // of each row: its index into [T][heads], its token's position
};

// Of a row of logits: places, -1 for none, and shares of the distribution.
struct Likeliest {
  int32_t first = -1, second = -1;
  float share = 0, second_share = 0;
};

struct KernelTable {
  const char* name;
  void (*rms_norm)(const float*, const float*, int64_t, float, float*, int64_t, int64_t);
  void (*rms_norm_add)(const float*, const float*, const float*, int64_t, float, float*, int64_t, int64_t);
  void (*rms_norm_quantise)(const float*, const float*, int64_t, float, const QuantisedRows&, int64_t, int64_t);
  void (*quantise_rows)(const float*, int64_t, const QuantisedRows&, int64_t, int64_t);
  void (*linear)(const LinearTask&, int64_t panel_begin, int64_t panel_end);
  void (*linear_gated)(const LinearTask&, int64_t pair_begin, int64_t pair_end);  // pairs of panels: 32 rows
  void (*gated_activation)(Activation, const float*, const float*, float*, int64_t, int64_t);
  void (*add_rows)(const float*, const float*, float*, int64_t, int64_t);
  void (*scale_rows)(const float*, float, float*, int64_t, int64_t);
  void (*softcap_rows)(const float*, float, float*, int64_t, int64_t);
  void (*rope)(const RopeTask&, const float* x, float* out, int64_t heads, int64_t begin, int64_t end);
  void (*store_keys)(const AttentionTask&, const float* k, const float* v, int64_t token, int64_t sequence);
  void (*prepare_queries)(const AttentionTask&, int64_t token_begin, int64_t token_end);
  // attend: splits of a unit merged in order into partials [rows][head_size + 2] (numbers, max, sum). `next` is the
  // unit this thread most likely takes next, or null: its first keys are fetched early.
  // finish: partials of the unit's splits, `stride` floats apart, merged in order, divided, written out.
  // attend_shared: one split's states of the unit's rows into task.shared_states.
  void (*attend)(const AttentionTask&, const AttentionUnit&, const AttentionUnit* next, float* partials, AttentionScratch&);
  void (*attend_shared)(const AttentionTask&, const SharedUnit&, const SharedUnit* next, AttentionScratch&);
  void (*finish)(const AttentionTask&, const AttentionUnit&, float* partials, int64_t stride, int64_t splits);
  void (*sample_row)(const SampleTask&, SampleOutput&, SampleScratch&);
  void (*likeliest)(const float* logits, int64_t n, Likeliest&);  // n: a multiple of 16
  uint64_t (*read_bytes)(const uint8_t*, int64_t bytes);
  uint64_t (*int8_dots)(int64_t rounds);  // 8 dots of 64 products a round
};

const KernelTable* scalar_table();
const KernelTable* avx2_table();
const KernelTable* avx512_table();
const KernelTable* neon_table();

// The best table this CPU can run, or the one STOKER_TARGET names (throws std::invalid_argument with the
// names this build and CPU offer).
const KernelTable* choose_table();
// Names of the tables this CPU can run, best first, separated by commas.
const char* available_targets();

}  // namespace stoker
