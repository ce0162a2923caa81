// What Python gives: a model's sizes once, and for each run its tokens and where their keys and values stand.
//
// library.py declares the same structures; their fields and order belong together.
#pragma once

#include <cstddef>
#include <cstdint>

struct Dimensions {
  int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size;
  float norm_eps;
  int cache_is_bf16;  // keys and values are computed in bfloat16, else float
  int cache_is_int8;  // and kept as codes
  int narrow;         // inputs may be bfloat16 or 8-bit codes, where the machine multiplies these
};

// Sums up what all ranks have of the residual stream, x[n_rows][stride] of which the first `dim` columns count, in place.
using Sum = void (*)(float* x, int n_rows, int stride);

// How a token is chosen from logits; the fields mean what they mean in decode/sampling.py.
struct Choice {
  float temperature;  // 0 takes the most probable token
  int top_k;          // 0: off
  double top_p, min_p;
};

// What a call is about; row r is one token.
struct Call {
  int n_rows;
  const int64_t* tokens;
  const int32_t* positions;  // in its sequence
  const int32_t* slots;      // its row of the cache; rows of one slot stand together, by position
  int n_outputs;
  const int32_t* outputs;  // rows whose logits are wanted
  float* logits;           // [n_outputs][vocab_size]
  void* const* keys;       // of each layer, [rows][kv_heads][capacity][head_dim], or codes
  void* const* values;
  void* const* key_scales;  // of codes, as the next two; cache.h
  void* const* value_scales;
  void* const* recent_keys;
  int capacity;                  // tokens
  const float *cosines, *sines;  // [positions][head_dim / 2]
};

// Steps that follow one another: the token that an output of the call chooses is the one that its sequence is fed next.
struct Ahead {
  int n_steps;
  const Choice* choices;   // [outputs]
  const double* uniforms;  // [n_steps][outputs], in [0, 1)
  int n_stops;
  const int64_t* stops;  // the first step that chooses one of these is the last
  int64_t* chosen;       // [n_steps][outputs]; `vocab_size` where a logit is no number, which is a last step too
  size_t logits_stride;  // from a step's logits to the next one's, in floats; 0 keeps those of the last step alone
};
