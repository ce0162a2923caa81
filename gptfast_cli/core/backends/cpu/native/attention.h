// Causal attention over the cache, online: chunk by chunk of the keys, each with its own maximum (arXiv:1805.02867).
//
// Queries that share a key head, those of its group and of neighbouring tokens, form a QueryTile, so that keys and
// values are read once for all of them. What a query adds up, and in which order, depends on its own position alone.
#pragma once

#include <algorithm>

#include "functions.h"
#include "scores.h"

// Multiply the scales of keys into a query.
inline void scale_query(const QueryTile& a, int i, const Heads& h, const float* scales, Scratch& s) {
  Floats most = least();
  for (int d = 0; d < h.head_dim; d += LANES) {
    const Floats query = load_element(static_cast<const uint8_t*>(a.query[i]), h.has_bf16_queries(), d);
    const Floats scaled = query * load(scales + d);
    most = max(most, abs(scaled));
    store(s.scaled[i] + d, scaled);
  }
#if defined(GF_VNNI)
  if (h.is_bf16) to_shorts(s.scaled[i], h.head_dim, maximum(most), s.shorts[i]);
#endif
}

// Multiply the scales of values into a query's weights of a chunk.
inline void scale_weights(int i, const Heads& h, const HeadBlock* blocks, int n_keys, Scratch& s) {
  Floats most = least();
  for (int at = 0; at < n_keys; at += LANES) {
    const Floats weight = load(s.scores[i] + at) * load(blocks[at / KEY_BLOCK].value_scales + at % KEY_BLOCK);
    most = max(most, weight);
    store(s.scores[i] + at, weight);
  }
#if defined(GF_VNNI)
  if (h.is_bf16) to_shorts(s.scores[i], n_keys, maximum(most), s.shorts[i]);
#endif
}

// Scores of the keys of block number `block` in int8, in a chunk's places from `at` on: a query reads those of its own
// block as they were computed, and codes of the blocks before.
inline void score_int8(const QueryTile& a, const Heads& h, const HeadBlock& k, int block, int at, int n_keys,
                       Scratch& s) {
  int own = 0;  // queries are in the order of their positions
  while (own < a.n && a.position[own] / KEY_BLOCK < block) own++;
  int later = own;
  while (later < a.n && a.position[later] / KEY_BLOCK == block) later++;
  const uint8_t* ahead = k.values;
  if (own < later) score(a, {own, later}, h, k.recent_keys, ahead, at, n_keys, s);
  if (later == a.n) return;
  const int8_t* tile = reinterpret_cast<const int8_t*>(k.keys);
  const int tile_bytes = LANES * h.head_dim, end = at + n_keys;
  for (int i = later; i < a.n; i++) scale_query(a, i, h, k.key_scales, s);
#if defined(GF_VNNI)
  if (h.is_bf16) {
    for (; at < end; at += 2 * LANES, tile += 2 * tile_bytes, ahead += 2 * tile_bytes) {
      for (int line = 0; line < 2 * tile_bytes; line += 64) prefetch_near(ahead + line);
      int i = later;
      for (; i + 4 <= a.n; i += 4) score_shorts<4, 2>(s.shorts + i, tile, h.head_dim, s.scores[i] + at, CHUNK);
      for (; i < a.n; i++) score_shorts<1, 2>(s.shorts + i, tile, h.head_dim, s.scores[i] + at, CHUNK);
    }
    return;
  }
#endif
  for (; at < end; at += LANES, tile += tile_bytes, ahead += tile_bytes) {
    for (int line = 0; line < tile_bytes; line += 64) prefetch_near(ahead + line);
    int i = later;
    for (; i + 8 <= a.n; i += 8) score_codes<8>(s.scaled + i, tile, h.head_dim, s.scores[i] + at, CHUNK);
    for (; i + 4 <= a.n; i += 4) score_codes<4>(s.scaled + i, tile, h.head_dim, s.scores[i] + at, CHUNK);
    for (; i < a.n; i++) score_codes<1>(s.scaled + i, tile, h.head_dim, s.scores[i] + at, CHUNK);
  }
}

