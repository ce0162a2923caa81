// Scores of queries and keys as they were computed.
#pragma once

#include <algorithm>

#include "scores_int8.h"
#include "transpose.h"

constexpr int CHUNK_BLOCKS = 2, CHUNK = CHUNK_BLOCKS * KEY_BLOCK;  // keys of one pass of the softmax
constexpr int QUERIES = 40;                                        // per tile, at most: five tokens of eight heads

static_assert(CHUNK <= MOST_SHORTS && MAX_HEAD_DIM <= MOST_SHORTS);

// Queries of one KV head and the state of their online softmax.
struct QueryTile {
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
  alignas(64) float scaled[QUERIES][MAX_HEAD_DIM];  // queries, with the scales of a block's keys in them
#if defined(GF_VNNI)
  Shorts shorts[QUERIES];  // of these, and then of weights with the scales of values in them
#endif
  alignas(64) float tile[MAX_HEAD_DIM * LANES];  // 16 keys, transposed: [head_dim][16]; or 32 of pairs of bfloat16
};

// Scores of N queries and 16 transposed keys.
template <int N>
static void score_floats(const QueryTile& a, int first, const float* tile, int head_dim, float (*scores)[CHUNK],
                         int at) {
  Floats total[N];
  for (int i = 0; i < N; i++) total[i] = splat(0);
  for (int d = 0; d < head_dim; d++) {
    Floats keys = load(tile + d * LANES);
    for (int i = 0; i < N; i++) total[i] = fma(keys, splat(static_cast<const float*>(a.query[first + i])[d]), total[i]);
  }
  for (int i = 0; i < N; i++) store(scores[first + i] + at, total[i]);
}

#if defined(GF_BF16)
template <int N, int TILES>
static void score_bfloats(const QueryTile& a, int first, const float* tiles, int head_dim, float (*scores)[CHUNK],
                          int at) {
  __m512 total[N][TILES];
  for (auto& row : total)
    for (__m512& part : row) part = _mm512_setzero_ps();
  for (int d = 0; d < head_dim / 2; d++) {
    __m512bh keys[TILES];
    for (int j = 0; j < TILES; j++) keys[j] = (__m512bh)_mm512_load_si512(tiles + (j * (head_dim / 2) + d) * LANES);
    for (int i = 0; i < N; i++) {
      int bits;
      memcpy(&bits, static_cast<const uint16_t*>(a.query[first + i]) + 2 * d, 4);
      for (int j = 0; j < TILES; j++)
        total[i][j] = _mm512_dpbf16_ps(total[i][j], keys[j], (__m512bh)_mm512_set1_epi32(bits));
    }
  }
  for (int i = 0; i < N; i++)
    for (int j = 0; j < TILES; j++) _mm512_store_ps(scores[first + i] + at + LANES * j, total[i][j]);
}

// Scores of queries and some tiles of transposed keys.
template <int TILES>
static void score_tiles(const QueryTile& a, int first, int end, const float* tiles, int head_dim,
                        float (*scores)[CHUNK], int at) {
  for (; first + 8 <= end; first += 8) score_bfloats<8, TILES>(a, first, tiles, head_dim, scores, at);
  for (; first + 4 <= end; first += 4) score_bfloats<4, TILES>(a, first, tiles, head_dim, scores, at);
  for (; first < end; first++) score_bfloats<1, TILES>(a, first, tiles, head_dim, scores, at);
}
#endif

// Queries `first` to `end` - 1 of a tile.
struct Range {
  int first, end;
};

// Scores of some queries, in a chunk's places from `at` on; `ahead` is what will be read next, and is fetched in
// passing.
inline void score(const QueryTile& a, Range queries, const Heads& h, const uint8_t* keys, const uint8_t* ahead, int at,
                  int n_keys, Scratch& s) {
  const size_t token_bytes = static_cast<size_t>(h.head_dim) * h.element();
  const int end = at + n_keys;
#if defined(GF_BF16)
  if (h.is_bf16) {
    const int tile_words = h.head_dim / 2 * LANES;
    for (int n_tiles = 2; at < end; at += n_tiles * LANES) {
      n_tiles = std::min(n_tiles, (end - at) / LANES);
      for (int tile = 0; tile < n_tiles; tile++, keys += LANES * token_bytes, ahead += LANES * token_bytes) {
        for (size_t line = 0; line < LANES * token_bytes; line += 64) prefetch_near(ahead + line);
        transpose(reinterpret_cast<const uint32_t*>(keys), token_bytes / 4, h.head_dim / 2,
                  reinterpret_cast<uint32_t*>(s.tile + tile * tile_words));
      }
      if (n_tiles == 2) score_tiles<2>(a, queries.first, queries.end, s.tile, h.head_dim, s.scores, at);
      else score_tiles<1>(a, queries.first, queries.end, s.tile, h.head_dim, s.scores, at);
    }
    return;
  }
#endif
  for (; at < end; at += LANES, keys += LANES * token_bytes, ahead += LANES * token_bytes) {
    for (size_t line = 0; line < LANES * token_bytes; line += 64) prefetch_near(ahead + line);
    if (h.is_bf16) {
      for (int key = 0; key < LANES; key++) {
        const uint16_t* row = reinterpret_cast<const uint16_t*>(keys + key * token_bytes);
        for (int d = 0; d < h.head_dim; d++) s.tile[d * LANES + key] = bf16_to_float(row[d]);
      }
    } else {
      transpose(reinterpret_cast<const uint32_t*>(keys), token_bytes / 4, h.head_dim,
                reinterpret_cast<uint32_t*>(s.tile));
    }
    int i = queries.first;
    for (; i + 4 <= queries.end; i += 4) score_floats<4>(a, i, s.tile, h.head_dim, s.scores, at);
    for (; i < queries.end; i++) score_floats<1>(a, i, s.tile, h.head_dim, s.scores, at);
  }
}
