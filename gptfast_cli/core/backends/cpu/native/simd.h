// Sixteen lanes of float or int32, whatever the machine has: one register of AVX-512, two of AVX2, else plain arrays.
//
// Every operation rounds once, and `fma` exactly once, so that a sum comes out the same wherever it is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define GF_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define GF_AVX2 1
#endif
#if defined(GF_AVX512) && defined(__AVX512VNNI__)
#define GF_VNNI 1
#endif
#if defined(GF_AVX512) && defined(__AVX512BF16__)
#define GF_BF16 1
#endif

#define GF_INLINE static inline __attribute__((always_inline))

#define GF_UNROLL _Pragma("GCC unroll 8")

constexpr int LANES = 16;

GF_INLINE float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

GF_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

GF_INLINE float bf16_to_float(uint16_t value) { return from_bits(static_cast<uint32_t>(value) << 16); }

// Rounds to nearest, ties to even, as PyTorch does; NaN is not expected.
GF_INLINE uint16_t float_to_bf16(float value) {
  uint32_t bits = to_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float half_to_float(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
  if (exponent == 0) {
    float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
  return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

GF_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }
GF_INLINE void prefetch_near(const void* address) { __builtin_prefetch(address, 0, 2); }  // past the smallest cache

#if defined(GF_AVX512)

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};

GF_INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
GF_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
GF_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
GF_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
GF_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
GF_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
GF_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
GF_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
GF_INLINE Floats fms(Floats a, Floats b, Floats c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
GF_INLINE Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
GF_INLINE Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
GF_INLINE Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
GF_INLINE Floats round(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
GF_INLINE float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }
GF_INLINE float maximum(Floats a) { return _mm512_reduce_max_ps(a.v); }
// The first n lanes of a, and `other` in the rest.
GF_INLINE Floats first(Floats a, int n, Floats other) {
  return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>((1u << n) - 1), a.v)};
}
GF_INLINE Ints to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }
GF_INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
GF_INLINE Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
GF_INLINE Ints load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
GF_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
GF_INLINE Ints splat_int(int x) { return {_mm512_set1_epi32(x)}; }
GF_INLINE Ints operator&(Ints a, uint32_t mask) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(mask)))};
}
GF_INLINE Ints shift_left(Ints a, int n) { return {_mm512_slli_epi32(a.v, n)}; }
GF_INLINE Ints shift_right(Ints a, int n) { return {_mm512_srli_epi32(a.v, n)}; }
GF_INLINE Ints shift_right_signed(Ints a, int n) { return {_mm512_srai_epi32(a.v, n)}; }
GF_INLINE Floats load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
#if defined(GF_BF16)
GF_INLINE void store_bf16(uint16_t* p, Floats x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x.v)); }
#else
GF_INLINE void store_bf16(uint16_t* p, Floats x) {
  __m512i bits = _mm512_castps_si512(x.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#endif
GF_INLINE void store_int8(int8_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x.v)); }
GF_INLINE int sum(Ints a) { return _mm512_reduce_add_epi32(a.v); }

#elif defined(GF_AVX2)

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};

