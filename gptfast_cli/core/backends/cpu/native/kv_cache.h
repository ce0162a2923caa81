// The layout of the KV cache, and how keys and values are written.
//
// In int8 they are codes of a byte: a key has a scale for each channel, which the KEY_BLOCK keys of a block share, and
// a value one for itself. backends/reference.py says which keys are read as codes, and why. The layout is
// that of the kernels' reads:
//
//   keys    [tokens / 16][head_dim / 4][16][4]     with [tokens / KEY_BLOCK][head_dim] scales
//   values  [tokens / 4][head_dim][4]              with [tokens] scales
#pragma once

#include <algorithm>

#include "abi.h"
#include "matrix.h"

constexpr int KEY_BLOCK = 128;
constexpr int QUAD = 4;
constexpr int MAX_HEAD_DIM = 256;

struct Heads {
  int n_heads, n_kv_heads, head_dim;
  bool is_bf16;  // elements of keys and values as they are computed, else float
  bool is_int8;  // they are kept as codes
  int group() const { return n_heads / n_kv_heads; }
  size_t element() const { return is_bf16 ? 2 : 4; }
  bool has_bf16_queries() const {
#if defined(GF_BF16)
    return is_bf16;
#else
    return false;
#endif
  }
};

// Keys and values of one head of one row of the cache.
struct KeyHead {
  uint8_t *keys, *values;            // [tokens][head_dim], or codes
  float *key_scales, *value_scales;  // of these
  uint8_t* recent_keys;              // [2 KEY_BLOCK][head_dim], as they were computed; position p at p % (2 KEY_BLOCK)
};

inline KeyHead key_head(const Call& call, const Heads& h, int layer, int slot, int kv_head) {
  const size_t head = static_cast<size_t>(slot) * h.n_kv_heads + kv_head, dim = static_cast<size_t>(h.head_dim);
  const size_t capacity = static_cast<size_t>(call.capacity);
  const size_t at = head * capacity * dim * (h.is_int8 ? 1 : h.element());
  KeyHead found{static_cast<uint8_t*>(call.keys[layer]) + at, static_cast<uint8_t*>(call.values[layer]) + at, nullptr,
                nullptr, nullptr};
  if (!h.is_int8) return found;
  found.key_scales = static_cast<float*>(call.key_scales[layer]) + head * (capacity / KEY_BLOCK) * dim;
  found.value_scales = static_cast<float*>(call.value_scales[layer]) + head * capacity;
  found.recent_keys = static_cast<uint8_t*>(call.recent_keys[layer]) + head * 2 * KEY_BLOCK * dim * h.element();
  return found;
}

inline Floats load_element(const uint8_t* row, bool is_bf16, int d) {
  return is_bf16 ? load_bf16(reinterpret_cast<const uint16_t*>(row) + d)
                 : load(reinterpret_cast<const float*>(row) + d);
}

inline void write_row(const float* from, int n, bool is_bf16, uint8_t* to) {
  for (int i = 0; i < n; i += LANES) {
    if (is_bf16) store_bf16(reinterpret_cast<uint16_t*>(to) + i, load(from + i));
    else store(reinterpret_cast<float*>(to) + i, load(from + i));
  }
}

// Lower bound of the largest element: scales stay large enough to divide by, smaller elements become 0.
inline Floats least() { return splat(1e-30f); }

// The value of a position.
inline void quantise_value(const float* value, int head_dim, int position, const KeyHead& to) {
  Floats most = least();
  for (int d = 0; d < head_dim; d += LANES) most = max(most, abs(load(value + d)));
  const float largest = maximum(most);
  to.value_scales[position] = largest / 127;
  const Floats steps = splat(127 / largest);
  uint8_t* codes = to.values + static_cast<size_t>(position / QUAD) * QUAD * head_dim + position % QUAD;
  for (int d = 0; d < head_dim; d += LANES) {
    int8_t lanes[LANES];
    store_int8(lanes, to_ints(load(value + d) * steps));
    for (int i = 0; i < LANES; i++) codes[QUAD * (d + i)] = static_cast<uint8_t>(lanes[i]);
  }
}

// The keys of a block that is whole now.
inline void quantise_keys(const Heads& h, int block, const KeyHead& to) {
  const size_t row_bytes = static_cast<size_t>(h.head_dim) * h.element();
  const uint8_t* keys = to.recent_keys + block % 2 * KEY_BLOCK * row_bytes;
  float* scales = to.key_scales + static_cast<size_t>(block) * h.head_dim;
  uint8_t* codes = to.keys + static_cast<size_t>(block) * KEY_BLOCK * h.head_dim;
  for (int d = 0; d < h.head_dim; d += LANES) {
    Floats most = least();
    for (int key = 0; key < KEY_BLOCK; key++) most = max(most, abs(load_element(keys + key * row_bytes, h.is_bf16, d)));
    store(scales + d, most / splat(127));
    const Floats steps = splat(127) / most;
    for (int key = 0; key < KEY_BLOCK; key++) {
      int8_t lanes[LANES];
      store_int8(lanes, to_ints(load_element(keys + key * row_bytes, h.is_bf16, d) * steps));
      uint8_t* tile = codes + key / LANES * LANES * h.head_dim + key % LANES * QUAD;
      for (int i = 0; i < LANES; i += QUAD) memcpy(tile + (d + i) * LANES, lanes + i, QUAD);
    }
  }
}
