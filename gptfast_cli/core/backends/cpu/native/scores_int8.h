// Scores of keys in int8, and weighted sums of values in int8; kv_cache.h has the layout.
//
// A key's scales are multiplied into the queries, a value's into its weight, so that codes are all that is read.
#pragma once

#include "kv_cache.h"

inline void add_to(float* to, Floats x) { store(to, load(to) + x); }

// Byte i of each lane, with its sign.
GF_INLINE Ints byte(Ints four, int i) { return shift_right_signed(shift_left(four, 24 - 8 * i), 24); }

// Scores of N queries and the 16 keys of a tile; `queries` [N][MAX_HEAD_DIM] have the scales of the keys in them.
template <int N>
static void score_codes(const float (*queries)[MAX_HEAD_DIM], const int8_t* tile, int head_dim, float* to,
                        size_t stride) {
  Floats total[N];
  for (Floats& each : total) each = splat(0);
  for (int d = 0; d < head_dim; d += QUAD, tile += 64) {
    const Ints codes = load(reinterpret_cast<const uint32_t*>(tile));
    for (int i = 0; i < QUAD; i++) {
      const Floats keys = to_floats(byte(codes, i));
      for (int n = 0; n < N; n++) total[n] = fma(keys, splat(queries[n][d + i]), total[n]);
    }
  }
  for (int n = 0; n < N; n++) store(to + n * stride, total[n]);
}

// Sums of values over a block's keys for N queries, D vectors of the head, added to what is there; `weights` have the
// scales in them.
template <int N, int D>
static void add_codes(const float* weights, size_t stride, const int8_t* values, const uint8_t* ahead, int head_dim,
                      int n_keys, float (*to)[MAX_HEAD_DIM], int first) {
  Floats total[N][D];
  for (auto& row : total)
    for (Floats& part : row) part = splat(0);
  values += static_cast<size_t>(first) * QUAD;
  for (int t = 0; t < n_keys; t += QUAD, values += static_cast<size_t>(head_dim) * QUAD, ahead += 64 * D) {
    Ints codes[D];
    for (int j = 0; j < D; j++) {
      prefetch_near(ahead + 64 * j);
      codes[j] = load(reinterpret_cast<const uint32_t*>(values + 64 * j));
    }
    for (int i = 0; i < QUAD; i++) {
      Floats value[D];
      for (int j = 0; j < D; j++) value[j] = to_floats(byte(codes[j], i));
      for (int n = 0; n < N; n++) {
        const Floats weight = splat(weights[n * stride + t + i]);
        for (int j = 0; j < D; j++) total[n][j] = fma(weight, value[j], total[n][j]);
      }
    }
  }
  for (int n = 0; n < N; n++)
    for (int j = 0; j < D; j++) add_to(to[n] + first + LANES * j, total[n][j]);
}

constexpr int MOST_SHORTS = 256;

#if defined(GF_VNNI)

// Numbers as integers of 16 bits, which lose less than bfloat16 does; the machine multiplies these.
struct Shorts {
  alignas(64) int16_t shorts[MOST_SHORTS];
  float scale;
};

// Write n numbers, a multiple of 16, in that form: the largest of them becomes 32767.
inline void to_shorts(const float* x, int n, float largest, Shorts& to) {
  const Floats steps = splat(32767 / largest);
  for (int i = 0; i < n; i += LANES)
    _mm256_store_si256((__m256i*)(to.shorts + i), _mm512_cvtepi32_epi16(to_ints(load(x + i) * steps).v));
  to.scale = largest / 32767;
}

// Sums of N rows of shorts times codes, of which D vectors of 16 quads come at a time.
template <int N, int D>
struct ShortSums {
  __m512i sums[N][2 * D];  // of halves of a vector's quads, two lanes for each

  ShortSums() {
    for (auto& row : sums)
      for (__m512i& sum : row) sum = _mm512_setzero_si512();
  }

  __attribute__((always_inline)) void add(const Shorts* rows, int at, const int8_t* codes, size_t stride) {
    __m512i wide[2 * D];
    GF_UNROLL
    for (int j = 0; j < 2 * D; j++) {
      const int8_t* half = codes + j / 2 * stride + j % 2 * 32;
      wide[j] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
    }
    GF_UNROLL
    for (int n = 0; n < N; n++) {
      long long four;
      memcpy(&four, rows[n].shorts + at, 8);
      const __m512i quad = _mm512_set1_epi64(four);
      GF_UNROLL
      for (int j = 0; j < 2 * D; j++) sums[n][j] = _mm512_dpwssd_epi32(sums[n][j], wide[j], quad);
    }
  }

  __attribute__((always_inline)) Floats sum(const Shorts* rows, int n, int j) const {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i low = sums[n][2 * j], high = sums[n][2 * j + 1];
    const Ints sum{
        _mm512_add_epi32(_mm512_permutex2var_epi32(low, even, high), _mm512_permutex2var_epi32(low, odd, high))};
    return to_floats(sum) * splat(rows[n].scale);
  }
};

// What score_codes does for D tiles, of shorts.
template <int N, int D>
static void score_shorts(const Shorts* queries, const int8_t* tiles, int head_dim, float* to, size_t stride) {
  ShortSums<N, D> total;
  for (int d = 0; d < head_dim; d += QUAD, tiles += 64)
    total.add(queries, d, tiles, static_cast<size_t>(LANES * head_dim));
  for (int n = 0; n < N; n++)
    for (int j = 0; j < D; j++) store(to + n * stride + LANES * j, total.sum(queries, n, j));
}

// What add_codes does, of shorts from `at` on.
template <int N, int D>
static void add_shorts(const Shorts* weights, int at, const int8_t* values, const uint8_t* ahead, int head_dim,
                       int n_keys, float (*to)[MAX_HEAD_DIM], int first) {
  ShortSums<N, D> total;
  values += static_cast<size_t>(first) * QUAD;
  for (int t = 0; t < n_keys; t += QUAD, values += static_cast<size_t>(head_dim) * QUAD, ahead += 64 * D) {
    for (int j = 0; j < D; j++) prefetch_near(ahead + 64 * j);
    total.add(weights, at + t, values, 64);
  }
  for (int n = 0; n < N; n++)
    for (int j = 0; j < D; j++) add_to(to[n] + first + LANES * j, total.sum(weights, n, j));
}

#endif
