// The C interface: every structure, kind and status that crosses between Python and C++.
//
// library.py mirrors this file. When it loads the library it compares the size of each structure and the value of each
// constant with `gptfast_abi`; tests/backends/test_cpu_abi.py compares the names and the order of the fields.
#pragma once

#include <cstddef>
#include <cstdint>

// Returned in place of a count; library.py raises the last two.
enum Status { NO_EMBEDDING = -1, NO_MEMORY = -2, NO_THREADS = -3 };

// How the elements of a weight are stored.
enum class WeightKind : int { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, GROUPED };

// How the scales and offsets of a grouped weight are stored. An E8M0 byte is an exponent, of 2^-127 and up.
enum class ScaleForm : int { NONE, HALF, BF16, FLOAT, SIGNED, UNSIGNED, E4M3, E8M0 };

// What the codes of a grouped weight stand for: `first` and the integers after it, one of 16 integers, one of 16
// floats, or a float of 8 bits.
enum class CodeValues : int { CONSECUTIVE, INTEGERS, FLOATS, E4M3 };

// The matrices and norms of a layer; the head and the last norm are number 0 of the layer after the last.
enum MatrixRole { QKV, OUTPUT, GATE_UP, DOWN, N_MATRICES };
enum NormRole { ATTENTION_NORM, Q_NORM, K_NORM, ATTENTION_OUTPUT_NORM, FFN_NORM, FFN_OUTPUT_NORM, N_NORMS };

// That of the gate; the order is that of config.Activation.
enum class Activation : int { SILU, GELU_TANH };

// What queries and keys are normalized over, before they are rotated.
enum class QKNorm : int { NONE, HEAD, WIDTH };

// A layer of the rank's part of a model: config.LayerSpec.
struct LayerShape {
  int n_heads, n_kv_heads, head_dim, ffn_dim;
  int rotation, rotary_dim;  // the number of its rotation among those of a call, -1 for none; elements that it turns
  int window;                // keys that a query sees, its own among them; 0: all
  float score_scale, score_softcap;  // softcap 0: none, here and below
  float residual_scale;              // of what attention and the feed-forward add to their input
  float query_beta;                  // queries at position t are multiplied by 1 + beta ln(1 + t / query_context)
  int query_context;
  QKNorm qk_norm;
  Activation activation;
};

// Sizes of a model, and flags.
struct Dimensions {
  int n_layers, dim, vocab_size;
  const LayerShape* layers;  // [n_layers]; read while the engine is made
  float norm_eps, embedding_scale, logit_scale, logit_softcap;
  int cache_is_bf16;  // keys and values are computed in bfloat16, else float32
  int cache_is_int8;  // they are stored as int8 codes
  int narrow;         // inputs of products may be bfloat16 or 8-bit codes, where the CPU multiplies these
};

// The parts of a weight in the grouped scheme (schemes/grouped.py), each with the rows of the matrix.
struct Groups {
  int bits;       // of a code
  int size;       // columns of a group; a multiple of 16
  int n_groups;   // of a row
  int per_super;  // groups that share a super scale and a super offset
  int n_super;    // of a row
  CodeValues values;
  float first;       // the value of code 0, if they are consecutive
  float multiplier;  // of all scales
  ScaleForm scale_form, offset_form;
  const uint8_t* scales;          // [n_groups]
  const uint8_t* offsets;         // [n_groups], or null
  const uint8_t* zeros;           // [n_groups] zero points, or null
  const uint16_t* super_scales;   // [n_super] halves, or null
  const uint16_t* super_offsets;  // [n_super] halves, or null
  const float* floats;            // [16] values of the codes
  const int8_t* integers;         // [16]
};

// A weight matrix as its scheme stores it; the memory belongs to the caller.
struct WeightView {
  WeightKind kind;
  const void* values;      // elements, or codes
  const uint16_t* scales;  // bfloat16; null for floats
  const uint8_t* zeros;    // 4-bit zero points, two per byte; int4 only
  int n_rows, n_columns;
  int group;             // columns that share a scale and a zero point; 0 unless int4
  int interleaved;       // the rows are two halves, gate and up; each unit takes 16 rows of either
  const Groups* groups;  // grouped weights only
  const int32_t* order;  // the column that each element of a row belongs to; null: its own
};

