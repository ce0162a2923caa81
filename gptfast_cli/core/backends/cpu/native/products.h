// Matrix kernels: one unit (32 output rows) of a matrix times M = 1 ... 8 input rows.
//
// Inputs are float32, bfloat16, or int8 codes with one scale per 32 columns. The summation order of an output does not
// depend on M, so results are batch-invariant: batches, prefill and verification equal single decoding bit for bit.
#pragma once

#include <algorithm>

#include "matrix.h"

using Kernel = void (*)(const Matrix& m, const uint8_t* unit, const Input& x, float* y);  // y [rows][32]

template <int M>
static void multiply_f32(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  Floats low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = splat(0);
  const float* w = reinterpret_cast<const float*>(unit);
  for (int k = 0; k < m.n_columns; k++, w += UNIT) {
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH);
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH + 64);
    Floats w_low = load(w), w_high = load(w + LANES);
    GF_UNROLL
    for (int r = 0; r < M; r++) {
      Floats input = splat(x.floats[static_cast<size_t>(r) * x.stride + k]);
      low[r] = fma(w_low, input, low[r]);
      high[r] = fma(w_high, input, high[r]);
    }
  }
  for (int r = 0; r < M; r++) store(y + UNIT * r, low[r]), store(y + UNIT * r + LANES, high[r]);
}

// 16 rows x 2 columns of bfloat16 pairs: the even column is in the low 16 bits.
GF_INLINE Floats even_column(Ints pairs) { return as_floats(shift_left(pairs, 16)); }
GF_INLINE Floats odd_column(Ints pairs) { return as_floats(pairs & 0xffff0000u); }

template <int M>
static void multiply_bf16(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  Floats low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = splat(0);
  const uint32_t* w = reinterpret_cast<const uint32_t*>(unit);
  for (int k = 0; k < m.n_columns; k += 2, w += UNIT) {
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH);
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH + 64);
    Ints w_low = load(w), w_high = load(w + LANES);
    Floats low_0 = even_column(w_low), low_1 = odd_column(w_low);
    Floats high_0 = even_column(w_high), high_1 = odd_column(w_high);
    GF_UNROLL
    for (int r = 0; r < M; r++) {
      const float* input = x.floats + static_cast<size_t>(r) * x.stride + k;
      Floats first = splat(input[0]), second = splat(input[1]);
      low[r] = fma(low_1, second, fma(low_0, first, low[r]));
      high[r] = fma(high_1, second, fma(high_0, first, high[r]));
    }
  }
  for (int r = 0; r < M; r++) store(y + UNIT * r, low[r]), store(y + UNIT * r + LANES, high[r]);
}

// (code - zero point) * scale is exact in float32, so each weight equals the scheme's value bit for bit.
template <int M>
static void multiply_int8(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  Floats low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = splat(0);
  const uint32_t* w = reinterpret_cast<const uint32_t*>(unit);
  const int n_columns = round_up(m.n_columns, GROUP);
  const float* scales = reinterpret_cast<const float*>(unit + static_cast<size_t>(UNIT) * n_columns);
  Floats scale_low = load(scales), scale_high = load(scales + LANES);
  for (int k = 0; k < n_columns; k += 4, w += UNIT) {
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH);
    prefetch(reinterpret_cast<const uint8_t*>(w) + PREFETCH + 64);
    Ints w_low = load(w), w_high = load(w + LANES);
    for (int i = 0; i < 4; i++) {
      Floats column_low = to_floats((shift_right(w_low, 8 * i) & 255u) + splat_int(-128)) * scale_low;
      Floats column_high = to_floats((shift_right(w_high, 8 * i) & 255u) + splat_int(-128)) * scale_high;
      GF_UNROLL
      for (int r = 0; r < M; r++) {
        Floats input = splat(x.floats[static_cast<size_t>(r) * x.stride + k + i]);
        low[r] = fma(column_low, input, low[r]);
        high[r] = fma(column_high, input, high[r]);
      }
    }
  }
  for (int r = 0; r < M; r++) store(y + UNIT * r, low[r]), store(y + UNIT * r + LANES, high[r]);
}

