// Rows made ready for a matrix: normalized where that is wanted, and in the form that the matrix reads.
#pragma once

#include "matrix.h"

// Mean of the squares of a row.
inline float mean_square(const float* x, int n) {
  Floats squares = splat(0);
  int k = 0;
  for (; k + LANES <= n; k += LANES) squares = fma(load(x + k), load(x + k), squares);
  float rest = 0;
  for (; k < n; k++) rest += x[k] * x[k];
  return (sum(squares) + rest) / static_cast<float>(n);
}

// x times a factor and a weight; `to` may be x itself.
inline void scale_by(const float* x, const float* weight, int n, float scale, float* to) {
  for (int k = 0; k < n; k++) to[k] = x[k] * scale * weight[k];
}

// Root-mean-square norm (arXiv:1910.07467) of a row, of which `n` elements are there and `n_padded` are to be written;
// `to` may be x itself.
inline void normalize(const float* x, const float* weight, int n, float eps, float* to, int n_padded) {
  scale_by(x, weight, n, 1 / std::sqrt(mean_square(x, n) + eps), to);
  for (int k = n; k < n_padded; k++) to[k] = 0;
}

// Codes of 8 bits, nearest, with a scale for each 32 columns: the largest of them becomes 127.
inline void quantize(const float* x, int n, const Input& to) {
  for (int g = 0; g < n / GROUP; g++, x += GROUP) {
    Floats low = load(x), high = load(x + LANES);
    float largest = maximum(max(abs(low), abs(high)));
    float scale = largest / 127;
    Floats steps = splat(largest > 0 ? 127 / largest : 0);
    Ints low_codes = to_ints(low * steps), high_codes = to_ints(high * steps);
    store_int8(to.codes + g * GROUP, low_codes);
    store_int8(to.codes + g * GROUP + LANES, high_codes);
    const int low_total = sum(low_codes), total = low_total + sum(high_codes);
    to.half_sums[2 * g] = scale * static_cast<float>(low_total);
    to.half_sums[2 * g + 1] = scale * static_cast<float>(total - low_total);
    to.scales[g] = scale;
    to.scaled_sums[g] = scale * static_cast<float>(total);
    to.offsets[g] = -128 * total;
  }
}

// Write `n` elements of a row in the form that is wanted; x may be the row of floats itself.
inline void convert_input(const float* x, int n, InputFormat input_format, const Input& to) {
  switch (input_format) {
    case FLOAT:
      if (x != to.floats) memcpy(to.floats, x, sizeof(float) * static_cast<size_t>(n));
      return;
    case BFLOAT:
      for (int k = 0; k < n; k += LANES) store_bf16(to.bfloats + k, load(x + k));
      return;
    case CODES: return quantize(x, n, to);
  }
}