// All-reduce over the ranks, in place: x[n_rows][stride], of which the first `n_columns` count.
using Sum = void (*)(float* x, int n_rows, int n_columns, int stride);

// Cosines and sines of a kind of rotary position embedding.
struct Rotation {
  const float *cosines, *sines;  // [positions][rotary_dim / 2]
};

// How a token is sampled from logits; the fields are those of engine/sampling.py.
struct SamplingParams {
  float temperature;  // 0: argmax
  int top_k;          // 0: off
  double top_p, min_p;
  float repetition_penalty;  // 1: off
  int n_seen;
  const int64_t* seen;  // [n_seen] tokens that are penalized, in any order, each once or more; null without a penalty
};

// Where the keys and values of a layer lie (kv_cache.h). Layers whose KV heads are alike share blocks.
struct LayerKV {
  void* const* blocks;   // [slots][n_blocks], those of each row of the cache, in order
  size_t layer_at;       // bytes from the start of a block to the heads of the layer
  size_t head_bytes;     // of a head in a block
  size_t values_at;      // bytes from the start of a head to its values, as the next two
  size_t key_scales_at;  // of an int8 cache, as all that follows
  size_t value_scales_at;
  void* recent_keys;  // [slots][kv_heads][2 KEY_BLOCK][head_dim]
};

// A batch of tokens and the KV cache; row r is one token.
struct Call {
  int n_rows;
  const int64_t* tokens;
  const int32_t* positions;  // in its sequence
  const int32_t* slots;      // its row of the cache; tokens of one slot are adjacent, in the order of positions
  int n_outputs;
  const int32_t* outputs;     // rows whose logits are wanted
  float* logits;              // [n_outputs][vocab_size]
  const LayerKV* kv;          // of each layer
  int n_blocks;               // of a row of the cache, at most
  const Rotation* rotations;  // by the numbers that layers have for them
};

// Decode steps in one call: the token that is sampled from an output is the next input of its sequence.
struct Ahead {
  int n_steps;
  const SamplingParams* params;  // [outputs]
  const double* uniforms;        // [n_steps][outputs], in [0, 1)
  int n_stops;
  const int64_t* stops;  // the first step that samples one of these is the last
  int64_t* chosen;       // [n_steps][outputs]; `vocab_size` where a logit is NaN or infinite, which ends the steps too
  size_t logits_stride;  // floats from the logits of one step to the next; 0 keeps only those of the last step
};

// A row of a speculative batch: its cache slot, and the text that it continues.
struct Row {
  int32_t slot, n_left;     // n_left: tokens that may still be generated, at least 1
  int32_t n_text, n_draft;  // tokens of the text, and of these in the draft's cache; the target's lacks the last one
  const int64_t* rest;      // [n_text - n_draft], the end of the text
  uint64_t seed, stream;    // of its uniform numbers
  SamplingParams params;
};

// Rounds of speculative decoding: inputs, then outputs.
struct Rounds {
  int n_rounds, draft_length, n_rows;
  // A round stops drafting once the sum of (1 - p) of the drafted tokens of every row exceeds this; infinity: never.
  // The last token is verified like any other, so that the distribution stays that of the target.
  double max_uncertainty;
  const Row* rows;
  const Call *target, *draft;  // the KV caches
  int n_stops;
  const int64_t* stops;             // a round that emits one of these is the last
  int64_t* tokens;                  // [n_rounds][n_rows][draft_length + 1]
  int32_t *n_drafted, *n_accepted;  // [n_rounds][n_rows]; a round emits n_accepted + 1 tokens
  double* overlaps;                 // [n_rounds][n_rows], sum of min(p, q) over the verified positions
  double* uncertainties;            // [n_rounds][n_rows], sum of (1 - p) over them; 0 where max_uncertainty is infinite
  int32_t* n_held;                  // [n_rows] tokens of its text in the draft's cache at the end
  double* seconds;                  // [3]: drafting, verification, sampling
};

// log(sum(exp(row))) and argmax of rows of logits.
struct LogsumexpArgmax {
  const float* logits;  // [n_rows][vocab_size]
  int n_rows, vocab_size;
  double* log_totals;  // [n_rows]; NaN where a logit is NaN or infinite
  int64_t* likeliest;  // [n_rows], the lowest of equals; `vocab_size` where a logit is NaN or infinite
};
