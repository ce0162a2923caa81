// Elementwise functions: activations and the soft cap, all by `exp`, so that they round alike on every machine.
#pragma once

#include "abi.h"
#include "simd.h"

// x / (1 + exp(-x)).
GF_INLINE Floats silu(Floats x) { return x / (splat(1) + exp(splat(0) - x)); }

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3) (arXiv:1606.08415).
GF_INLINE Floats gelu_tanh(Floats x) {
  const Floats u = splat(0.7978845608028654f) * fma(splat(0.044715f) * x * x, x, x);
  return x / (splat(1) + exp(splat(-2) * u));
}

GF_INLINE Floats activate(Floats x, Activation activation) {
  return activation == Activation::SILU ? silu(x) : gelu_tanh(x);
}

// cap * tanh(x / cap) (arXiv:2408.00118).
GF_INLINE Floats softcapped(Floats x, float cap) {
  return splat(cap) - splat(2 * cap) / (splat(1) + exp(splat(2 / cap) * x));
}
