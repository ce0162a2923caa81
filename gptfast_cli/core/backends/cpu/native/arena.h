// Memory for what lives as long as an engine.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "matrix.h"

// Bump allocator over huge pages (fewer TLB misses), mapped in large pieces; pages that are never written take no
// memory.
class Arena {
 public:
  ~Arena() {
    for (auto& [memory, n_bytes] : pieces_) munmap(memory, n_bytes);
  }

  // Cache-line aligned memory, with PREFETCH readable bytes after it; null if the system has none.
  uint8_t* take(size_t n_bytes) {
    const size_t whole = (n_bytes + PREFETCH + 63) & ~size_t{63};
    if (whole > left_ && !add_piece(whole)) return nullptr;
    uint8_t* taken = next_;
    next_ += whole, left_ -= whole;
    return taken;
  }

 private:
  static constexpr size_t HUGE_PAGE = 2 << 20, PIECE = size_t{256} << 20;

  bool add_piece(size_t n_bytes) {
    return add(std::max(n_bytes, PIECE)) || add(n_bytes);  // a process may be allowed no large piece
  }

  bool add(size_t n_bytes) {
    const size_t whole = (n_bytes + 2 * HUGE_PAGE) & ~(HUGE_PAGE - 1);
    pieces_.reserve(pieces_.size() + 1);  // what is thrown later would leave the memory to nobody
    void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
#if defined(MADV_HUGEPAGE)
    madvise(memory, whole, MADV_HUGEPAGE);
#endif
    pieces_.emplace_back(memory, whole);
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory) + HUGE_PAGE - 1) & ~uintptr_t{HUGE_PAGE - 1};
    next_ = reinterpret_cast<uint8_t*>(at);
    left_ = whole - (at - reinterpret_cast<uintptr_t>(memory));
    return true;
  }

  std::vector<std::pair<void*, size_t>> pieces_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
};

// Floats on whole cache lines, 0 at first.
struct Buffer {
  float* data = nullptr;
  Buffer() = default;
  explicit Buffer(size_t n) { renew(n); }
  ~Buffer() { free(data); }

  // Others in place of those that it holds; throws bad_alloc, and then it holds none.
  void renew(size_t n) {
    free(data);
    data = static_cast<float*>(aligned_alloc(64, (n * sizeof(float) + 127) & ~size_t{63}));
    if (data == nullptr) throw std::bad_alloc();
    memset(data, 0, n * sizeof(float));
  }

  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};