// Keys of a chunk, from `first` to `end` - 1.
struct Keys {
  int first, end;
};

// Softmax numerators of a query's scores of a chunk, in place or in bfloat16; keys that it does not see get weight 0,
// up to `n_keys`. `largest` becomes the largest scaled score, `total` the sum of the weights.
inline void weigh(float* scores, uint16_t* weights, Keys seen, int n_keys, float scale, float& largest, float& total) {
  const Floats none = splat(-3e38f);
  const int begin = seen.first / LANES * LANES;  // what stands before is no number that counts
  if (begin < seen.first) store(scores + begin, first(none, seen.first - begin, load(scores + begin)));
  Floats most = none;
  int at = begin;
  for (; at + LANES <= seen.end; at += LANES) most = max(most, load(scores + at));
  if (at < seen.end) most = max(most, first(load(scores + at), seen.end - at, none));
  largest = maximum(most) * scale;
  Floats sums = splat(0);
  auto write = [&](Floats weight) {
    if (weights != nullptr) store_bf16(weights + at, weight);
    else store(scores + at, weight);
  };
  auto weigh_next = [&](int n) {  // of 16, those that count
    Floats weight = exp(load(scores + at) * splat(scale) - splat(largest));
    if (n < LANES) weight = first(weight, n, splat(0));
    sums = sums + weight;
    write(weight);
  };
  for (at = 0; at < begin; at += LANES) write(splat(0));
  if (begin < seen.first) {
    Floats weight = exp(load(scores + at) * splat(scale) - splat(largest));
    weight = first(splat(0), seen.first - begin, first(weight, std::min(LANES, seen.end - begin), splat(0)));
    sums = sums + weight;
    write(weight);
    at += LANES;
  }
  for (; at + LANES <= seen.end; at += LANES) weigh_next(LANES);
  for (; at < n_keys; at += LANES) weigh_next(std::max(0, seen.end - at));
  total = sum(sums);
}

template <int N, int D>
static void add_floats(const Scratch& s, int first, int at, const uint8_t* values, size_t token_bytes, bool is_bf16,
                       int n_keys, int d, float (*to)[MAX_HEAD_DIM]) {
  Floats total[N][D];
  for (auto& row : total)
    for (Floats& part : row) part = splat(0);
  for (int t = 0; t < n_keys; t++, values += token_bytes) {
    Floats value[D];
    for (int j = 0; j < D; j++)
      value[j] = is_bf16 ? load_bf16(reinterpret_cast<const uint16_t*>(values) + d + LANES * j)
                         : load(reinterpret_cast<const float*>(values) + d + LANES * j);
    for (int i = 0; i < N; i++) {
      Floats weight = splat(s.scores[first + i][at + t]);
      for (int j = 0; j < D; j++) total[i][j] = fma(weight, value[j], total[i][j]);
    }
  }
  for (int i = 0; i < N; i++)
    for (int j = 0; j < D; j++) add_to(to[i] + d + LANES * j, total[i][j]);
}

