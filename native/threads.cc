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
// A worker spins this long (about 0.2 ms) for the next job before it sleeps: longer than the gaps inside a
// step and between two decode steps, short enough to leave an idle machine alone.
constexpr int kSpinsBeforeSleep = 6000;
// The caller yields its core after this many spins without progress: the worker it waits for may need it.
constexpr int kSpinsBeforeYield = 4000;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > 256)
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; allowed are 1 to 256");
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
  ticket_.fetch_add((uint64_t)1 << 40);
  ticket_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::publish(int64_t chunks) {
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 40) + 1;
  ticket_.store(job << 40 | (uint64_t)chunks, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) ticket_.notify_all();
  while (take_chunk(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != chunks; ++spins) {
    if (spins < kSpinsBeforeYield) pause_cpu();
    else std::this_thread::yield();
  }
}

bool ThreadPool::take_chunk(int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = ticket >> 20 & kFieldMask, chunks = ticket & kFieldMask;
    if (next >= chunks) return false;
    if (ticket_.compare_exchange_weak(ticket, ticket + (1 << 20), std::memory_order_acq_rel)) {
      // This job cannot finish before this chunk does: call_, context_, count_ and grain_ stay.
      const int64_t begin = (int64_t)next * grain_, end = begin + grain_ < count_ ? begin + grain_ : count_;
      call_(context_, begin, end, thread);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

void ThreadPool::work_loop(int thread) {
  uint64_t seen = ticket_.load(std::memory_order_acquire);
  while (!stopping_.load(std::memory_order_relaxed)) {
    while (take_chunk(thread)) {
    }
    seen = ticket_.load(std::memory_order_acquire);
    if ((seen >> 20 & kFieldMask) < (seen & kFieldMask)) continue;
    // stop() sets stopping_ before it changes the ticket: a ticket read after that change must not be waited on.
    if (stopping_.load(std::memory_order_acquire)) return;
    int spins = 0;
    while (ticket_.load(std::memory_order_acquire) == seen && spins < kSpinsBeforeSleep) {
      pause_cpu();
      ++spins;
    }
    if (spins < kSpinsBeforeSleep) continue;
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    ticket_.wait(seen, std::memory_order_seq_cst);
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace stoker