template <int M>
static void multiply_int4(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  const int n_blocks = m.n_blocks(), shift = m.scale_shift();
  for (int panel = 0; panel < 2; panel++) {
    Floats total[M];
    for (int r = 0; r < M; r++) total[r] = splat(0);
    const uint8_t* codes = unit + static_cast<size_t>(panel) * m.panel_bytes();
    for (int block = 0; block < n_blocks; block++) {
      Ints zeros = load(reinterpret_cast<const uint32_t*>(codes));
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(codes + 64);
      codes += 64 + 64 * m.scale_lines();
      const int n_groups = std::min(BLOCK / GROUP, m.n_groups() - block * (BLOCK / GROUP));
      for (int g = 0; g < n_groups; g++) {
        Floats scale = load_bf16(scales + LANES * (g >> shift));
        Floats zero = to_floats(shift_right(zeros, 4 * g) & 15u);
        for (int line = 0; line < 4; line++, codes += 64) {
          prefetch(codes + PREFETCH);
          Ints quads = load(reinterpret_cast<const uint32_t*>(codes));
          const float* input = x.floats + block * BLOCK + g * GROUP + 8 * line;
          for (int i = 0; i < 8; i++) {
            Floats column = (to_floats(shift_right(quads, 8 * (i & 3) + 4 * (i >> 2)) & 15u) - zero) * scale;
            GF_UNROLL
            for (int r = 0; r < M; r++)
              total[r] = fma(column, splat(input[static_cast<size_t>(r) * x.stride + i]), total[r]);
          }
        }
      }
    }
    for (int r = 0; r < M; r++) store(y + UNIT * r + LANES * panel, total[r]);
  }
}

#if defined(GF_BF16)

GF_INLINE __m512bh pair(const uint16_t* p) {
  int bits;
  memcpy(&bits, p, 4);
  return (__m512bh)_mm512_set1_epi32(bits);
}

template <int M>
static void dot_bf16(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  __m512 low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = _mm512_setzero_ps();
  for (int k = 0; k < m.n_columns; k += 2, unit += 128) {
    prefetch(unit + PREFETCH);
    prefetch(unit + PREFETCH + 64);
    __m512bh w_low = (__m512bh)_mm512_load_si512(unit), w_high = (__m512bh)_mm512_load_si512(unit + 64);
    GF_UNROLL
    for (int r = 0; r < M; r++) {
      __m512bh input = pair(x.bfloats + static_cast<size_t>(r) * x.stride + k);
      low[r] = _mm512_dpbf16_ps(low[r], w_low, input);
      high[r] = _mm512_dpbf16_ps(high[r], w_high, input);
    }
  }
  for (int r = 0; r < M; r++) _mm512_storeu_ps(y + UNIT * r, low[r]), _mm512_storeu_ps(y + UNIT * r + LANES, high[r]);
}

#endif

#if defined(GF_VNNI)

GF_INLINE __m512i quad(const int8_t* p) {
  int bits;
  memcpy(&bits, p, 4);
  return _mm512_set1_epi32(bits);
}

template <int M>
static void dot_int8(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  __m512 low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = _mm512_setzero_ps();
  const int n_groups = round_up(m.n_columns, GROUP) / GROUP, per_row = x.stride / GROUP;
  for (int g = 0; g < n_groups; g++, unit += UNIT * GROUP) {
    __m512i sum_low[M], sum_high[M];
    GF_UNROLL
    for (int r = 0; r < M; r++)
      sum_low[r] = sum_high[r] = _mm512_set1_epi32(x.offsets[static_cast<size_t>(r) * per_row + g]);
    GF_UNROLL
    for (int i = 0; i < GROUP / 4; i++) {
      prefetch(unit + PREFETCH + 128 * i);
      prefetch(unit + PREFETCH + 128 * i + 64);
      __m512i w_low = _mm512_load_si512(unit + 128 * i), w_high = _mm512_load_si512(unit + 128 * i + 64);
      GF_UNROLL
      for (int r = 0; r < M; r++) {
        __m512i input = quad(x.codes + static_cast<size_t>(r) * x.stride + g * GROUP + 4 * i);
        sum_low[r] = _mm512_dpbusd_epi32(sum_low[r], w_low, input);
        sum_high[r] = _mm512_dpbusd_epi32(sum_high[r], w_high, input);
      }
    }
    GF_UNROLL
    for (int r = 0; r < M; r++) {
      __m512 scale = _mm512_set1_ps(x.scales[static_cast<size_t>(r) * per_row + g]);
      low[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_low[r]), scale, low[r]);
      high[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_high[r]), scale, high[r]);
    }
  }
  const float* scales = reinterpret_cast<const float*>(unit);
  for (int r = 0; r < M; r++) {
    _mm512_storeu_ps(y + UNIT * r, _mm512_mul_ps(low[r], _mm512_loadu_ps(scales)));
    _mm512_storeu_ps(y + UNIT * r + LANES, _mm512_mul_ps(high[r], _mm512_loadu_ps(scales + LANES)));
  }
}