#if defined(GF_BF16)
// Two tokens at a time, 32 elements of the head: their values are laid side by side, pair by pair, in passing.
template <int N>
static void add_bfloats(const Scratch& s, int first, int at, const uint8_t* values, const uint8_t* ahead,
                        size_t token_bytes, int n_keys, int d, float (*to)[MAX_HEAD_DIM]) {
  __m512 low[N], high[N];
  for (int i = 0; i < N; i++) low[i] = high[i] = _mm512_setzero_ps();
  const uint16_t* weights = s.weights[first] + at;  // and [CHUNK] on from there those of the next
  for (int t = 0; t < n_keys; t += 2, weights += 2, values += 2 * token_bytes, ahead += 2 * 64) {
    prefetch_near(ahead);
    prefetch_near(ahead + 64);
    __m512i even = _mm512_loadu_si512(reinterpret_cast<const uint16_t*>(values) + d);
    __m512i odd = _mm512_loadu_si512(reinterpret_cast<const uint16_t*>(values + token_bytes) + d);
    __m512bh pairs_low = (__m512bh)_mm512_unpacklo_epi16(even, odd),
             pairs_high = (__m512bh)_mm512_unpackhi_epi16(even, odd);
    for (int i = 0; i < N; i++) {
      int bits;
      memcpy(&bits, weights + i * CHUNK, 4);
      __m512bh weight = (__m512bh)_mm512_set1_epi32(bits);
      low[i] = _mm512_dpbf16_ps(low[i], pairs_low, weight);
      high[i] = _mm512_dpbf16_ps(high[i], pairs_high, weight);
    }
  }
  const __m512i to_first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i to_second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < N; i++) {
    add_to(to[i] + d, {_mm512_permutex2var_ps(low[i], to_first, high[i])});
    add_to(to[i] + d + LANES, {_mm512_permutex2var_ps(low[i], to_second, high[i])});
  }
}
#endif

// Weighted sums of a block's values in int8 for N queries.
template <int N>
static void add_up_int8(const Heads& h, const Scratch& s, int first, int at, const int8_t* values, const uint8_t* ahead,
                        int n_keys, float (*to)[MAX_HEAD_DIM]) {
  const size_t each = 16 * static_cast<size_t>(n_keys);  // bytes of 16 elements: each pass fetches its own part
#if defined(GF_VNNI)
  if (h.is_bf16) {
    constexpr int ROWS = std::min(N, 4), D = ROWS == 4 ? 2 : 4;  // as many sums as there are registers for
    for (int n = 0; n < N; n += ROWS) {
      int d = 0;
      for (; d + D * LANES <= h.head_dim; d += D * LANES)
        add_shorts<ROWS, D>(s.shorts + first + n, at, values, ahead + d / LANES * each, h.head_dim, n_keys, to + n, d);
      for (; d < h.head_dim; d += LANES)
        add_shorts<ROWS, 1>(s.shorts + first + n, at, values, ahead + d / LANES * each, h.head_dim, n_keys, to + n, d);
    }
    return;
  }
#endif
  constexpr int D = N == 8 ? 2 : 4;
  int d = 0;
  for (; d + D * LANES <= h.head_dim; d += D * LANES)
    add_codes<N, D>(s.scores[first] + at, CHUNK, values, ahead + d / LANES * each, h.head_dim, n_keys, to, d);
  for (; d < h.head_dim; d += LANES)
    add_codes<N, 1>(s.scores[first] + at, CHUNK, values, ahead + d / LANES * each, h.head_dim, n_keys, to, d);
}

// Weighted sums of a block's values for N queries, whose weights stand in a chunk's places from `at` on, added to what
// is there; `ahead` is what will be read next.
template <int N>
static void add_up(const Heads& h, const Scratch& s, int first, int at, const uint8_t* values, const uint8_t* ahead,
                   int n_keys, float (*to)[MAX_HEAD_DIM]) {
  if (h.is_int8) return add_up_int8<N>(h, s, first, at, reinterpret_cast<const int8_t*>(values), ahead, n_keys, to);
  const size_t token_bytes = static_cast<size_t>(h.head_dim) * h.element();
#if defined(GF_BF16)
  if (h.is_bf16) {
    // each pass over the values fetches its own part of what comes next
    for (int d = 0; d < h.head_dim; d += 2 * LANES, ahead += 64 * static_cast<size_t>(n_keys))
      add_bfloats<N>(s, first, at, values, ahead, token_bytes, round_up(n_keys, 2), d, to);
    return;
  }
#endif
  for (int d = 0; d < h.head_dim; d += LANES)
    add_floats<N, 1>(s, first, at, values, token_bytes, h.is_bf16, n_keys, d, to);
}

// Scale and softcap a query's scores of the keys of a chunk that it sees.
inline void cap_scores(const Heads& h, float* scores, Keys seen) {
  for (int at = seen.first / LANES * LANES; at < seen.end; at += LANES)
    store(scores + at, softcapped(load(scores + at) * splat(h.score_scale), h.score_softcap));
}

