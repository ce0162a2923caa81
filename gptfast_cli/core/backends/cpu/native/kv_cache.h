// The layout of the KV cache, and how keys and values are written.
//
// A row has a table of blocks, each with the keys and values of KEY_BLOCK tokens of several layers (PagedAttention,
// Kwon et al. 2023, arXiv:2309.06180). A block is [layers][kv_heads], for each head its keys and then its values:
//
//   keys, values  [KEY_BLOCK][head_dim]
//
// In int8 they are codes of a byte: a key has a scale for each channel, which the keys of a block share, and a value
// one for itself. backends/layer_cache.py says which keys are read as codes, and why. The layout is that of the
// kernels' reads:
//
//   keys    [KEY_BLOCK / 16][head_dim / 4][16][4]     with [head_dim] scales
//   values  [KEY_BLOCK / 4][head_dim][4]              with [KEY_BLOCK] scales
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
  int window;    // keys that a query sees, its own among them; 0: all
  float score_scale, score_softcap;
  bool operator==(const Heads& o) const {
    return n_heads == o.n_heads && n_kv_heads == o.n_kv_heads && head_dim == o.head_dim && is_bf16 == o.is_bf16 &&
           is_int8 == o.is_int8 && window == o.window && score_scale == o.score_scale &&
           score_softcap == o.score_softcap;
  }
  // The first position that a query sees.
  int first_key(int position) const { return window == 0 ? 0 : std::max(0, position - window + 1); }
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

// Keys and values of one head in one block of a row.
struct HeadBlock {
  uint8_t *keys, *values;            // [KEY_BLOCK][head_dim], or codes
  float *key_scales, *value_scales;  // of these
  uint8_t* recent_keys;              // [KEY_BLOCK][head_dim], as they were computed; of the last two blocks only
};

inline HeadBlock head_block(const Call& call, const Heads& h, int layer, int slot, int kv_head, int block) {
  const LayerKV& kv = call.kv[layer];
  uint8_t* memory = static_cast<uint8_t*>(kv.blocks[static_cast<size_t>(slot) * call.n_blocks + block]);
  memory += kv.layer_at + kv_head * kv.head_bytes;
  HeadBlock found{memory, memory + kv.values_at, nullptr, nullptr, nullptr};
  if (!h.is_int8) return found;
  found.key_scales = reinterpret_cast<float*>(memory + kv.key_scales_at);
  found.value_scales = reinterpret_cast<float*>(memory + kv.value_scales_at);
  const size_t recent = (static_cast<size_t>(slot) * h.n_kv_heads + kv_head) * 2 + block % 2;
  found.recent_keys =
      static_cast<uint8_t*>(kv.recent_keys) + recent * KEY_BLOCK * static_cast<size_t>(h.head_dim) * h.element();
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

// The value at a position within a block.
inline void quantize_value(const float* value, int head_dim, int position, const HeadBlock& to) {
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
inline void quantize_keys(const Heads& h, const HeadBlock& to) {
  const size_t row_bytes = static_cast<size_t>(h.head_dim) * h.element();
  for (int d = 0; d < h.head_dim; d += LANES) {
    Floats most = least();
    for (int key = 0; key < KEY_BLOCK; key++)
      most = max(most, abs(load_element(to.recent_keys + key * row_bytes, h.is_bf16, d)));
    store(to.key_scales + d, most / splat(127));
    const Floats steps = splat(127) / most;
    for (int key = 0; key < KEY_BLOCK; key++) {
      int8_t lanes[LANES];
      store_int8(lanes, to_ints(load_element(to.recent_keys + key * row_bytes, h.is_bf16, d) * steps));
      uint8_t* tile = to.keys + key / LANES * LANES * h.head_dim + key % LANES * QUAD;
      for (int i = 0; i < LANES; i += QUAD) memcpy(tile + (d + i) * LANES, lanes + i, QUAD);
    }
  }
}
