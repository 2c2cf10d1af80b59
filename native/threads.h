// The thread pool: workers that take chunks of one job at a time. The caller is thread 0 and works too.
// Work is split by rows, heads and fixed KV chunks, so which thread takes what changes no bit.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
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
  // ticket_ = job number (24 bits) | next chunk (20) | chunks (20). Taking a chunk is one compare-exchange that
  // fails once the job is over, so a worker that wakes late never touches a finished job, and nobody waits for it.
  static constexpr int64_t kMostChunks = (1 << 20) - 1;
  void stop();
  void publish(int64_t chunks);
  bool take_chunk(int thread);
  void work_loop(int thread);

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  void (*call_)(void*, int64_t, int64_t, int) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, grain_ = 1;
};

}  // namespace stoker
