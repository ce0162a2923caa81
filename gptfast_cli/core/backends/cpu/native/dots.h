// Products of 8-bit integers, four to a lane, and lookups in small tables: what matrices of codes are made of.
//
// GF_DOTS says that the machine has products of integers; without it codes are multiplied as floats.
#pragma once

#include "simd.h"

#if defined(GF_VNNI) || defined(GF_AVX2)
#define GF_DOTS 1
#endif

#if defined(GF_VNNI)

// Four bytes in every lane.
GF_INLINE Ints quad(const int8_t* p) {
  int bits;
  memcpy(&bits, p, 4);
  return {_mm512_set1_epi32(bits)};
}
// total + codes * x, with codes of up to 7 bits.
GF_INLINE Ints dot(Ints total, Ints codes, Ints x) { return {_mm512_dpbusd_epi32(total.v, codes.v, x.v)}; }
// The same with integers of 8 bits, stored as integer + 128. Sums begin with `start_of` -128 times the sum of x,
// or `start_of_sum` is added to what becomes of them.
GF_INLINE Ints dot_biased(Ints total, Ints codes, Ints x) { return dot(total, codes, x); }
GF_INLINE Ints start_of(int offset) { return splat_int(offset); }
GF_INLINE float start_of_sum(float sum_of_x) { return -128 * sum_of_x; }
// High nibbles are multiplied unshifted, as 16 times the code, and the sum is shifted afterwards.
GF_INLINE Ints high_nibbles(Ints packed) { return packed & 0xf0f0f0f0u; }
GF_INLINE Ints dot_high(Ints total, Ints codes, Ints x) { return dot(total, codes, x); }
GF_INLINE Ints sum_of_high(Ints total) { return shift_right_signed(total, 4); }
GF_INLINE Ints lookup(const int8_t* table, Ints codes) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), codes.v)};
}

#elif defined(GF_AVX2)

GF_INLINE Ints quad(const int8_t* p) {
  int bits;
  memcpy(&bits, p, 4);
  __m256i x = _mm256_set1_epi32(bits);
  return {x, x};
}
GF_INLINE __m256i dot_half(__m256i total, __m256i codes, __m256i x) {
  return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}
GF_INLINE Ints dot(Ints total, Ints codes, Ints x) {
  return {dot_half(total.a, codes.a, x.a), dot_half(total.b, codes.b, x.b)};
}
// No sum of two products saturates: 2 * 128 * 127.
GF_INLINE __m256i dot_biased_half(__m256i total, __m256i codes, __m256i x) {
  const __m256i integers = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
  return dot_half(total, _mm256_abs_epi8(integers), _mm256_sign_epi8(x, integers));
}
GF_INLINE Ints dot_biased(Ints total, Ints codes, Ints x) {
  return {dot_biased_half(total.a, codes.a, x.a), dot_biased_half(total.b, codes.b, x.b)};
}
GF_INLINE Ints start_of(int) { return splat_int(0); }
GF_INLINE float start_of_sum(float) { return 0; }
GF_INLINE Ints high_nibbles(Ints packed) { return shift_right(packed, 4) & 0x0f0f0f0fu; }
GF_INLINE Ints dot_high(Ints total, Ints codes, Ints x) { return dot(total, codes, x); }
GF_INLINE Ints sum_of_high(Ints total) { return total; }
GF_INLINE Ints lookup(const int8_t* table, Ints codes) {
  __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(bytes, codes.a), _mm256_shuffle_epi8(bytes, codes.b)};
}

#endif

GF_INLINE Ints low_nibbles(Ints packed) { return packed & 0x0f0f0f0fu; }

// Sixteen bytes, halves or floats as floats.
#if defined(GF_AVX512)
GF_INLINE Floats load_half(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
GF_INLINE Ints load_u8(const void* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
GF_INLINE Ints load_i8(const void* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
// Codes of e4m3 (sign, 4 bits of exponent, 3 of fraction) by way of halves, whose exponents are 8 larger.
GF_INLINE Floats e4m3(Ints codes) {
  __m512i bits = _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(codes.v, _mm512_set1_epi32(128)), 8),
                                 _mm512_slli_epi32(_mm512_and_si512(codes.v, _mm512_set1_epi32(127)), 7));
  return Floats{_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits))} * splat(256);
}
// Elements of a table of 16 floats.
GF_INLINE Floats lookup(const float* table, Ints codes) {
  return {_mm512_permutexvar_ps(codes.v, _mm512_loadu_ps(table))};
}
#elif defined(GF_AVX2) && defined(__F16C__)
GF_INLINE Floats load_half(const void* p) {
  const __m128i* halves = (const __m128i*)p;
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
GF_INLINE Ints load_u8(const void* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + 8)))};
}
GF_INLINE Ints load_i8(const void* p) {
  const uint8_t* bytes = (const uint8_t*)p;
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)bytes)),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + 8)))};
}
GF_INLINE Floats e4m3(Ints codes) {
  const __m256i sign = _mm256_set1_epi32(128), rest = _mm256_set1_epi32(127);
  __m256i a = _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(codes.a, sign), 8),
                              _mm256_slli_epi32(_mm256_and_si256(codes.a, rest), 7));
  __m256i b = _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(codes.b, sign), 8),
                              _mm256_slli_epi32(_mm256_and_si256(codes.b, rest), 7));
  __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  return Floats{_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))} *
         splat(256);
}
GF_INLINE __m256 lookup_half(const float* table, __m256i codes) {
  __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
  __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), codes);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}
GF_INLINE Floats lookup(const float* table, Ints codes) {
  return {lookup_half(table, codes.a), lookup_half(table, codes.b)};
}
#else
GF_INLINE Ints load_u8(const void* p) {
  alignas(64) uint32_t lanes[LANES];
  for (int i = 0; i < LANES; i++) lanes[i] = static_cast<const uint8_t*>(p)[i];
  return load(lanes);
}
GF_INLINE Ints load_i8(const void* p) {
  alignas(64) uint32_t lanes[LANES];
  for (int i = 0; i < LANES; i++)
    lanes[i] = static_cast<uint32_t>(static_cast<int32_t>(static_cast<const int8_t*>(p)[i]));
  return load(lanes);
}
GF_INLINE Floats load_half(const void* p) {
  alignas(64) float lanes[LANES];
  for (int i = 0; i < LANES; i++) lanes[i] = half_to_float(static_cast<const uint16_t*>(p)[i]);
  return load(lanes);
}
GF_INLINE void to_lanes(Ints x, int32_t* lanes) { memcpy(lanes, &x, sizeof(int32_t) * LANES); }
GF_INLINE Floats e4m3(Ints codes) {
  alignas(64) int32_t lanes[LANES];
  alignas(64) float values[LANES];
  to_lanes(codes, lanes);
  for (int i = 0; i < LANES; i++)
    values[i] = 256 * half_to_float(static_cast<uint16_t>((lanes[i] & 128) << 8 | (lanes[i] & 127) << 7));
  return load(values);
}
GF_INLINE Floats lookup(const float* table, Ints codes) {
  alignas(64) int32_t lanes[LANES];
  alignas(64) float values[LANES];
  to_lanes(codes, lanes);
  for (int i = 0; i < LANES; i++) values[i] = table[lanes[i]];
  return load(values);
}
#endif
