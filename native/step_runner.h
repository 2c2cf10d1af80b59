// Runs the steps of a Program over a range of a batch's rows: with the whole pool, or as one thread of it that takes
// its rows through many steps without waiting for the others.
#pragma once
#include <algorithm>

#include "program.h"

namespace stoker {

struct StepRunner {
  static constexpr int kWholePool = -1;

  Program& p;
  const BatchView& batch;
  int64_t begin, end;       // rows: tokens, or those that a SelectStep chose; begin is a multiple of 16
  int thread = kWholePool;  // the one thread that runs every step, by its number in the pool

  void operator()(const EmbedStep& s);
  void operator()(const InputStep& s);
  void operator()(const NormStep& s);
  void operator()(const QuantiseStep& s);
  void operator()(const LinearStep& s);
  void operator()(const GatedLinearStep& s);
  void operator()(const GatedStep& s);
  void operator()(const RopeStep& s);
  void operator()(const AttentionStep& s);
  void operator()(const AddStep& s);
  void operator()(const ScaleStep& s);
  void operator()(const SoftcapStep& s);
  void operator()(const SelectStep& s);

  // An AttentionStep in three parts, for when not all rows are one runner's: every key and value of the batch is
  // stored before anything attends, and what is shared is attended to before a row's own.
  void store_keys(const AttentionStep& s);
  void attend_shared(const AttentionStep& s);  // whole pool only
  void attend_own(const AttentionStep& s);     // whole pool, or the rows of a batch that decodes together

 private:
  const KernelTable& k() { return p.kernels_; }
  int64_t rows() const { return end - begin; }
  int64_t width(int buffer) { return p.floats_[(size_t)buffer].width; }
  QuantisedRows written(int buffer, int outliers, const int32_t* columns);  // all rows, to write this runner's
  QuantisedRows own_rows(int buffer, int outliers = 0);                     // this runner's rows as rows of their own
  AttentionTask task_of(const AttentionStep& s);
  void decode(const AttentionStep& s, bool store);
  void decode_sequences(const AttentionTask& task, const Program::UnitPlan& plan, const float* keys, const float* values,
                        int64_t first, int64_t last, int thread);
  void attend_owners(const AttentionTask& task, const Program::UnitPlan& plan);
  void attend_splits(const AttentionTask& task, const Program::UnitPlan& plan);

  // work(begin, end, thread) over [0, count): in chunks on the pool, or here and at once.
  template <class Work>
  void spread(int64_t count, int64_t grain, Work&& work) {
    if (thread == kWholePool) p.pool_.run(count, grain, std::forward<Work>(work));
    else work((int64_t)0, count, thread);
  }
  int64_t grain_for(int64_t count) const { return p.grain_for(count); }
  // work(begin, end) over this runner's rows.
  template <class Work>
  void over_rows(int64_t least_grain, Work&& work) {
    spread(rows(), std::max(least_grain, grain_for(rows())), [&](int64_t b, int64_t e, int) { work(begin + b, begin + e); });
  }
};

}  // namespace stoker
