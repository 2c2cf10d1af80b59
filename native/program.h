// A lowered model: steps over numbered buffers, run in order on the thread pool for one batch at a time.
// Python (src/stoker/kernels/native.py) lowers a Program of ops to these steps, fusing on the way; the core
// only executes. Every step works on rows (tokens), panels, or (sequence, head, split) units.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include "kernel_table.h"
#include "memory.h"
#include "shared_prefix.h"
#include "threads.h"

namespace stoker {

enum class Rows { tokens, logits, hidden };  // what a buffer has one row for, or a step works on

// One batch, as kernels/program.py describes it. Borrowed for the length of a run.
struct BatchView {
  int64_t tokens, sequences, table_stride, rows;
  const int32_t *token_ids, *positions, *query_start, *kv_tokens, *block_tables, *logit_rows;
  int64_t hidden = 0;
  const int32_t* hidden_rows = nullptr;
  // [copies][2], ascending: a token, and a sequence in whose blocks its key and value are stored as well
  int64_t copies = 0;
  const int32_t* kv_copies = nullptr;

  int64_t count(Rows of) const { return of == Rows::tokens ? tokens : of == Rows::logits ? rows : hidden; }
};

using Matrix = std::shared_ptr<const PackedMatrix>;

// Buffers are named by the numbers that float_buffer() and quantised_buffer() gave; -1 means none.
struct EmbedStep {
  int out;
  Matrix table;
  float scale;
};
struct InputStep {  // rows that the caller gave with set_input
  int out;
};
struct NormStep {  // out = norm(x), or residual + norm(x), per group of `width` columns; as floats or quantised
  int x, residual, out, out_quantised;
  std::vector<float> weight;
  float eps;
  int64_t groups;  // heads per row for per-head norms, else 1
  std::vector<int32_t> outliers;  // columns kept out of the int8 groups; chosen by calibrate()
};
struct QuantiseStep {
  int x, out;
};
struct LinearPart {
  Matrix weight;
  int out;
  std::vector<float> bias;  // empty: none
  bool add;
  std::vector<float> outlier_weights;  // [panels][outliers of x][16]
};
struct LinearStep {  // parts share their input: quantised x, or float x for float weights
  int x, x_quantised;
  std::vector<LinearPart> parts;
  int outliers = 0;  // of the norm that writes x_quantised
};
struct GatedLinearStep {
  int x_quantised, out_quantised;
  Matrix gate, up;
  Activation activation;
  std::vector<float> gate_outlier_weights, up_outlier_weights;
  int outliers = 0;  // of the norm that writes x_quantised
};
struct GatedStep {
  int gate, up, out;
  Activation activation;
};
struct RopeStep {
  int x, out, table;
  int heads, head_size;
};
struct AttentionStep {
  int q, k, v, out, out_quantised;
  int layer, heads, kv_heads, head_size;
  float scale, softcap;
  int64_t window;
};
struct AddStep {
  int a, b, out;
};
struct ScaleStep {
  int x, out;
  float factor;
};
struct SoftcapStep {
  int x, out;
  float cap;
};
struct SelectStep {  // from here on one row per logit row, or per row whose hidden state is wanted
  int x, out;
  Rows rows = Rows::logits;
};
using Step = std::variant<EmbedStep, InputStep, NormStep, QuantiseStep, LinearStep, GatedLinearStep, GatedStep, RopeStep,
                          AttentionStep, AddStep, ScaleStep, SoftcapStep, SelectStep>;

// Angles of one rotary embedding; cosines and signed sines for a batch are computed once per run.
struct RopeTable {
  int rotary;
  bool interleaved;
  std::vector<float> frequency;  // [rotary / 2], radians per position
  std::vector<float> cosine, sine;  // [tokens][rotary], written by each run
};

class Program {
 public:
  // `pool` and `cache` outlive the program. max_tokens bounds the tokens, max_rows the logit rows of one run.
  Program(ThreadPool& pool, KvCache& cache, const KernelTable& kernels, int64_t max_tokens)
      : pool_(pool), cache_(cache), kernels_(kernels), max_tokens_(max_tokens), scratch_((size_t)pool.threads()) {}

  int float_buffer(int64_t width, Rows rows);
  int quantised_buffer(int64_t columns, Rows rows);
  int rope_table(int rotary, bool interleaved, std::vector<float> frequency);
  void add(Step step);
  // What the next run's InputStep hands on: a row of floats for each of its tokens; copied.
  void set_input(const float* rows, int64_t count, int64_t width);
  // One float buffer of Rows::hidden or several, whose rows run() lays side by side.
  void return_hidden(int buffer) { hidden_.push_back(buffer); }

  // Runs the batch and chooses, for each norm whose result is quantised, the columns that coarsen their groups
  // most: up to `most` per norm. Once, before the first run; see calibrate.cc.
  void calibrate(const BatchView& batch, int most);

  // Runs every step; returns the last step's float buffer, [batch.rows][width], valid until the next run.
  const float* run(const BatchView& batch);
  // Of the last run, [batch.hidden][width], valid until the next; null and 0 of a program without hidden states.
  const float* hidden() { return hidden_.size() == 1 ? floats(hidden_[0]) : hidden_rows_.data(); }
  int64_t output_width() const { return floats_[(size_t)output_].width; }
  int64_t hidden_width(size_t buffers = SIZE_MAX) const {  // of the first ones, at most so many
    int64_t width = 0;
    for (size_t i = 0; i < hidden_.size() && i < buffers; ++i) width += floats_[(size_t)hidden_[i]].width;
    return width;
  }
  int64_t buffer_bytes() const;
  int64_t max_tokens() const { return max_tokens_; }
  const KernelTable& kernels() const { return kernels_; }

