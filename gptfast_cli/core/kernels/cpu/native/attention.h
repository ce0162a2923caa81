// Causal attention over the cache, online: chunk by chunk of the keys, each with its own maximum (arXiv:1805.02867).
//
// Queries that share a key head, those of its group and of neighbouring tokens, are answered together, so that keys and
// values are read once for all of them. What a query adds up, and in which order, depends on its own position alone.
#pragma once

#include <algorithm>

#include "matrix.h"
#include "turn.h"

constexpr int CHUNK = 256;   // keys
constexpr int QUERIES = 40;  // answered together, at most: five tokens of eight heads
constexpr int MAX_HEAD_DIM = 256;

// Keys or values of a layer, [rows][heads][tokens][head_dim]; strides count elements.
struct Store {
  void* data;
  size_t row_stride, head_stride, token_stride;
};

struct Heads {
  int n_heads, n_kv_heads, head_dim;
  bool is_bf16;  // elements of the cache, else float
  int group() const { return n_heads / n_kv_heads; }
  bool has_bf16_queries() const {
#if defined(GF_BF16)
    return is_bf16;
#else
    return false;
#endif
  }
};

// Queries of one key head: their positions, and how far each has come.
struct Answers {
  int n = 0;
  const void* query[QUERIES];  // [head_dim], bfloat16 where the cache is and the machine multiplies that, else float
  int position[QUERIES];
  float largest[QUERIES];  // of the scores so far
  float total[QUERIES];    // of the weights, relative to it
  alignas(64) float value[QUERIES][MAX_HEAD_DIM];
};

struct Scratch {
  alignas(64) float scores[QUERIES][CHUNK];
  alignas(64) uint16_t weights[QUERIES][CHUNK];
  alignas(64) float tile[MAX_HEAD_DIM * LANES];  // 16 keys, turned: [head_dim][16], or pairs of bfloat16
};

// Scores of N queries and 16 turned keys.
template <int N>
static void score_floats(const Answers& a, int first, const float* tile, int head_dim, float (*scores)[CHUNK], int at) {
  Floats total[N];
  for (int i = 0; i < N; i++) total[i] = splat(0);
  for (int d = 0; d < head_dim; d++) {
    Floats keys = load(tile + d * LANES);
    for (int i = 0; i < N; i++) total[i] = fma(keys, splat(static_cast<const float*>(a.query[first + i])[d]), total[i]);
  }
  for (int i = 0; i < N; i++) store(scores[first + i] + at, total[i]);
}

#if defined(GF_BF16)
template <int N>
static void score_bfloats(const Answers& a, int first, const float* tile, int head_dim, float (*scores)[CHUNK],
                          int at) {
  __m512 total[N];
  for (int i = 0; i < N; i++) total[i] = _mm512_setzero_ps();
  for (int d = 0; d < head_dim / 2; d++) {
    __m512bh keys = (__m512bh)_mm512_load_si512(tile + d * LANES);
    for (int i = 0; i < N; i++) {
      int bits;
      memcpy(&bits, static_cast<const uint16_t*>(a.query[first + i]) + 2 * d, 4);
      total[i] = _mm512_dpbf16_ps(total[i], keys, (__m512bh)_mm512_set1_epi32(bits));
    }
  }
  for (int i = 0; i < N; i++) _mm512_store_ps(scores[first + i] + at, total[i]);
}
#endif

