#include "threads.h"

#include <stdexcept>
#include <string>

namespace stoker {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint64_t kFieldMask = (1 << 20) - 1;
constexpr int kJobShift = 40, kNextShift = 20;
constexpr int kLinesAtOnce = 4;  // between two looks at whether the wait is over
// A worker spins this long (about 0.2 ms) for the next job before it sleeps: longer than the gaps inside a
// step and between two decode steps, short enough to leave an idle machine alone.
constexpr int kSpinsBeforeSleep = 6000;
// The caller yields its core after this many spins without progress: the worker it waits for may need it.
constexpr int kSpinsBeforeYield = 4000;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > 256)
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; allowed are 1 to 256");
  shares_ = std::vector<Share>((size_t)threads);
  ahead_ = std::vector<Ahead>((size_t)threads);
  fetched_ = std::vector<Fetched>((size_t)threads);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work_loop(i); });
  } catch (...) {  // the system refused a thread: those that run must end before the vector goes
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true);
  job_.fetch_add(1);
  job_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::will_read(int thread, const Reads& reads) {
  Ahead& ahead = ahead_[(size_t)thread];
  for (size_t i = 0; i < reads.size(); ++i) {
    ahead.begin[i].store(reads[i].begin, std::memory_order_relaxed);
    ahead.bytes[i].store(reads[i].bytes, std::memory_order_relaxed);
  }
  ahead.call.store(ahead.call.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

// Fetches a few lines of what the thread will read; false if nothing is left of it.
bool ThreadPool::fetch_some(int thread) {
  const Ahead& ahead = ahead_[(size_t)thread];
  Fetched& fetched = fetched_[(size_t)thread];
  const uint64_t call = ahead.call.load(std::memory_order_acquire);
  if (call != fetched.call) {
    fetched.call = call;
    for (size_t i = 0; i < fetched.left.size(); ++i)
      fetched.left[i] = {ahead.begin[i].load(std::memory_order_relaxed), ahead.bytes[i].load(std::memory_order_relaxed)};
  }
  bool any = false;
  for (Memory& left : fetched.left)
    for (int line = 0; line < kLinesAtOnce && left.bytes > 0; ++line, any = true) {
      __builtin_prefetch(left.begin, 0, 2);
      left.begin += 64, left.bytes -= 64;
    }
  return any;
}

void ThreadPool::publish(int64_t chunks) {
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = job_.load(std::memory_order_relaxed) + 1;
  for (int t = threads() - 1; t >= 0; --t)
    shares_[(size_t)t].left.store(
        job << kJobShift | (uint64_t)first_chunk(chunks, t) << kNextShift | (uint64_t)first_chunk(chunks, t + 1),
        std::memory_order_release);
  job_.store(job, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) job_.notify_all();
  while (take_chunk(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != chunks;) {
    if (fetch_some(0)) continue;
    if (++spins < kSpinsBeforeYield) pause_cpu();
    else std::this_thread::yield();
  }
}

int64_t ThreadPool::take_from(Share& share, bool own) {
  uint64_t left = share.left.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = left >> kNextShift & kFieldMask, end = left & kFieldMask;
    if (next >= end) return -1;
    const uint64_t rest = own ? left + ((uint64_t)1 << kNextShift) : left - 1;
    if (share.left.compare_exchange_weak(left, rest, std::memory_order_acq_rel)) return (int64_t)(own ? next : end - 1);
  }
}

bool ThreadPool::take_chunk(int thread) {
  int64_t chunk = take_from(shares_[(size_t)thread], true);
  for (size_t other = 1; chunk < 0 && other < shares_.size(); ++other)
    chunk = take_from(shares_[((size_t)thread + other) % shares_.size()], false);
  if (chunk < 0) return false;
  // This job cannot finish before this chunk does: call_, context_, count_ and grain_ stay.
  const int64_t begin = chunk * grain_, end = begin + grain_ < count_ ? begin + grain_ : count_;
  call_(context_, begin, end, thread);
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::work_loop(int thread) {
  while (!stopping_.load(std::memory_order_relaxed)) {
    // Read before the chunks are: those of a later job may be taken as well, but none of a later job is missed.
    const uint64_t seen = job_.load(std::memory_order_acquire);
    while (take_chunk(thread)) {
    }
    // stop() sets stopping_ before it changes the job: a number read after that change must not be waited on.
    if (stopping_.load(std::memory_order_acquire)) return;
    int spins = 0;
    while (job_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep) {
      if (fetch_some(thread)) continue;
      pause_cpu();
      ++spins;
    }
    if (spins < kSpinsBeforeSleep) continue;
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    job_.wait(seen, std::memory_order_seq_cst);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace stoker
