// stoker._native.SampleWorkspace: one call samples all rows of a step.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_table.h"
#include "sample.h"
#include "threads.h"

namespace nb = nanobind;

namespace stoker {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutMatrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Masks = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kMostTokens = 1 << 23;  // masses of 2^40 still sum below 2^63

void require(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("sample: ") + what);
}

bool within(int64_t start, int64_t count, size_t size) {
  return start >= 0 && count >= 0 && start <= (int64_t)size && count <= (int64_t)size - start;
}

// Working memory for every thread of one pool. One caller at a time, as for the pool itself.
class SampleWorkspace {
 public:
  explicit SampleWorkspace(ThreadPool& pool) : pool_(pool), table_(choose_table()), memory_(pool.threads()) {}
  SampleWorkspace(const SampleWorkspace&) = delete;  // nanobind would otherwise instantiate the vector's copy

  void sample(const Logits& logits, const nb::bytes& records, const Vector<int32_t>& bias_ids,
              const Vector<float>& bias_values, const Vector<int32_t>& banned_ids, const Vector<int32_t>& history,
              const Masks& masks, const OutVector<int32_t>& token_ids, const OutVector<float>& logprobs,
              const OutMatrix<int32_t>& top_ids, const OutMatrix<float>& top_logprobs) {
    const int64_t rows = (int64_t)logits.shape(0), vocabulary = (int64_t)logits.shape(1);
    const int64_t top_count = (int64_t)top_ids.shape(1);
    require(vocabulary >= 1 && vocabulary <= kMostTokens, "a row has 1 to 2^23 logits");
    require(logits.stride(1) == 1 || vocabulary == 1, "the logits of a row must be contiguous");
    require(records.size() == (size_t)rows * sizeof(SampleRecord), "one record of 104 bytes per row is wanted");
    require((int64_t)token_ids.shape(0) == rows && (int64_t)logprobs.shape(0) == rows, "outputs need one entry per row");
    require((int64_t)top_ids.shape(0) == rows && (int64_t)top_logprobs.shape(0) == rows &&
                (int64_t)top_logprobs.shape(1) == top_count,
            "the top outputs differ in shape");
    require(bias_ids.size() == bias_values.size(), "bias ids and values differ in number");
    require(masks.shape(0) == 0 || (int64_t)masks.shape(1) == (vocabulary + 31) / 32, "masks have one bit per token");
    for (const Vector<int32_t>* ids : {&bias_ids, &banned_ids, &history}) check_ids(*ids, vocabulary);

    std::vector<SampleTask> tasks((size_t)rows);
    for (int64_t r = 0; r < rows; ++r) {
      SampleTask& t = tasks[(size_t)r];
      const SampleRecord& p = t.record;
      std::memcpy(&t.record, records.c_str() + (size_t)r * sizeof(SampleRecord), sizeof(SampleRecord));
      require(within(p.bias_start, p.bias_count, bias_ids.size()), "a row's bias is out of range");
      require(within(p.banned_start, p.banned_count, banned_ids.size()), "a row's bans are out of range");
      require(within(p.history_start, p.history_count, history.size()), "a row's history is out of range");
      require(p.mask_row >= -1 && p.mask_row < (int64_t)masks.shape(0), "a row's mask is out of range");
      require(p.forced_token >= -1 && p.forced_token < vocabulary, "a forced token is out of range");
      require(p.top_logprobs <= top_count, "more top logprobs are asked for than the outputs hold");
      t.logits = logits.data() + r * logits.stride(0);
      t.vocabulary = vocabulary;
      t.bias_ids = bias_ids.data() + p.bias_start;
      t.bias_values = bias_values.data() + p.bias_start;
      t.banned_ids = banned_ids.data() + p.banned_start;
      t.history = history.data() + p.history_start;
      t.mask = p.mask_row < 0 ? nullptr : masks.data() + p.mask_row * (int64_t)masks.shape(1);
    }
    run(tasks, token_ids.data(), logprobs.data(), top_ids.data(), top_logprobs.data(), top_count);
  }

 private:
  void run(const std::vector<SampleTask>& tasks, int32_t* token_ids, float* logprobs, int32_t* top_ids,
           float* top_logprobs, int64_t top_count) {
    if (tasks.empty()) return;
    for (SampleMemory& memory : memory_) memory.reserve(tasks[0].vocabulary);  // may throw, so before the threads
    nb::gil_scoped_release released;
    pool_.run((int64_t)tasks.size(), 1, [&](int64_t begin, int64_t end, int thread) {
      SampleScratch& scratch = memory_[(size_t)thread].reserve(0);
      for (int64_t r = begin; r < end; ++r) {
        SampleOutput out{-1, 0.0f, top_ids + r * top_count, top_logprobs + r * top_count};
        table_->sample_row(tasks[(size_t)r], out, scratch);
        token_ids[r] = out.token;
        logprobs[r] = out.logprob;
      }
    });
  }

  static void check_ids(const Vector<int32_t>& ids, int64_t vocabulary) {
    for (size_t i = 0; i < ids.size(); ++i)
      require((uint64_t)(int64_t)ids.data()[i] < (uint64_t)vocabulary, "a token id is outside the vocabulary");
  }

  ThreadPool& pool_;
  const KernelTable* table_;
  std::vector<SampleMemory> memory_;
};

}  // namespace

void bind_sample(nb::module_& m) {
  nb::class_<SampleWorkspace>(m, "SampleWorkspace", "Working memory for sampling on one pool's threads.")
      .def(nb::init<ThreadPool&>(), nb::arg("pool"), nb::keep_alive<1, 2>())
      .def("sample", &SampleWorkspace::sample, nb::arg("logits"), nb::arg("records"), nb::arg("bias_ids"),
           nb::arg("bias_values"), nb::arg("banned_ids"), nb::arg("history"), nb::arg("masks"), nb::arg("token_ids"),
           nb::arg("logprobs"), nb::arg("top_ids"), nb::arg("top_logprobs"),
           "Sample every row of logits [R, V] into the outputs [R], [R], [R, K], [R, K]. records: R records of 104\n"
           "bytes (TASK in stoker/sampling/rows.py). Raises ValueError for ranges that do not fit.");
}

}  // namespace stoker