// Scores of all queries and the keys of a chunk; `ahead` is what will be read next, and is fetched in passing.
inline void score(const Answers& a, const Heads& h, const uint8_t* keys, const uint8_t* ahead, size_t token_bytes,
                  int n_keys, Scratch& s) {
  for (int at = 0; at < n_keys; at += LANES, keys += LANES * token_bytes, ahead += LANES * token_bytes) {
    for (size_t line = 0; line < LANES * token_bytes; line += 64) prefetch_near(ahead + line);
#if defined(GF_BF16)
    if (h.is_bf16) {
      turn(reinterpret_cast<const uint32_t*>(keys), token_bytes / 4, h.head_dim / 2,
           reinterpret_cast<uint32_t*>(s.tile));
      int i = 0;
      for (; i + 8 <= a.n; i += 8) score_bfloats<8>(a, i, s.tile, h.head_dim, s.scores, at);
      for (; i + 4 <= a.n; i += 4) score_bfloats<4>(a, i, s.tile, h.head_dim, s.scores, at);
      for (; i < a.n; i++) score_bfloats<1>(a, i, s.tile, h.head_dim, s.scores, at);
      continue;
    }
#endif
    if (h.is_bf16) {
      for (int key = 0; key < LANES; key++) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(keys + key * token_bytes);
        for (int d = 0; d < h.head_dim; d++) s.tile[d * LANES + key] = bf16_to_float(row[d]);
      }
    } else {
      turn(reinterpret_cast<const uint32_t*>(keys), token_bytes / 4, h.head_dim, reinterpret_cast<uint32_t*>(s.tile));
    }
    int i = 0;
    for (; i + 4 <= a.n; i += 4) score_floats<4>(a, i, s.tile, h.head_dim, s.scores, at);
    for (; i < a.n; i++) score_floats<1>(a, i, s.tile, h.head_dim, s.scores, at);
  }
}

// Turn a query's scores of a chunk into weights; scores behind its position become 0. Returns their largest and sum.
inline void weigh(float* scores, uint16_t* weights, int n_valid, int n_keys, float scale, float& largest,
                  float& total) {
  Floats most = splat(-3e38f), none = most;
  for (int at = 0; at < n_valid; at += LANES)
    most = max(most, first(load(scores + at), std::min(LANES, n_valid - at), none));
  largest = maximum(most) * scale;
  Floats sums = splat(0);
  for (int at = 0; at < n_keys; at += LANES) {
    Floats weight = exp(load(scores + at) * splat(scale) - splat(largest));
    weight = first(weight, std::max(0, std::min(LANES, n_valid - at)), splat(0));
    sums = sums + weight;
    store(scores + at, weight);
    store_bf16(weights + at, weight);
  }
  total = sum(sums);
}

template <int N, int D>
static void add_floats(const Scratch& s, int first, const uint8_t* values, size_t token_bytes, bool is_bf16, int n_keys,
                       int d, float (*to)[MAX_HEAD_DIM]) {
  Floats total[N][D];
  for (auto& row : total)
    for (Floats& part : row) part = splat(0);
  for (int t = 0; t < n_keys; t++, values += token_bytes) {
    Floats value[D];
    for (int j = 0; j < D; j++)
      value[j] = is_bf16 ? load_bf16(reinterpret_cast<const uint16_t*>(values) + d + LANES * j)
                         : load(reinterpret_cast<const float*>(values) + d + LANES * j);
    for (int i = 0; i < N; i++) {
      Floats weight = splat(s.scores[first + i][t]);
      for (int j = 0; j < D; j++) total[i][j] = fma(weight, value[j], total[i][j]);
    }
  }
  for (int i = 0; i < N; i++)
    for (int j = 0; j < D; j++) store(to[i] + d + LANES * j, total[i][j]);
}

#if defined(GF_BF16)
// Two tokens at a time, 32 elements of the head: their values are laid side by side, pair by pair, in passing.
template <int N>
static void add_bfloats(const Scratch& s, int first, const uint8_t* values, const uint8_t* ahead, size_t token_bytes,
                        int n_keys, int d, float (*to)[MAX_HEAD_DIM]) {
  __m512 low[N], high[N];
  for (int i = 0; i < N; i++) low[i] = high[i] = _mm512_setzero_ps();
  for (int t = 0; t < n_keys; t += 2, values += 2 * token_bytes, ahead += 2 * 64) {
    prefetch_near(ahead);
    prefetch_near(ahead + 64);
    __m512i even = _mm512_loadu_si512(reinterpret_cast<const uint16_t*>(values) + d);
    __m512i odd = _mm512_loadu_si512(reinterpret_cast<const uint16_t*>(values + token_bytes) + d);
    __m512bh pairs_low = (__m512bh)_mm512_unpacklo_epi16(even, odd),
             pairs_high = (__m512bh)_mm512_unpackhi_epi16(even, odd);
    for (int i = 0; i < N; i++) {
      int bits;
      memcpy(&bits, s.weights[first + i] + t, 4);
      __m512bh weight = (__m512bh)_mm512_set1_epi32(bits);
      low[i] = _mm512_dpbf16_ps(low[i], pairs_low, weight);
      high[i] = _mm512_dpbf16_ps(high[i], pairs_high, weight);
    }
  }
  const __m512i to_first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i to_second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < N; i++) {
    _mm512_storeu_ps(to[i] + d, _mm512_permutex2var_ps(low[i], to_first, high[i]));
    _mm512_storeu_ps(to[i] + d + LANES, _mm512_permutex2var_ps(low[i], to_second, high[i]));
  }
}
#endif

