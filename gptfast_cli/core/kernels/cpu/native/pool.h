// A few threads that stay: they spin for a moment after their work, so that the next step finds them awake, then sleep.
//
// Work is one function that all threads run; between its phases they meet at a barrier of flags, which costs a cache
// line's journey instead of a fork and a join.
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "simd.h"

constexpr int MAX_THREADS = 64;

GF_INLINE void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A counter on a cache line of its own.
struct alignas(64) Flag {
  std::atomic<int> value{0};
};

// Denormal numbers cost a hundred cycles each and change nothing that matters: they count as 0 while this lives.
struct WithoutDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  WithoutDenormals() { _mm_setcsr(before | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(before); }
#endif
};

class Pool {
 public:
  using Work = void (*)(void* argument, int thread);

  // Throws system_error where the system starts no more threads.
  explicit Pool(int n_threads) : n_threads(n_threads) {
    try {
      threads_.reserve(static_cast<size_t>(n_threads));
      for (int thread = 1; thread < n_threads; thread++) threads_.emplace_back([this, thread] { live(thread); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Pool() { stop(); }

  // Runs `work` on all threads, the caller's among them; it must end with a barrier. Throws bad_alloc where a thread
  // `has_failed`.
  void run(Work work, void* argument) {
    std::lock_guard alone(running_);
    work_ = work;
    argument_ = argument;
    has_failed_.store(false, std::memory_order_relaxed);
    begin();
    WithoutDenormals mode;
    work(argument, 0);
    if (has_failed()) throw std::bad_alloc();
  }

  // Does a part of a thread's work that may run out of memory: what is thrown must not keep it from the next barrier.
  template <class Part>
  void attempt(const Part& part) noexcept {
    try {
      part();
    } catch (...) {
      has_failed_.store(true, std::memory_order_relaxed);
    }
  }

  // Whether an attempt has failed, of any thread before a barrier.
  bool has_failed() const { return has_failed_.load(std::memory_order_relaxed); }

  // Waits until every thread has come here as often as this one.
  void barrier(int thread) {
    int turn = arrived_[thread].value.load(std::memory_order_relaxed) + 1;
    arrived_[thread].value.store(turn, std::memory_order_release);
    for (int other = 0; other < n_threads; other++)
      for (int spins = 0; arrived_[other].value.load(std::memory_order_acquire) - turn < 0; spins++) {
        relax();
        if (spins > 4000) sched_yield();  // more threads than processors
      }
  }

  const int n_threads;

 private:
  static constexpr std::chrono::microseconds SPIN{2000};

  void stop() {
    work_ = nullptr;
    begin();
    for (std::thread& thread : threads_) thread.join();
  }

  void begin() {
    turn_.value.fetch_add(1);
    if (n_asleep_.load() > 0) turn_.value.notify_all();
  }

  void live(int thread) {
    WithoutDenormals mode;
    for (int turn = 0;; turn++) {
      await(turn);
      if (work_ == nullptr) return;
      work_(argument_, thread);
    }
  }

  void await(int turn) {
    auto began = std::chrono::steady_clock::now();
    for (int spins = 1; turn_.value.load(std::memory_order_acquire) == turn; spins++) {
      relax();
      if (spins % 512 == 0 && std::chrono::steady_clock::now() - began > SPIN) {
        n_asleep_.fetch_add(1);
        turn_.value.wait(turn);
        n_asleep_.fetch_sub(1);
      }
    }
  }

  std::mutex running_;
  Flag turn_;
  Flag arrived_[MAX_THREADS];
  std::atomic<int> n_asleep_{0};
  std::atomic<bool> has_failed_{false};
  Work work_ = nullptr;
  void* argument_ = nullptr;
  std::vector<std::thread> threads_;
};

// The threads of all engines that want so many: two sets, both spinning, would be in each other's way.
inline std::shared_ptr<Pool> shared_pool(int n_threads) {
  static std::mutex alone;
  static std::map<int, std::weak_ptr<Pool>> pools;
  std::lock_guard lock(alone);
  std::shared_ptr<Pool> pool = pools[n_threads].lock();
  if (pool == nullptr) pools[n_threads] = pool = std::make_shared<Pool>(n_threads);
  return pool;
}