// High nibbles are multiplied unshifted, as 16 * code (uint8); the sum is shifted right by 4 afterwards.
template <int M>
static void dot_int4(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  const __m512i low_half = _mm512_set1_epi8(15), high_half = _mm512_set1_epi8(-16);
  const int n_blocks = m.n_blocks(), per_row = x.stride / GROUP, shift = m.scale_shift();
  const int scale_lines = m.scale_lines(), n_whole = m.n_groups() / (BLOCK / GROUP);
  for (int panel = 0; panel < 2; panel++) {
    __m512 total[M];
    for (int r = 0; r < M; r++) total[r] = _mm512_setzero_ps();
    for (int block = 0; block < n_blocks; block++) {
      __m512i zeros = _mm512_load_si512(unit);
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(unit + 64);
      for (int line = 0; line <= scale_lines; line++) prefetch(unit + PREFETCH + 64 * line);
      unit += 64 + 64 * scale_lines;
      auto add_group = [&](int g) __attribute__((always_inline)) {
        __m512i low[4], high[4];
        GF_UNROLL
        for (int i = 0; i < 4; i++) {
          prefetch(unit + PREFETCH + 64 * i);
          __m512i packed = _mm512_load_si512(unit + 64 * i);
          low[i] = _mm512_and_si512(packed, low_half);
          high[i] = _mm512_and_si512(packed, high_half);
        }
        __m512 scale = load_bf16(scales + LANES * (g >> shift)).v;
        __m512 zero = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(zeros, 4 * g), _mm512_set1_epi32(15)));
        GF_UNROLL
        for (int r = 0; r < M; r++) {
          const int8_t* input = x.codes + static_cast<size_t>(r) * x.stride + block * BLOCK + g * GROUP;
          size_t group = static_cast<size_t>(r) * per_row + block * 8 + g;
          __m512i sum = _mm512_setzero_si512(), sum_16 = sum;
          GF_UNROLL
          for (int i = 0; i < 4; i++) {
            sum = _mm512_dpbusd_epi32(sum, low[i], quad(input + 8 * i));
            sum_16 = _mm512_dpbusd_epi32(sum_16, high[i], quad(input + 8 * i + 4));
          }
          __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_srai_epi32(sum_16, 4)));
          __m512 offset = _mm512_mul_ps(zero, _mm512_set1_ps(x.scaled_sums[group]));
          __m512 value = _mm512_fmsub_ps(product, _mm512_set1_ps(x.scales[group]), offset);
          total[r] = _mm512_fmadd_ps(scale, value, total[r]);
        }
        unit += 256;
      };
      if (block < n_whole) {
        _Pragma("GCC unroll 2")  // unrolling all 8 would exceed the decoded-uop cache
            for (int g = 0; g < BLOCK / GROUP; g++) add_group(g);
      } else {
        for (int g = 0; g < m.n_groups() % (BLOCK / GROUP); g++) add_group(g);
      }
    }
    for (int r = 0; r < M; r++) _mm512_storeu_ps(y + UNIT * r + LANES * panel, total[r]);
  }
}

#endif

#define GF_KERNELS(f) {f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}

// The kernel of a matrix for n_rows = 1 ... 8 input rows.
inline Kernel kernel(const Matrix& m, int n_rows) {
  static const Kernel f32[] = GF_KERNELS(multiply_f32), bf16[] = GF_KERNELS(multiply_bf16);
  static const Kernel int8[] = GF_KERNELS(multiply_int8), int4[] = GF_KERNELS(multiply_int4);
#if defined(GF_BF16)
  static const Kernel bf16_dot[] = GF_KERNELS(dot_bf16);
  if (m.input_format == BFLOAT) return bf16_dot[n_rows - 1];
#endif
#if defined(GF_VNNI)
  static const Kernel int8_dot[] = GF_KERNELS(dot_int8), int4_dot[] = GF_KERNELS(dot_int4);
  if (m.input_format == CODES) return (m.format == INT8 ? int8_dot : int4_dot)[n_rows - 1];
#endif
  switch (m.format) {
    case F32: return f32[n_rows - 1];
    case BF16: return bf16[n_rows - 1];
    case INT8: return int8[n_rows - 1];
    default: return int4[n_rows - 1];
  }
}
