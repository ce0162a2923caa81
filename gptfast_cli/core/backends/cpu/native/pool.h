// Pool of persistent threads: after a run they spin for 2 ms, so that the next step starts at once, then sleep.
//
// A run is one function that all active threads execute; its phases are separated by a barrier of per-thread flags,
// which costs one cache-line transfer instead of a fork and a join.
//
// If another program uses a core, the thread on that core is descheduled for a time slice (milliseconds) in the middle
// of a phase, and all others wait for it at the next barrier. So the pool sums long barrier waits, and while they cost
// more than a thread contributes, it runs with one thread fewer and leaves the core to the other program. Results
// depend neither on the number of threads nor on which thread computes what.
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

// A counter on its own cache line (no false sharing).
struct alignas(64) Flag {
  std::atomic<int> value{0};
};

// Sets flush-to-zero and denormals-are-zero (MXCSR) for its lifetime: denormals cost about 100 cycles each.
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

  // Throws system_error if a thread cannot be started.
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

  // Runs `work` on all active threads, including the caller's; it must end with a barrier. Throws bad_alloc if an
  // attempt of any thread failed.
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

  // Runs a part of the work that may throw bad_alloc: the thread must reach the next barrier anyway.
  template <class Part>
  void attempt(const Part& part) noexcept {
    try {
      part();
    } catch (...) {
      has_failed_.store(true, std::memory_order_relaxed);
    }
  }

  // Whether an attempt of any thread failed; valid after a barrier.
  bool has_failed() const { return has_failed_.load(std::memory_order_relaxed); }

  // Number of threads in the current run: threads 0 ... n_active - 1.
  int n_active() const { return n_active_; }

  // Waits until every active thread has arrived as often as this one. If the work is even, a long wait means that a
  // thread was descheduled.
  void barrier(int thread, bool is_even = true) {
    const int n_here = n_active_;  // read before arriving: the next run may change it
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

  static constexpr int LONG_SPINS = 4000;  // about 0.1 ms, longer than one unit of a matrix takes
  static constexpr int N_ACTIVE = 128;     // turn_ = counter * N_ACTIVE + number of active threads
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

  // Waits for the next turn in which this thread is active, and returns it.
  int await(int thread, int turn) {
    const Time began = Clock::now();
    for (int spins = 1;; spins++) {
      const int next = turn_.value.load(std::memory_order_acquire);
      if (next != turn && thread < next % N_ACTIVE) return next;
      relax();
      if (next != turn) {
        turn = next;
        turn_.value.wait(turn);  // not counted as asleep: begin() need not wake an inactive thread
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
      while (arrived_[other].value.load(std::memory_order_acquire) - turn < 0) sched_yield();  // may need this core
    if (is_even) waited_.fetch_add((Clock::now() - began).count(), std::memory_order_relaxed);
  }

  // Between runs: remove a thread if the mean wait of the others exceeds watched time / (2 * n_active), half of what a
  // thread contributes; add one after a pause, which doubles each time that proves to be too early.
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
  int n_active_;                    // of the current run; changes between runs
  std::atomic<int64_t> waited_{0};  // long waits of all threads since `since_`, in clock ticks
  bool is_watching_ = false;        // call adapt() after every run
  bool wakes_all_ = false;          // the next run wakes all threads, including inactive ones
  Time since_, resume_, resumed_;   // start of the waits; next and last addition of a thread
  Duration pause_ = SHORTEST_PAUSE;
  std::vector<std::thread> threads_;
};

// The pool shared by all engines with this number of threads: two spinning pools would compete for the cores.
inline std::shared_ptr<Pool> shared_pool(int n_threads) {
  static std::mutex alone;
  static std::map<int, std::weak_ptr<Pool>> pools;
  std::lock_guard lock(alone);
  std::shared_ptr<Pool> pool = pools[n_threads].lock();
  if (pool == nullptr) pools[n_threads] = pool = std::make_shared<Pool>(n_threads);
  return pool;
}