 private:
  friend struct StepRunner;
  struct FloatBuffer {
    int64_t width;
    Rows rows;
    GrowingArray<float> data;
  };
  struct QuantisedBuffer {
    int64_t columns;
    Rows rows;
    GrowingArray<int8_t> q;
    GrowingArray<float> scale, scaled_sum;
    GrowingArray<int32_t> sum, half_sum;
    GrowingArray<float> outlier_values; // [tokens][outliers of the norm that wrote the buffer last]
  };
  struct UnitPlan {  // attention work of one batch for layers of one shape
    int kv_heads = 0, group = 0, head_size = 0;
    int64_t window = -1;
    std::vector<AttentionUnit> units;
    bool split = false;        // units hold one split each; `owners` join them
    std::vector<AttentionUnit> owners;
    std::vector<int64_t> owner_first, owner_parts;  // index of an owner's first unit, how many it has
    std::vector<SharedUnit> shared;       // before the units: what several sequences' rows have in common
    std::vector<SharedRow> shared_rows;   // theirs
    std::vector<int32_t> shared_slot;     // [T], see AttentionTask

    bool suits(const AttentionStep& s) const {
      return kv_heads == s.kv_heads && group == s.heads / s.kv_heads && head_size == s.head_size && window == s.window;
    }
  };

  float* floats(int buffer) { return buffer < 0 ? nullptr : floats_[(size_t)buffer].data.data(); }
  // A writer gives its outlier columns, a reader only their number.
  QuantisedRows quantised(int buffer, int outliers = 0, const int32_t* columns = nullptr);
  int64_t partial_floats(int head_size) const { return (int64_t)kUnitRows * (head_size + 2); }
  void prepare(const BatchView& batch);
  void make_rope_tables(const BatchView& batch);
  void plan_units(const BatchView& batch, const AttentionStep& step);
  int64_t unit_tokens(const BatchView& batch, const AttentionStep& step) const;
  struct SharedRows {  // of one group of sequences
    const SharedPrefixes::Group* group;
    int64_t begin, first, last;  // from which position the first of them sees; range of plan.shared_rows
  };
  int64_t collect_shared_rows(const BatchView& batch, const AttentionStep& step, UnitPlan& plan, std::vector<SharedRows>& all);
  void plan_shared(const BatchView& batch, const AttentionStep& step, UnitPlan& plan);
  const UnitPlan& plan_of(const AttentionStep& step) const;
  // One new token of each of many sequences, none of which reads another's: a row's own unit needs no other row of
  // the batch.
  bool decodes_together(const BatchView& batch, const AttentionStep& step) const;
  bool shares(const AttentionStep& step) const;  // some rows of the batch are computed in shared units
  int64_t rows_per_chunk(int64_t tokens) const;
  size_t run_by_rows(const BatchView& batch, size_t first, int64_t chunk);
  void join_hidden(int64_t rows);
  // Chunks so that each thread gets several (the cores are not equally free), but no more than needed.
  int64_t grain_for(int64_t count) const { return std::clamp<int64_t>(count / (pool_.threads() * 6), 1, 32); }
  void find_reads();
  ThreadPool::Reads reads_of(const Step& step, int thread) const;
  void announce_reads(size_t place);
  void run_watched(const BatchView& batch, const std::function<void(Step&, int64_t rows)>& before);

  ThreadPool& pool_;
  KvCache& cache_;
  const KernelTable& kernels_;
  int64_t max_tokens_;
  std::vector<Step> steps_;
  // [steps][threads] what a thread reads first in the next linear layer after a step; empty for one thread
  std::vector<std::vector<ThreadPool::Reads>> reads_after_;
  int output_ = -1;           // float buffer of the last step
  std::vector<int> hidden_;
  GrowingArray<float> hidden_rows_;  // of several buffers
  size_t most_outliers_ = 0;  // of any norm
  std::vector<FloatBuffer> floats_;
  std::vector<QuantisedBuffer> quantised_;
  std::vector<RopeTable> ropes_;
  bool reads_step_ = false;      // some sequence of the present batch reads what another one of it writes
  SharedPrefixes prefixes_;      // of the present batch
  std::vector<UnitPlan> plans_;  // of the present batch
  GrowingArray<float> input_;
  int64_t input_rows_ = 0, input_width_ = 0;
  GrowingArray<float> partials_, shared_states_;
  GrowingArray<int8_t> q_int8_;
  GrowingArray<float> q_scale_;
  GrowingArray<int32_t> q_sum_;
  std::vector<AttentionScratch> scratch_;  // one per thread
};

// cos and sin of angle[i] = position * frequency[i] in float32, from double arithmetic of our own (no libm, whose
// results differ between machines): cosine and signed sine per column, [rotary] each.
void rope_row(const RopeTable& table, int32_t position, float* cosine, float* sine);
// base^(-2i/rotary) for i < rotary/2, rounded to float32, by the same own arithmetic.
std::vector<float> rope_frequencies(double base, int rotary);

}  // namespace stoker
