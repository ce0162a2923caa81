// A few threads that stay: they spin for a moment after their work, so that the next step finds them awake, then sleep.
//
// Work is one function that all active threads run; between its phases they meet at a barrier of flags, which costs a
// cache line's journey instead of a fork and a join.
//
// Where another program takes a core, the thread that shares it stops for a time slice (milliseconds) in the middle of
// a phase, and all others wait for it at the next barrier. So barriers add up long waits, and while these cost more
// than a thread is worth, the pool runs with one thread fewer, which leaves the core to the other program. Which thread
// computes what never changes a result.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
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
  explicit Pool(int n_threads) : n_threads(n_threads), n_active_(n_threads) {
    try {
      threads_.reserve(static_cast<size_t>(n_threads));
      for (int thread = 1; thread < n_threads; thread++) threads_.emplace_back([this, thread] { live(thread); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Pool() { stop(); }

  // Runs `work` on all active threads, the caller's among them; it must end with a barrier. Throws bad_alloc where a
  // thread `has_failed`.
  void run(Work work, void* argument) {
    std::lock_guard alone(running_);
    work_ = work;
    argument_ = argument;
    has_failed_.store(false, std::memory_order_relaxed);
    begin();
    {
      WithoutDenormals mode;
      work(argument, 0);
    }
    if (is_watching_ || waited_.load(std::memory_order_relaxed) > 0) adapt();
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

  // Threads that run the present work: 0, 1, ... n_active - 1.
  int n_active() const { return n_active_; }

  // Waits until every active thread has come here as often as this one. A long wait means that a thread was stopped,
  // unless the work is uneven.
  void barrier(int thread, bool is_even = true) {
    const int n_here = n_active_;  // the next run may have another number as soon as this thread has arrived
    int turn = arrived_[thread].value.load(std::memory_order_relaxed) + 1;
    arrived_[thread].value.store(turn, std::memory_order_release);
    for (int other = 0; other < n_here; other++)
      for (int spins = 0; arrived_[other].value.load(std::memory_order_acquire) - turn < 0; spins++) {
        relax();
        if (spins == LONG_SPINS) return wait_for_long(turn, n_here, is_even);
      }
  }

  const int n_threads;

 private:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  using Duration = Clock::duration;

  static constexpr int LONG_SPINS = 4000;  // about 0.1 ms, longer than the last unit of a matrix takes
  static constexpr int N_ACTIVE = 128;     // the lowest digit of `turn_`, to this base
  static constexpr std::chrono::microseconds SPIN{2000};
  static constexpr std::chrono::milliseconds WINDOW{40}, SHORTEST_PAUSE{20}, LONGEST_PAUSE{1600};

  void stop() {
    work_ = nullptr;
    n_active_ = n_threads, wakes_all_ = true;
    begin();
    for (std::thread& thread : threads_) thread.join();
  }

  void begin() {
    const int turn = turn_.value.load(std::memory_order_relaxed) / N_ACTIVE;
    turn_.value.store((turn + 1) % (INT_MAX / N_ACTIVE) * N_ACTIVE + n_active_);
    if (n_asleep_.load() > 0 || wakes_all_) turn_.value.notify_all();
    wakes_all_ = false;
  }

  void live(int thread) {
    WithoutDenormals mode;
    for (int turn = 0;;) {
      turn = await(thread, turn);
      if (work_ == nullptr) return;
      work_(argument_, thread);
    }
  }

  // The next turn in which this thread is active.
  int await(int thread, int turn) {
    const Time began = Clock::now();
    for (int spins = 1;; spins++) {
      const int next = turn_.value.load(std::memory_order_acquire);
      if (next != turn && thread < next % N_ACTIVE) return next;
      relax();
      if (next != turn) {
        turn = next;
        turn_.value.wait(turn);  // uncounted: until it is active again
      } else if (spins % 512 == 0 && Clock::now() - began > SPIN) {
        n_asleep_.fetch_add(1);
        turn_.value.wait(turn);
        n_asleep_.fetch_sub(1);
      }
    }
  }

  void wait_for_long(int turn, int n_here, bool is_even) {
    const Time began = Clock::now();
    for (int other = 0; other < n_here; other++)
      while (arrived_[other].value.load(std::memory_order_acquire) - turn < 0) sched_yield();  // to whom it waits for
    if (is_even) waited_.fetch_add((Clock::now() - began).count(), std::memory_order_relaxed);
  }

  // Between runs: one thread fewer where the others waited for longer than half of what it is worth, one more after a
  // pause, which grows as long as that turns out to be too early.
  void adapt() {
    const Time time = Clock::now();
    const Duration waited{waited_.load(std::memory_order_relaxed) / std::max(1, n_active_ - 1)};
    if (!is_watching_) is_watching_ = true, since_ = time - waited;
    const Duration watched = time - since_;
    if (waited > std::max<Duration>(watched, WINDOW) / (2 * n_active_)) {
      pause_ = time - resumed_ > LONGEST_PAUSE ? SHORTEST_PAUSE : std::min<Duration>(2 * pause_, LONGEST_PAUSE);
      resume_ = time + pause_;
      n_active_--;
    } else if (n_active_ < n_threads && time > resume_) {
      arrived_[n_active_].value.store(arrived_[0].value.load(std::memory_order_relaxed), std::memory_order_relaxed);
      resumed_ = time;
      n_active_++, wakes_all_ = true;
    } else if (watched < WINDOW) {
      return;
    } else if (n_active_ == n_threads) {
      is_watching_ = false;
    }
    waited_.store(0, std::memory_order_relaxed);
    since_ = time;
  }

  std::mutex running_;
  Flag turn_;
  Flag arrived_[MAX_THREADS];
  std::atomic<int> n_asleep_{0};
  std::atomic<bool> has_failed_{false};
  Work work_ = nullptr;
  void* argument_ = nullptr;
  int n_active_;                    // of the present work; changes between two
  std::atomic<int64_t> waited_{0};  // by all threads since `since_`, in steps of the clock
  bool is_watching_ = false;        // waits are looked at after every run
  bool wakes_all_ = false;          // the next run does, those that were not active among them
  Time since_, resume_, resumed_;   // of the waits; when a thread comes back; when one came back last
  Duration pause_ = SHORTEST_PAUSE;
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