// Weighted sums of a chunk's values for N queries; `ahead` is what will be read next.
template <int N>
static void add_up(const Heads& h, const Scratch& s, int first, const uint8_t* values, const uint8_t* ahead,
                   size_t token_bytes, int n_keys, float (*to)[MAX_HEAD_DIM]) {
#if defined(GF_BF16)
  if (h.is_bf16) {
    // each pass over the values fetches its own part of what comes next
    for (int d = 0; d < h.head_dim; d += 2 * LANES, ahead += 64 * static_cast<size_t>(n_keys))
      add_bfloats<N>(s, first, values, ahead, token_bytes, round_up(n_keys, 2), d, to);
    return;
  }
#endif
  for (int d = 0; d < h.head_dim; d += LANES) add_floats<N, 1>(s, first, values, token_bytes, h.is_bf16, n_keys, d, to);
}

// What the keys of one chunk, those up to each query's own position, have to say to the queries.
struct Seen {
  bool anything[QUERIES];  // a query may stand before the chunk
  float largest[QUERIES];
  float total[QUERIES];
  alignas(64) float value[QUERIES][MAX_HEAD_DIM];
};

inline void see_chunk(const Answers& a, const Heads& h, const uint8_t* keys, const uint8_t* values, size_t token_bytes,
                      int start, Scratch& s, Seen& seen) {
  int n_valid[QUERIES], n_keys = 0;
  for (int i = 0; i < a.n; i++) {
    n_valid[i] = std::clamp(a.position[i] + 1 - start, 0, CHUNK);
    n_keys = std::max(n_keys, n_valid[i]);
    seen.anything[i] = n_valid[i] > 0;
  }
  n_keys = round_up(n_keys, LANES);
  score(a, h, keys, values, token_bytes, n_keys, s);
  const float scale = 1 / std::sqrt(static_cast<float>(h.head_dim));
  for (int i = 0; i < a.n; i++)
    weigh(s.scores[i], s.weights[i], n_valid[i], n_keys, scale, seen.largest[i], seen.total[i]);
  const uint8_t* next = keys + CHUNK * token_bytes;
  int i = 0;
  for (; i + 8 <= a.n; i += 8) add_up<8>(h, s, i, values, next, token_bytes, n_keys, seen.value + i);
  for (; i + 4 <= a.n; i += 4) add_up<4>(h, s, i, values, next, token_bytes, n_keys, seen.value + i);
  for (; i < a.n; i++) add_up<1>(h, s, i, values, next, token_bytes, n_keys, seen.value + i);
}

// Add what a chunk had to say to an answer; chunks come in their order, whoever has looked at them.
inline void add_chunk(Answers& a, int i, float largest, float total, const float* value, int head_dim) {
  const float most = std::max(a.largest[i], largest);
  const Floats old = exp(splat(a.largest[i] - most)), fresh = exp(splat(largest - most));
  alignas(64) float factors[2][LANES];
  store(factors[0], old), store(factors[1], fresh);
  a.total[i] = a.total[i] * factors[0][0] + total * factors[1][0];
  a.largest[i] = most;
  for (int d = 0; d < head_dim; d += LANES) store(a.value[i] + d, load(a.value[i] + d) * old + load(value + d) * fresh);
}