// Attention of a query tile over one chunk of keys, up to the position of each query: unnormalized.
struct ChunkResult {
  bool has_keys[QUERIES];  // false: the query is at a position before the chunk
  float largest[QUERIES];
  float total[QUERIES];
  alignas(64) float value[QUERIES][MAX_HEAD_DIM];
};

// `blocks` are those of the chunk, and those of the next one, which are fetched in passing.
inline void attend_chunk(const QueryTile& a, const Heads& h, const HeadBlock (&blocks)[2 * CHUNK_BLOCKS], int chunk,
                         Scratch& s, ChunkResult& result) {
  Keys seen[QUERIES];
  int first_block = CHUNK_BLOCKS, n_keys = 0;  // the blocks that no query sees are left out
  for (int i = 0; i < a.n; i++) {
    seen[i].first = std::clamp(h.first_key(a.position[i]) - chunk * CHUNK, 0, CHUNK);
    seen[i].end = std::clamp(a.position[i] + 1 - chunk * CHUNK, 0, CHUNK);
    result.has_keys[i] = seen[i].first < seen[i].end;
    if (result.has_keys[i]) {
      n_keys = std::max(n_keys, seen[i].end);
      first_block = std::min(first_block, seen[i].first / KEY_BLOCK);
    }
    memset(result.value[i], 0, sizeof(float) * static_cast<size_t>(h.head_dim));
  }
  n_keys = round_up(n_keys, LANES);
  for (int b = first_block, at = b * KEY_BLOCK; at < n_keys; b++, at += KEY_BLOCK) {
    const int n = std::min(KEY_BLOCK, n_keys - at);
    if (h.is_int8) score_int8(a, h, blocks[b], chunk * CHUNK_BLOCKS + b, at, n, s);
    else score(a, {0, a.n}, h, blocks[b].keys, blocks[b].values, at, n, s);
  }
  for (int i = 0; i < a.n; i++) {
    uint16_t* weights = h.has_bf16_queries() && !h.is_int8 ? s.weights[i] : nullptr;
    if (!result.has_keys[i]) seen[i] = {0, 0};
    if (h.score_softcap > 0) cap_scores(h, s.scores[i], seen[i]);
    weigh(s.scores[i], weights, seen[i], n_keys, h.score_softcap > 0 ? 1 : h.score_scale, result.largest[i],
          result.total[i]);
    if (h.is_int8) scale_weights(i, h, blocks, n_keys, s);
  }
  for (int b = first_block, at = b * KEY_BLOCK; at < n_keys; b++, at += KEY_BLOCK) {
    const int n = std::min(KEY_BLOCK, n_keys - at);
    const uint8_t *values = blocks[b].values, *next = blocks[CHUNK_BLOCKS + b].keys;
    int i = 0;
    for (; i + 8 <= a.n; i += 8) add_up<8>(h, s, i, at, values, next, n, result.value + i);
    for (; i + 4 <= a.n; i += 4) add_up<4>(h, s, i, at, values, next, n, result.value + i);
    for (; i < a.n; i++) add_up<1>(h, s, i, at, values, next, n, result.value + i);
  }
}

// Merge the result of a chunk into a query of the tile; always in the order of the chunks, whichever thread computed
// them.
inline void merge_chunk(QueryTile& a, int i, float largest, float total, const float* value, int head_dim) {
  const float most = std::max(a.largest[i], largest);
  const Floats old = exp(splat(a.largest[i] - most)), fresh = exp(splat(largest - most));
  alignas(64) float factors[2][LANES];
  store(factors[0], old), store(factors[1], fresh);
  a.total[i] = a.total[i] * factors[0][0] + total * factors[1][0];
  a.largest[i] = most;
  for (int d = 0; d < head_dim; d += LANES) store(a.value[i] + d, load(a.value[i] + d) * old + load(value + d) * fresh);
}
