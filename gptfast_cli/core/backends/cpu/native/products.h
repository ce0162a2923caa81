// Matrix kernels: one unit (32 output rows) of a matrix times M = 1 ... 8 input rows.
//
// Inputs are float32, bfloat16, or int8 codes with one scale per 32 columns. The summation order of an output does not
// depend on M, so results are batch-invariant: batches, prefill and verification equal single decoding bit for bit.
#pragma once

#include <algorithm>

#include "groups.h"

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

#if defined(GF_DOTS)

template <int M>
static void dot_int8(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  Floats low[M], high[M];
  for (int r = 0; r < M; r++) low[r] = high[r] = splat(0);
  const int n_groups = round_up(m.n_columns, GROUP) / GROUP, per_row = x.stride / GROUP;
  for (int g = 0; g < n_groups; g++, unit += UNIT * GROUP) {
    Ints sum_low[M], sum_high[M];
    GF_UNROLL
    for (int r = 0; r < M; r++) sum_low[r] = sum_high[r] = start_of(x.offsets[static_cast<size_t>(r) * per_row + g]);
    GF_UNROLL
    for (int i = 0; i < GROUP / 4; i++) {
      prefetch(unit + PREFETCH + 128 * i);
      prefetch(unit + PREFETCH + 128 * i + 64);
      const uint32_t* w = reinterpret_cast<const uint32_t*>(unit + 128 * i);
      Ints w_low = load(w), w_high = load(w + LANES);
      GF_UNROLL
      for (int r = 0; r < M; r++) {
        Ints input = quad(x.codes + static_cast<size_t>(r) * x.stride + g * GROUP + 4 * i);
        sum_low[r] = dot_biased(sum_low[r], w_low, input);
        sum_high[r] = dot_biased(sum_high[r], w_high, input);
      }
    }
    GF_UNROLL
    for (int r = 0; r < M; r++) {
      Floats scale = splat(x.scales[static_cast<size_t>(r) * per_row + g]);
      low[r] = fma(to_floats(sum_low[r]), scale, low[r]);
      high[r] = fma(to_floats(sum_high[r]), scale, high[r]);
    }
  }
  const float* scales = reinterpret_cast<const float*>(unit);
  for (int r = 0; r < M; r++) {
    store(y + UNIT * r, low[r] * load(scales));
    store(y + UNIT * r + LANES, high[r] * load(scales + LANES));
  }
}

