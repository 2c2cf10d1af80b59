// The thread pool: workers that take chunks of one job at a time. The caller is thread 0 and works too. Each thread
// has a share of neighbouring chunks, so that what it fetches ahead is what it reads next, and then helps others.
// Work is split by rows, heads and fixed KV chunks, so which thread takes what changes no bit.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace stoker {

class ThreadPool {
 public:
  // Throws std::invalid_argument unless 1 <= threads <= 256, std::system_error when the system has none left.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return (int)workers_.size() + 1; }

  // [begin, end) of a job of `count` in chunks of `grain` that a thread takes unless another one is done sooner.
  std::pair<int64_t, int64_t> share_of(int64_t count, int64_t grain, int thread) const {
    const int64_t chunks = (count + grain - 1) / grain;
    return {std::min(count, first_chunk(chunks, thread) * grain), std::min(count, first_chunk(chunks, thread + 1) * grain)};
  }

  // What a thread will read in a job to come: while it waits for others, it fetches that into its caches. An address
  // need not be valid any more when it does. For the caller of run().
  struct Memory {
    const uint8_t* begin = nullptr;
    int64_t bytes = 0;
  };
  using Reads = std::array<Memory, 2>;
  void will_read(int thread, const Reads& reads);

  // Calls work(begin, end, thread) for [0, count) in chunks of `grain`; returns when all are done.
  // One caller at a time; `work` must not throw.
  template <class Work>
  void run(int64_t count, int64_t grain, Work&& work) {
    if (count <= 0) return;
    if (grain * kMostChunks < count) grain = (count + kMostChunks - 1) / kMostChunks;
    if (workers_.empty() || count <= grain) {
      work((int64_t)0, count, 0);
      return;
    }
    call_ = [](void* context, int64_t begin, int64_t end, int thread) { (*(Work*)context)(begin, end, thread); };
    context_ = (void*)&work;
    count_ = count;
    grain_ = grain;
    publish((count + grain - 1) / grain);
  }

 private:
  // What is left of a share = job number (24 bits) | next chunk (20) | end (20): its thread takes from the front, others
  // from the back. Taking a chunk is one compare-exchange that fails once the job is over, so a worker that wakes late
  // never touches a finished job, and nobody waits for it.
  static constexpr int64_t kMostChunks = (1 << 20) - 1;
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };
  struct alignas(64) Ahead {  // written by the caller; a mix of two calls' numbers does no harm
    std::atomic<uint64_t> call{0};
    std::array<std::atomic<const uint8_t*>, std::tuple_size_v<Reads>> begin{};
    std::array<std::atomic<int64_t>, std::tuple_size_v<Reads>> bytes{};
  };
  struct alignas(64) Fetched {  // a thread's own
    uint64_t call = 0;
    Reads left;
  };
  int64_t first_chunk(int64_t chunks, int64_t thread) const { return chunks * thread / threads(); }
  void stop();
  void publish(int64_t chunks);
  bool take_chunk(int thread);
  int64_t take_from(Share& share, bool own);  // the chunk's number; -1 if none is left
  bool fetch_some(int thread);
  void work_loop(int thread);

  std::vector<Share> shares_;
  std::vector<Ahead> ahead_;
  std::vector<Fetched> fetched_;
  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint64_t> job_{0};  // number
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  void (*call_)(void*, int64_t, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
};

}  // namespace stoker
