// Transposition of 16 rows of 32-bit elements.
#pragma once

#include "simd.h"

#if defined(GF_AVX512)
// Transpose 16 rows of 16 elements.
inline void transpose_16x16(const uint32_t* from, size_t stride, uint32_t* to, size_t width) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    _mm512_storeu_si512(to + width * i, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_storeu_si512(to + width * (4 + i), _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_storeu_si512(to + width * (8 + i), _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_storeu_si512(to + width * (12 + i), _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}
#endif

// Transpose 16 rows of n elements: row j to to[0][j], to[1][j], ..., where rows of `to` are `width` apart.
inline void transpose(const uint32_t* from, size_t stride, int n, uint32_t* to, size_t width = LANES) {
  int column = 0;
#if defined(GF_AVX512)
  for (; column + 16 <= n; column += 16)
    transpose_16x16(from + column, stride, to + width * static_cast<size_t>(column), width);
#endif
  for (; column < n; column++)
    for (int row = 0; row < LANES; row++) to[width * static_cast<size_t>(column) + row] = from[row * stride + column];
}