template <int M>
static void dot_int4(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  const int n_blocks = m.n_blocks(), per_row = x.stride / GROUP, shift = m.scale_shift();
  const int scale_lines = m.scale_lines(), n_whole = m.n_groups() / (BLOCK / GROUP);
  for (int panel = 0; panel < 2; panel++) {
    Floats total[M];
    for (int r = 0; r < M; r++) total[r] = splat(0);
    for (int block = 0; block < n_blocks; block++) {
      const Ints zeros = load(reinterpret_cast<const uint32_t*>(unit));
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(unit + 64);
      for (int line = 0; line <= scale_lines; line++) prefetch(unit + PREFETCH + 64 * line);
      unit += 64 + 64 * scale_lines;
      auto add_group = [&](int g) __attribute__((always_inline)) {
        Ints low[4], high[4];
        GF_UNROLL
        for (int i = 0; i < 4; i++) {
          prefetch(unit + PREFETCH + 64 * i);
          Ints packed = load(reinterpret_cast<const uint32_t*>(unit + 64 * i));
          low[i] = low_nibbles(packed);
          high[i] = high_nibbles(packed);
        }
        Floats scale = load_bf16(scales + LANES * (g >> shift));
        Floats zero = to_floats(shift_right(zeros, 4 * g) & 15u);
        GF_UNROLL
        for (int r = 0; r < M; r++) {
          const int8_t* input = x.codes + static_cast<size_t>(r) * x.stride + block * BLOCK + g * GROUP;
          size_t group = static_cast<size_t>(r) * per_row + block * 8 + g;
          Ints sum = splat_int(0), sum_high = sum;
          GF_UNROLL
          for (int i = 0; i < 4; i++) {
            sum = dot(sum, low[i], quad(input + 8 * i));
            sum_high = dot_high(sum_high, high[i], quad(input + 8 * i + 4));
          }
          Floats product = to_floats(sum + sum_of_high(sum_high));
          Floats value = fms(product, splat(x.scales[group]), zero * splat(x.scaled_sums[group]));
          total[r] = fma(scale, value, total[r]);
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
    for (int r = 0; r < M; r++) store(y + UNIT * r + LANES * panel, total[r]);
  }
}

// A product of codes is scale * sum((code - c) x) + offset * sum(x): what is subtracted from codes joins the offset.
template <int BITS, bool LOOKS_UP, int M>
static void dot_grouped(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  constexpr bool IS_BIASED = BITS == 8 || LOOKS_UP;  // integers of a sign, in dots as integer + 128
  const GroupFormat& f = m.groups;
  const int n_blocks = m.n_blocks(), per_row = x.stride / GROUP, header = f.header_bytes();
  const bool is_halved = f.columns < GROUP;
  const Floats first = splat(LOOKS_UP ? 0 : BITS == 8 ? f.first + 128 : f.first);
  alignas(16) int8_t table[16];
  for (int i = 0; LOOKS_UP && i < 16; i++) table[i] = static_cast<int8_t>(f.integers[i] ^ -128);
  BlockParams params;
  for (int panel = 0; panel < 2; panel++) {
    Floats total[M];
    for (int r = 0; r < M; r++) total[r] = splat(0);
    for (int block = 0; block < n_blocks; block++) {
      for (int line = 0; line < header; line += 64) prefetch(unit + PREFETCH + line);
      load_params(f, unit, params);
      for (int p = 0; p < f.n_params(); p++) {
        const Floats zero = f.has_zeros ? first - load(params.zeros + LANES * p) : first;
        const Floats scaled = load(params.scales + LANES * p) * zero;
        store(params.offsets + LANES * p,
              f.offset_form == ScaleForm::NONE ? scaled : scaled + load(params.offsets + LANES * p));
      }
      unit += header;
      const int n_groups = std::min(BLOCK / GROUP, m.n_groups() - block * (BLOCK / GROUP));
      for (int g = 0; g < n_groups; g++, unit += 64 * BITS) {
        for (int line = 0; line < BITS; line++) prefetch(unit + PREFETCH + 64 * line);
        Ints codes[8];
        GF_UNROLL
        for (int q = 0; q < 8; q++) {
          codes[q] = code_quad<BITS>(unit, q);
          if constexpr (LOOKS_UP) codes[q] = lookup(table, codes[q]);
        }
        auto add = [&](int p, int r, int half, int end, float sum_of_x) __attribute__((always_inline)) {
          const int8_t* input = x.codes + static_cast<size_t>(r) * x.stride + block * BLOCK + g * GROUP;
          const size_t group = static_cast<size_t>(r) * per_row + block * 8 + g;
          const float scale_of_x = x.scales[group];
          Ints sum = splat_int(0);
          GF_UNROLL
          for (int q = half; q < end; q++)
            sum = IS_BIASED ? dot_biased(sum, codes[q], quad(input + 4 * q)) : dot(sum, codes[q], quad(input + 4 * q));
          Floats product = to_floats(sum) * splat(scale_of_x);
          if constexpr (IS_BIASED) product = product + splat(start_of_sum(sum_of_x));
          total[r] = fma(load(params.scales + LANES * p), product, total[r]);
          total[r] = fma(load(params.offsets + LANES * p), splat(sum_of_x), total[r]);
        };
        if (is_halved) {
          GF_UNROLL
          for (int r = 0; r < M; r++) {
            const float* sums = x.half_sums + 2 * (static_cast<size_t>(r) * per_row + block * 8 + g);
            add(2 * g, r, 0, 4, sums[0]);
            add(2 * g + 1, r, 4, 8, sums[1]);
          }
        } else {
          const int p = g * GROUP / f.columns;
          GF_UNROLL
          for (int r = 0; r < M; r++) add(p, r, 0, 8, x.scaled_sums[static_cast<size_t>(r) * per_row + block * 8 + g]);
        }
      }
    }
    for (int r = 0; r < M; r++) store(y + UNIT * r + LANES * panel, total[r]);
  }
}

#endif

// The same in floats, each weight rounded as its scheme says.
template <int M>
static void multiply_grouped(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  const GroupFormat& f = m.groups;
  BlockParams params;
  auto value = [&f](Ints code) __attribute__((always_inline)) {
    switch (f.values) {
      case CodeValues::CONSECUTIVE: return to_floats(code) + splat(f.first);
      case CodeValues::E4M3: return e4m3(code);
      default: return lookup(f.floats, code);
    }
  };
  for (int panel = 0; panel < 2; panel++) {
    Floats total[M];
    for (int r = 0; r < M; r++) total[r] = splat(0);
    for (int block = 0; block < m.n_blocks(); block++) {
      load_params(f, unit, params);
      unit += f.header_bytes();
      const int n_groups = std::min(BLOCK / GROUP, m.n_groups() - block * (BLOCK / GROUP));
      for (int g = 0; g < n_groups; g++, unit += 64 * f.bits) {
        for (int line = 0; line < f.bits; line++) prefetch(unit + PREFETCH + 64 * line);
        for (int q = 0; q < 8; q++) {
          const Ints codes = code_quad_of(f.bits, unit, q);
          const int column = block * BLOCK + g * GROUP + 4 * q, p = (g * GROUP + 4 * q) / f.columns;
          const Floats scale = load(params.scales + LANES * p);
          for (int i = 0; i < 4; i++) {
            Floats w = value(shift_right(codes, 8 * i) & 255u);
            if (f.has_zeros) w = w - load(params.zeros + LANES * p);
            w = w * scale;
            if (f.offset_form != ScaleForm::NONE) w = w + load(params.offsets + LANES * p);
            GF_UNROLL
            for (int r = 0; r < M; r++)
              total[r] = fma(w, splat(x.floats[static_cast<size_t>(r) * x.stride + column + i]), total[r]);
          }
        }
      }
    }
    for (int r = 0; r < M; r++) store(y + UNIT * r + LANES * panel, total[r]);
  }
}

#if defined(GF_AVX512)
#define GF_KERNELS(f) {f<1>, f<2>, f<3>, f<4>, f<5>, f<6>, f<7>, f<8>}
#else  // sums of more rows would not fit the registers
template <Kernel FOUR, Kernel OTHERS>
static void in_two(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
  FOUR(m, unit, x, y);
  OTHERS(m, unit, x.from(4), y + 4 * UNIT);
}
#define GF_KERNELS(f) \
  {f<1>, f<2>, f<3>, f<4>, in_two<f<4>, f<1>>, in_two<f<4>, f<2>>, in_two<f<4>, f<3>>, in_two<f<4>, f<4>>}
#endif

#if defined(GF_DOTS)

template <int BITS, bool LOOKS_UP>
struct GroupedDots {
  template <int M>
  static void dot(const Matrix& m, const uint8_t* unit, const Input& x, float* y) {
    dot_grouped<BITS, LOOKS_UP, M>(m, unit, x, y);
  }
  static Kernel kernel(int n_rows) {
    static const Kernel kernels[] = GF_KERNELS(dot);
    return kernels[n_rows - 1];
  }
};

inline Kernel grouped_dot(const GroupFormat& f, int n_rows) {
  if (f.values == CodeValues::INTEGERS) return GroupedDots<4, true>::kernel(n_rows);
  switch (f.bits) {
    case 2: return GroupedDots<2, false>::kernel(n_rows);
    case 3: return GroupedDots<3, false>::kernel(n_rows);
    case 4: return GroupedDots<4, false>::kernel(n_rows);
    case 5: return GroupedDots<5, false>::kernel(n_rows);
    case 6: return GroupedDots<6, false>::kernel(n_rows);
    default: return GroupedDots<8, false>::kernel(n_rows);
  }
}

#endif

// The kernel of a matrix for n_rows = 1 ... 8 input rows.
inline Kernel kernel(const Matrix& m, int n_rows) {
  static const Kernel f32[] = GF_KERNELS(multiply_f32), bf16[] = GF_KERNELS(multiply_bf16);
  static const Kernel int8[] = GF_KERNELS(multiply_int8), int4[] = GF_KERNELS(multiply_int4);
  static const Kernel grouped[] = GF_KERNELS(multiply_grouped);
#if defined(GF_BF16)
  static const Kernel bf16_dot[] = GF_KERNELS(dot_bf16);
  if (m.input_format == BFLOAT) return bf16_dot[n_rows - 1];
#endif
#if defined(GF_DOTS)
  static const Kernel int8_dot[] = GF_KERNELS(dot_int8), int4_dot[] = GF_KERNELS(dot_int4);
  if (m.input_format == CODES) {
    if (m.format == GROUPED) return grouped_dot(m.groups, n_rows);
    return (m.format == INT8 ? int8_dot : int4_dot)[n_rows - 1];
  }
#endif
  switch (m.format) {
    case F32: return f32[n_rows - 1];
    case BF16: return bf16[n_rows - 1];
    case INT8: return int8[n_rows - 1];
    case INT4: return int4[n_rows - 1];
    default: return grouped[n_rows - 1];
  }
}