GF_INLINE Floats splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
GF_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
GF_INLINE void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
GF_INLINE Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
GF_INLINE Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
GF_INLINE Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
GF_INLINE Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
GF_INLINE Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
GF_INLINE Floats fms(Floats x, Floats y, Floats z) {
  return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)};
}
GF_INLINE Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
GF_INLINE Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
GF_INLINE Floats abs(Floats x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
GF_INLINE Floats round(Floats x) {
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, NEAREST), _mm256_round_ps(x.b, NEAREST)};
}
GF_INLINE float sum(Floats x) {
  __m256 half = _mm256_add_ps(x.a, x.b);
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
GF_INLINE float maximum(Floats x) {
  __m256 half = _mm256_max_ps(x.a, x.b);
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}
GF_INLINE Floats first(Floats x, int n, Floats other) {
  __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
  __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lanes));
  return {_mm256_blendv_ps(other.a, x.a, a), _mm256_blendv_ps(other.b, x.b, b)};
}
GF_INLINE Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
GF_INLINE Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
GF_INLINE Floats as_floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
GF_INLINE Ints load(const uint32_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 8))};
}
GF_INLINE Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
GF_INLINE Ints splat_int(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
GF_INLINE Ints operator&(Ints x, uint32_t mask) {
  __m256i wide = _mm256_set1_epi32(static_cast<int>(mask));
  return {_mm256_and_si256(x.a, wide), _mm256_and_si256(x.b, wide)};
}
GF_INLINE Ints shift_left(Ints x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
GF_INLINE Ints shift_right(Ints x, int n) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
GF_INLINE Ints shift_right_signed(Ints x, int n) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
GF_INLINE Floats load_bf16(const uint16_t* p) {
  __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  __m256i b = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + 8)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
GF_INLINE void store_bf16(uint16_t* p, Floats x) {
  alignas(64) float lanes[LANES];
  store(lanes, x);
  for (int i = 0; i < LANES; i++) p[i] = float_to_bf16(lanes[i]);
}
GF_INLINE void store_int8(int8_t* p, Ints x) {
  alignas(64) int32_t lanes[LANES];
  _mm256_store_si256((__m256i*)lanes, x.a);
  _mm256_store_si256((__m256i*)(lanes + 8), x.b);
  for (int i = 0; i < LANES; i++) p[i] = static_cast<int8_t>(lanes[i]);
}
GF_INLINE int sum(Ints x) {
  alignas(64) int32_t lanes[8];
  _mm256_store_si256((__m256i*)lanes, _mm256_add_epi32(x.a, x.b));
  int total = 0;
  for (int lane : lanes) total += lane;
  return total;
}

#else

struct Floats {
  float v[LANES];
};
struct Ints {
  int32_t v[LANES];
};

#define GF_EACH(Type, expression)                        \
  Type r;                                                \
  for (int i = 0; i < LANES; i++) r.v[i] = (expression); \
  return r

GF_INLINE Floats splat(float x) { GF_EACH(Floats, x); }
GF_INLINE Floats load(const float* p) { GF_EACH(Floats, p[i]); }
GF_INLINE void store(float* p, Floats x) { memcpy(p, x.v, sizeof x.v); }
GF_INLINE Floats operator+(Floats a, Floats b) { GF_EACH(Floats, a.v[i] + b.v[i]); }
GF_INLINE Floats operator-(Floats a, Floats b) { GF_EACH(Floats, a.v[i] - b.v[i]); }
GF_INLINE Floats operator*(Floats a, Floats b) { GF_EACH(Floats, a.v[i] * b.v[i]); }
GF_INLINE Floats operator/(Floats a, Floats b) { GF_EACH(Floats, a.v[i] / b.v[i]); }
#if defined(__FP_FAST_FMAF)
GF_INLINE Floats fma(Floats a, Floats b, Floats c) { GF_EACH(Floats, __builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
#else  // a call of the library for each would be a hundred times as slow; two roundings are as deterministic
GF_INLINE Floats fma(Floats a, Floats b, Floats c) { GF_EACH(Floats, a.v[i] * b.v[i] + c.v[i]); }
#endif
GF_INLINE Floats max(Floats a, Floats b) { GF_EACH(Floats, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
GF_INLINE Floats min(Floats a, Floats b) { GF_EACH(Floats, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
GF_INLINE Floats abs(Floats a) { GF_EACH(Floats, __builtin_fabsf(a.v[i])); }
GF_INLINE Floats round(Floats a) { GF_EACH(Floats, __builtin_nearbyintf(a.v[i])); }
GF_INLINE float sum(Floats a) {
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
GF_INLINE float maximum(Floats a) {
  for (int i = 1; i < LANES; i++) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}
GF_INLINE Floats first(Floats a, int n, Floats other) { GF_EACH(Floats, i < n ? a.v[i] : other.v[i]); }
GF_INLINE Ints to_ints(Floats a) { GF_EACH(Ints, static_cast<int32_t>(__builtin_nearbyintf(a.v[i]))); }
GF_INLINE Floats to_floats(Ints a) { GF_EACH(Floats, static_cast<float>(a.v[i])); }
GF_INLINE Floats as_floats(Ints a) { GF_EACH(Floats, from_bits(static_cast<uint32_t>(a.v[i]))); }
GF_INLINE Ints load(const uint32_t* p) { GF_EACH(Ints, static_cast<int32_t>(p[i])); }
GF_INLINE Ints operator+(Ints a, Ints b) { GF_EACH(Ints, a.v[i] + b.v[i]); }
GF_INLINE Ints splat_int(int x) { GF_EACH(Ints, x); }
GF_INLINE Ints operator&(Ints a, uint32_t mask) {
  GF_EACH(Ints, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) & mask));
}
GF_INLINE Ints shift_left(Ints a, int n) { GF_EACH(Ints, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n)); }
GF_INLINE Ints shift_right(Ints a, int n) { GF_EACH(Ints, static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n)); }
GF_INLINE Ints shift_right_signed(Ints a, int n) { GF_EACH(Ints, a.v[i] >> n); }
GF_INLINE Floats load_bf16(const uint16_t* p) { GF_EACH(Floats, bf16_to_float(p[i])); }
GF_INLINE void store_bf16(uint16_t* p, Floats x) {
  for (int i = 0; i < LANES; i++) p[i] = float_to_bf16(x.v[i]);
}
GF_INLINE void store_int8(int8_t* p, Ints x) {
  for (int i = 0; i < LANES; i++) p[i] = static_cast<int8_t>(x.v[i]);
}
GF_INLINE int sum(Ints a) {
  int total = 0;
  for (int lane : a.v) total += lane;
  return total;
}

#endif

// e^x to about 1e-7 of itself; 0 from -87 down.
GF_INLINE Floats exp(Floats x) {
  Floats bounded = max(min(x, splat(88.0f)), splat(-87.0f));
  Floats n = round(bounded * splat(1.44269504f));
  Floats r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    p = fma(p, r, splat(c));
  return p * as_floats(shift_left(to_ints(n) + splat_int(127), 23));
}
