// A decoder's whole step as one native call: all layers and the head, for any number of tokens of any rows of the
// cache.
//
// Threads go through the phases of a layer together: norm and form of the input, query/key/value, rotation and cache,
// attention, output, gate and up, down; its shape says what else there is to do. A thread takes the units of its own
// share of a matrix first, in order, and then helps the others with theirs. (Longer than other files: the phases of a
// layer read best in one place.)
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "abi.h"
#include "arena.h"
#include "attention_schedule.h"
#include "functions.h"
#include "input.h"
#include "matrix.h"
#include "pack.h"
#include "pool.h"
#include "products.h"
#include "sampling.h"

constexpr int MOST_ROWS = KEY_BLOCK;  // tokens per pass through the layers; a longer prompt takes several passes
// Bytes of the activations of a pass; wide models take fewer tokens per pass.
constexpr size_t MOST_SCRATCH = size_t{256} << 20;

struct Layer {
  LayerShape shape;
  size_t attention;  // number of the schedule of its attention, which layers share whose attention is alike
  Linear matrices[N_MATRICES];
  const float* norms[N_NORMS] = {};  // null where it has none
};

// What run_ahead records for a draft model.
struct Drafting {
  Sampler* distributions;  // [n_steps][outputs], the draft distribution of each token
  double max_uncertainty;  // the steps end once the sum of uncertainties of every output exceeds this
  double* uncertainties;   // [n_steps][outputs], 1 - p of each token; may be null
};

class Engine {
 public:
  Engine(const Dimensions& d, int n_threads)
      : d_(d),
        stride_(round_up(widest(d, [](const LayerShape& s) { return std::max(s.ffn_dim, s.n_heads * s.head_dim); }),
                         BLOCK)),
        qkv_stride_(round_up(widest(d, [](const LayerShape& s) { return qkv_heads(s) * s.head_dim; }), UNIT)),
        query_floats_(widest(d, [](const LayerShape& s) { return s.n_heads * s.head_dim; })),
        layers_(static_cast<size_t>(d.n_layers)),
        shared_pool_(shared_pool(n_threads)),
        pool_(*shared_pool_),
        counters_(static_cast<size_t>(d.n_layers + 1) * N_MATRICES * static_cast<size_t>(n_threads)),
        own_memory_(static_cast<size_t>(n_threads)),
        reordered_(static_cast<size_t>(n_threads)),
        samplers_(static_cast<size_t>(n_threads)) {
    for (Buffer& memory : own_memory_) own_.push_back(input(1, memory));
    for (Buffer& memory : reordered_) memory.renew(static_cast<size_t>(stride_));
    for (size_t n = 0; n < layers_.size(); n++) {
      const LayerShape& s = layers_[n].shape = d.layers[n];
      const Heads heads{s.n_heads, s.n_kv_heads,  s.head_dim,     d.cache_is_bf16 != 0, d.cache_is_int8 != 0,
                        s.window,  s.score_scale, s.score_softcap};
      size_t& number = layers_[n].attention;
      while (number < attentions_.size() && !(attentions_[number]->heads() == heads)) number++;
      if (number == attentions_.size()) attentions_.push_back(std::make_unique<AttentionSchedule>(heads, n_threads));
    }
  }

  // The rows of `views`, one below the other. Throws bad_alloc, as all methods below that allocate.
  void set_matrix(int layer, int role, const WeightView* views, int n_views, const float* bias) {
    Linear& linear = layer == d_.n_layers ? head_ : layers_[static_cast<size_t>(layer)].matrices[role];
    linear.parts.clear();
    for (const WeightView* view = views; view < views + n_views; view++) {
      linear.parts.push_back(packed(*view, bias));
      if (bias != nullptr) bias += view->n_rows;
    }
  }

  void set_norm(int layer, int role, const float* weight) {
    const size_t n = static_cast<size_t>(layer == d_.n_layers ? d_.dim : norm_width(layer, role));
    float* kept = floats(n);
    memcpy(kept, weight, sizeof(float) * n);
    if (layer == d_.n_layers) norm_ = kept;
    else layers_[static_cast<size_t>(layer)].norms[role] = kept;
  }

  void set_embedding(const WeightView& view) { embedding_ = view; }

  // The engine has a part of a model, whose other parts are elsewhere; `is_first` has the residual stream.
  void set_sum(Sum sum, bool is_first, int n_ranks) { sum_ = sum, is_first_ = is_first, n_ranks_ = n_ranks; }

  int vocab_size() const { return d_.vocab_size; }

  Pool& pool() { return pool_; }

  // False where a token has no row in the embedding, before anything is read or written.
  bool run(const Call& call) {
    for (int row = 0; row < call.n_rows; row++)
      if (call.tokens[row] < 0 || call.tokens[row] >= embedding_.n_rows) return false;
    const int most = most_rows();
    for (int first = 0; first < call.n_rows; first += most) {
      Call piece = call;
      piece.n_rows = std::min(most, call.n_rows - first);
      reserve(piece.n_rows);
      piece.tokens += first, piece.positions += first, piece.slots += first;
      wanted_.clear();
      for (int i = 0; i < call.n_outputs; i++)
        if (call.outputs[i] >= first && call.outputs[i] < first + piece.n_rows)
          wanted_.push_back({i, call.outputs[i] - first});
      keep_wanted_rows();
      call_ = &piece, n_rows_ = piece.n_rows;
      completing_.clear();
      for (int row = 0; d_.cache_is_int8 && row < piece.n_rows; row++)
        if ((piece.positions[row] + 1) % KEY_BLOCK == 0) completing_.push_back(row);
      for (auto& attention : attentions_) attention->plan(piece);
      for (Flag& counter : counters_) counter.value.store(0, std::memory_order_relaxed);
      pool_.run([](void* engine, int thread) { static_cast<Engine*>(engine)->step(thread); }, this);
    }
    return true;
  }

  // A call, and then steps of one token for each of its outputs, until there have been as many as wanted or one is the
  // last; returns how many, or NO_EMBEDDING.
  int run_ahead(const Call& call, const Ahead& ahead, Drafting drafting = {}) {
    const size_t n = static_cast<size_t>(call.n_outputs);
    std::vector<int64_t> tokens(n);
    std::vector<int32_t> positions(n), slots(n), outputs(n);
    std::vector<double> uncertainties(n);
    std::vector<GrowingParams> texts(ahead.params, ahead.params + n);
    std::vector<SamplingParams> params(n);
    for (size_t i = 0; i < n; i++) {
      positions[i] = call.positions[call.outputs[i]], slots[i] = call.slots[call.outputs[i]];
      outputs[i] = static_cast<int32_t>(i);
    }
    struct Ending {
      Sampling& sampling;
      ~Ending() { sampling = {}; }
    } ending{sampling_};
    Call step = call;
    bool is_last = false;
    int n_done = 0;
    for (; n_done < ahead.n_steps && !is_last; n_done++) {
      for (size_t i = 0; i < n; i++) params[i] = texts[i].params();
      sampling_ = {params.data(), ahead.uniforms + n * n_done, ahead.chosen + n * n_done, drafting.distributions,
                   drafting.uncertainties};
      if (drafting.distributions != nullptr) drafting.distributions += n;
      if (drafting.uncertainties != nullptr) drafting.uncertainties += n;
      if (!run(step)) return NO_EMBEDDING;
      for (size_t i = 0; i < n; i++) {
        tokens[i] = sampling_.chosen[i], positions[i]++;
        texts[i].add(tokens[i]);
        is_last = is_last || tokens[i] == d_.vocab_size ||
                  std::find(ahead.stops, ahead.stops + ahead.n_stops, tokens[i]) != ahead.stops + ahead.n_stops;
      }
      if (sampling_.uncertainties != nullptr) {
        for (size_t i = 0; i < n; i++) uncertainties[i] += sampling_.uncertainties[i];
        is_last = is_last || *std::min_element(uncertainties.begin(), uncertainties.end()) > drafting.max_uncertainty;
      }
      step.n_rows = call.n_outputs, step.tokens = tokens.data(), step.positions = positions.data();
      step.slots = slots.data(), step.outputs = outputs.data();
      step.logits += ahead.logits_stride;
    }
    return n_done;
  }

 private:
  struct Sampling {  // of a step's outputs; nothing where logits alone are wanted
    const SamplingParams* params;
    const double* uniforms;
    int64_t* chosen;
    Sampler* distributions;  // of the outputs, or none
    double* uncertainties;   // of the outputs, or none
  };
  struct Packing {
    const WeightView* view;
    const Matrix* matrix;
    Engine* engine;
  };
  struct Wanted {
    int output, row;
  };

  // A matrix in the form that kernels read.
  Matrix packed(const WeightView& view, const float* bias) {
    Matrix m;
    m.n_rows = view.n_rows, m.n_columns = view.n_columns, m.group = view.group ? view.group : BLOCK;
    m.format = format_of(view, d_.narrow != 0);
    m.input_format = input_format_of(m.format, d_.narrow != 0);
    if (m.format == GROUPED) {
      m.groups = group_format(*view.groups);
      const bool are_floats = m.groups.values == CodeValues::FLOATS || m.groups.values == CodeValues::E4M3;
      if (are_floats) m.input_format = FLOAT;
    }
    if (view.order != nullptr) {
      orders_.emplace_back(view.order, view.order + view.n_columns);
      m.order = orders_.back().data();
    }
    m.unit_bytes = bytes_of_unit(m);
    const int n_units = view.interleaved ? (view.n_rows / 2 + LANES - 1) / LANES : m.n_units();
    m.n_rows = n_units * UNIT;
    m.units = arena_.take(m.bytes());
    if (m.units == nullptr) throw std::bad_alloc();
    if (bias != nullptr) m.bias = ordered(view, bias, n_units);
    Packing packing{&view, &m, this};
    pool_.run(
        [](void* argument, int thread) {
          auto& p = *static_cast<Packing*>(argument);
          Pool& pool = p.engine->pool_;
          pool.attempt([&] {
            for (int unit = thread; unit < p.matrix->n_units(); unit += pool.n_active())
              pack_unit(*p.view, *p.matrix, unit);
          });
          pool.barrier(thread, false);
        },
        &packing);
    return m;
  }

  // The rows that go on after the last attention are those whose logits are wanted; from here on by their number there.
  void keep_wanted_rows() {
    wanted_rows_.clear();
    for (const Wanted& each : wanted_) wanted_rows_.push_back(each.row);
    std::sort(wanted_rows_.begin(), wanted_rows_.end());
    wanted_rows_.erase(std::unique(wanted_rows_.begin(), wanted_rows_.end()), wanted_rows_.end());
    for (Wanted& each : wanted_)
      each.row =
          static_cast<int>(std::lower_bound(wanted_rows_.begin(), wanted_rows_.end(), each.row) - wanted_rows_.begin());
  }

  // The largest of the layers' sizes, and of `dim`.
  template <class Size>
  static int widest(const Dimensions& d, const Size& size) {
    int most = d.dim;
    for (int n = 0; n < d.n_layers; n++) most = std::max(most, size(d.layers[n]));
    return most;
  }

  static int qkv_heads(const LayerShape& s) { return s.n_heads + 2 * s.n_kv_heads; }

  // Elements of a norm's weight.
  int norm_width(int layer, int role) const {
    const LayerShape& s = layers_[static_cast<size_t>(layer)].shape;
    if (role != Q_NORM && role != K_NORM) return d_.dim;
    return s.head_dim * (s.qk_norm == QKNorm::HEAD ? 1 : role == Q_NORM ? s.n_heads : s.n_kv_heads);
  }

  // Scratch of a row, in floats, that all threads share: its buffers and its input.
  size_t row_floats() const {
    return 4 * static_cast<size_t>(stride_) + static_cast<size_t>(qkv_stride_) + static_cast<size_t>(query_floats_) +
           input_floats(1);
  }

  // Tokens that go through the layers at once. Ranks that sum up what all have must take the same pieces.
  int most_rows() const {
    if (sum_ != nullptr) return MOST_ROWS;
    const size_t n_fitting = MOST_SCRATCH / (sizeof(float) * row_floats());
    return static_cast<int>(std::clamp(n_fitting, size_t{1}, static_cast<size_t>(MOST_ROWS)));
  }

  // Have scratch for so many rows; what it held is lost.
  void reserve(int n_rows) {
    if (n_rows <= n_reserved_) return;
    n_reserved_ = 0;
    int n = 1;
    while (n < n_rows) n *= 2;
    n = std::min(n, most_rows());
    const size_t rows = static_cast<size_t>(n), stride = static_cast<size_t>(stride_);
    x_.renew(rows * stride);
    qkv_.renew(rows * static_cast<size_t>(qkv_stride_));
    queries_.renew(rows * static_cast<size_t>(query_floats_));
    squares_.renew(rows * 2);
    heads_out_.renew(rows * stride);
    hidden_.renew(rows * stride);
    product_.renew(rows * stride);
    shared_ = input(n, shared_memory_);
    n_reserved_ = n;
  }

  float* floats(size_t n) {
    buffers_.push_back(std::make_unique<Buffer>(n));
    return buffers_.back()->data;
  }

  // Floats that rows of input take: themselves, bfloat16, codes, and five numbers for each group, on whole lines.
  size_t input_floats(int n_rows) const {
    const size_t n = static_cast<size_t>(n_rows) * static_cast<size_t>(stride_);
    return n + n / 2 + n / 4 + 3 * whole_lines(n / GROUP) + whole_lines(2 * n / GROUP);
  }

  static size_t whole_lines(size_t n_floats) { return (n_floats + 15) & ~size_t{15}; }

  // Rows of input in memory that is taken for them.
  Input input(int n_rows, Buffer& memory) {
    const size_t n = static_cast<size_t>(n_rows) * static_cast<size_t>(stride_);
    memory.renew(input_floats(n_rows));
    Input made;
    made.floats = memory.data;
    made.bfloats = reinterpret_cast<uint16_t*>(made.floats + n);
    made.codes = reinterpret_cast<int8_t*>(made.floats + n + n / 2);
    made.scales = made.floats + n + n / 2 + n / 4;
    made.scaled_sums = made.scales + whole_lines(n / GROUP);
    made.half_sums = made.scaled_sums + whole_lines(n / GROUP);
    made.offsets = reinterpret_cast<int32_t*>(made.half_sums + whole_lines(2 * n / GROUP));
    made.stride = stride_;
    return made;
  }

  // A bias in the order of the units' rows.
  const float* ordered(const WeightView& view, const float* bias, int n_units) {
    float* kept = floats(static_cast<size_t>(n_units) * UNIT);
    for (int unit = 0; unit < n_units; unit++)
      for (int lane = 0; lane < UNIT; lane++)
        if (int row = stored_row(view, unit, lane); row >= 0) kept[unit * UNIT + lane] = bias[row];
    return kept;
  }

  void step(int thread) {
    const int n_rows = call_->n_rows;
    const bool chooses = sampling_.params != nullptr;  // after a last barrier the caller may be at its next call
    for (int row = thread; row < n_rows; row += pool_.n_active()) {
      float* x = x_.data + static_cast<size_t>(row) * stride_;
      read_row(embedding_, static_cast<int>(call_->tokens[row]), x);
      if (d_.embedding_scale != 1)
        for (int k = 0; k < d_.dim; k++) x[k] *= d_.embedding_scale;
    }
    if (thread == 0)
      for (auto& attention : attentions_) attention->assign(pool_.n_active());
    pool_.barrier(thread);
    for (int layer = 0; layer < d_.n_layers; layer++) {
      store_kv(layer, thread);
      if (layer == d_.n_layers - 1 && wanted_.empty()) break;
      attention(layer, thread), feed_forward(layer, thread);
    }
    if (!wanted_.empty()) head(thread);
    pool_.barrier(thread);
    if (!chooses) return;
    for (size_t i = static_cast<size_t>(thread); i < wanted_.size(); i += static_cast<size_t>(pool_.n_active()))
      pool_.attempt([&] { sample(static_cast<size_t>(wanted_[i].output), thread); });
    pool_.barrier(thread, false);
  }

  void sample(size_t output, int thread) {
    float* logits = call_->logits + output * static_cast<size_t>(d_.vocab_size);
    const SamplingParams& params = sampling_.params[output];
    const Penalized penalized(logits, params);
    const double uniform = sampling_.uniforms[output];
    const bool keeps_distribution = sampling_.distributions != nullptr;
    Sampler& sampler = keeps_distribution ? sampling_.distributions[output] : samplers_[static_cast<size_t>(thread)];
    const int token = keeps_distribution ? sampler.sample_and_keep(logits, d_.vocab_size, params, uniform)
                                         : sampler.sample(logits, d_.vocab_size, params, uniform);
    sampling_.chosen[output] = token;
    if (sampling_.uncertainties != nullptr)
      sampling_.uncertainties[output] = token == d_.vocab_size ? 1 : 1 - sampler.confidence(token);
  }

  // Queries, keys and values of all rows, of which the latter two go to the cache.
  void store_kv(int index, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const Linear& qkv = layer.matrices[QKV];
    const Input ready = prepare(x_.data, layer.norms[ATTENTION_NORM], qkv, thread);
    multiply(qkv, ready, n_rows_, index, QKV, thread, [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++)
        memcpy(qkv_.data + static_cast<size_t>(first + r) * qkv_stride_ + unit * UNIT, y + UNIT * r,
               sizeof(float) * UNIT);
    });
    pool_.barrier(thread);
    if (layer.shape.qk_norm == QKNorm::WIDTH) sum_squares(layer.shape, thread);
    rope_and_store_kv(index, thread);
    pool_.barrier(thread);
    if (!completing_.empty()) {
      complete_blocks(index, thread);
      pool_.barrier(thread);
    }
  }

  void attention(int index, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    attentions_[layer.attention]->run(index, queries_.data, heads_out_.data, stride_, pool_, thread);
    pool_.barrier(thread);
    if (index == d_.n_layers - 1 && static_cast<int>(wanted_rows_.size()) < call_->n_rows) {
      if (thread == 0) move_wanted_rows();
      pool_.barrier(thread);
    }
    add(index, OUTPUT, heads_out_.data, layer.norms[ATTENTION_OUTPUT_NORM], thread);
  }

  void move_wanted_rows() {
    n_rows_ = static_cast<int>(wanted_rows_.size());
    for (int to = 0; to < n_rows_; to++)
      for (float* rows : {x_.data, heads_out_.data})
        std::copy_n(rows + static_cast<size_t>(wanted_rows_[static_cast<size_t>(to)]) * stride_, stride_,
                    rows + static_cast<size_t>(to) * stride_);
  }

  void feed_forward(int index, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const Linear& gate_up = layer.matrices[GATE_UP];
    const Activation activation = layer.shape.activation;
    const Input ready = prepare(x_.data, layer.norms[FFN_NORM], gate_up, thread);
    multiply(gate_up, ready, n_rows_, index, GATE_UP, thread, [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++)
        store(hidden_.data + static_cast<size_t>(first + r) * stride_ + unit * LANES,
              activate(load(y + UNIT * r), activation) * load(y + UNIT * r + LANES));
    });
    pool_.barrier(thread);
    add(index, DOWN, hidden_.data, layer.norms[FFN_OUTPUT_NORM], thread);
  }

  // Add the product of `from` to x, normalized first where there is a norm.
  void add(int index, MatrixRole role, const float* from, const float* norm, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const Linear& matrix = layer.matrices[role];
    const float scale = layer.shape.residual_scale;
    const Floats factor = splat(norm == nullptr ? scale : 1);
    const bool is_added = norm == nullptr && is_first_;
    float* to = norm == nullptr ? x_.data : product_.data;
    const Input ready = prepare(from, nullptr, matrix, thread);
    multiply(matrix, ready, n_rows_, index, role, thread, [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++) {
        float* row = to + static_cast<size_t>(first + r) * stride_ + unit * UNIT;
        for (int k = 0; k < UNIT; k += LANES)
          store(row + k, fma(load(y + UNIT * r + k), factor, is_added ? load(row + k) : splat(0)));
      }
    });
    pool_.barrier(thread);
    sum(to, d_.dim, stride_, thread);
    if (norm == nullptr) return;
    for (int r = thread; r < n_rows_; r += pool_.n_active()) {
      float *x = x_.data + static_cast<size_t>(r) * stride_, *y = to + static_cast<size_t>(r) * stride_;
      normalize(y, norm, d_.dim, d_.norm_eps, y, d_.dim);
      for (int k = 0; k < d_.dim; k++) x[k] += scale * y[k];
    }
    pool_.barrier(thread);
  }

  // All-reduce over the ranks, on the thread that Python called.
  void sum(float* x, int n_columns, int stride, int thread) {
    if (sum_ == nullptr) return;
    if (thread == 0) sum_(x, n_rows_, n_columns, stride);
    pool_.barrier(thread, false);
  }

  // Of each row, the means of the squares of all queries and of all keys.
  void sum_squares(const LayerShape& shape, int thread) {
    const int q_dim = shape.n_heads * shape.head_dim, kv_dim = shape.n_kv_heads * shape.head_dim;
    for (int r = thread; r < n_rows_; r += pool_.n_active()) {
      const float* row = qkv_.data + static_cast<size_t>(r) * qkv_stride_;
      squares_.data[2 * r] = mean_square(row, q_dim) / static_cast<float>(n_ranks_);
      squares_.data[2 * r + 1] = mean_square(row + q_dim, kv_dim) / static_cast<float>(n_ranks_);
    }
    pool_.barrier(thread);
    sum(squares_.data, 2, 2, thread);
  }

  void head(int thread) {
    const int n = static_cast<int>(wanted_.size());
    for (int i = thread; i < n; i += pool_.n_active()) {
      prepare_row(x_.data + static_cast<size_t>(wanted_[static_cast<size_t>(i)].row) * stride_, norm_, head_,
                  shared_.from(i), thread);
    }
    pool_.barrier(thread);
    multiply(head_, shared_, n, d_.n_layers, 0, thread, [&](int unit, int first, int n_here, const float* y) {
      const int n_columns = std::min(UNIT, d_.vocab_size - unit * UNIT);
      for (int r = 0; r < n_here; r++) {
        size_t output = static_cast<size_t>(wanted_[static_cast<size_t>(first + r)].output);
        float* logits = call_->logits + output * static_cast<size_t>(d_.vocab_size) + unit * UNIT;
        alignas(64) float shaped[UNIT];
        for (int k = 0; k < UNIT; k += LANES) {
          const Floats scaled = load(y + UNIT * r + k) * splat(d_.logit_scale);
          store(shaped + k, d_.logit_softcap > 0 ? softcapped(scaled, d_.logit_softcap) : scaled);
        }
        memcpy(logits, shaped, sizeof(float) * static_cast<size_t>(n_columns));
      }
    });
  }

  // The rows in the form that a matrix wants. A single row every thread makes ready for itself, which saves a barrier.
  Input prepare(const float* from, const float* norm, const Linear& linear, int thread) {
    auto row = [&](int r, const Input& to) {
      prepare_row(from + static_cast<size_t>(r) * stride_, norm, linear, to, thread);
    };
    if (n_rows_ == 1) {
      row(0, own_[static_cast<size_t>(thread)]);
      return own_[static_cast<size_t>(thread)];
    }
    for (int r = thread; r < n_rows_; r += pool_.n_active()) row(r, shared_.from(r));
    pool_.barrier(thread);
    return shared_;
  }

  // A row, normalized where there is a norm, in each form that a part of a matrix wants.
  void prepare_row(const float* x, const float* norm, const Linear& linear, const Input& to, int thread) {
    const int n_padded = linear.n_padded();
    if (norm != nullptr) {
      normalize(x, norm, linear.n_columns(), d_.norm_eps, to.floats, n_padded);
      x = to.floats;
    }
    if (linear.order() != nullptr) {
      float* reordered = reordered_[static_cast<size_t>(thread)].data;
      for (int k = 0; k < linear.n_columns(); k++) reordered[k] = x[linear.order()[k]];
      std::fill(reordered + linear.n_columns(), reordered + n_padded, 0.0f);
      x = reordered;
    }
    bool is_made[3] = {};
    for (const Matrix& part : linear.parts) {
      if (!is_made[part.input_format]) convert_input(x, n_padded, part.input_format, to);
      is_made[part.input_format] = true;
    }
  }

  // The product with a matrix; `take(unit, first row, rows, y)` is given [rows][32] outputs as they come.
  template <class Take>
  void multiply(const Linear& linear, const Input& x, int n_rows, int layer, int role, int thread, const Take& take) {
    alignas(64) float y[TILE * UNIT];
    auto unit = [&](int number) {
      int u = number;
      const Matrix* part = linear.parts.data();
      for (; u >= part->n_units(); part++) u -= part->n_units();
      const Matrix& m = *part;
      const uint8_t* w = m.units + static_cast<size_t>(u) * m.unit_bytes;
      for (int first = 0; first < n_rows; first += TILE) {
        const int n = std::min(TILE, n_rows - first);
        kernel(m, n)(m, w, x.from(first), y);
        if (m.bias != nullptr)
          for (int r = 0; r < n; r++)
            for (int j = 0; j < UNIT; j++) y[UNIT * r + j] += m.bias[u * UNIT + j];
        take(number, first, n, y);
      }
    };
    const int n_threads = pool_.n_active(), n_units = linear.n_units();
    Flag* counters = &counters_[(static_cast<size_t>(layer) * N_MATRICES + static_cast<size_t>(role)) *
                                static_cast<size_t>(pool_.n_threads)];
    for (int turn = 0; turn < n_threads; turn++) {
      const int owner = (thread + turn) % n_threads;
      const int begin = static_cast<int>(static_cast<int64_t>(owner) * n_units / n_threads);
      const int end = static_cast<int>(static_cast<int64_t>(owner + 1) * n_units / n_threads);
      for (int u; (u = begin + counters[owner].value.fetch_add(1, std::memory_order_relaxed)) < end;) unit(u);
    }
  }

  // Normalize and rotate queries and keys, and put keys and values into the cache (arXiv:2104.09864).
  void rope_and_store_kv(int index, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const LayerShape& s = layer.shape;
    const Heads& heads = attentions_[layer.attention]->heads();
    const int dim = s.head_dim, half = s.rotary_dim / 2, n_qkv = qkv_heads(s);
    for (int task = thread; task < call_->n_rows * n_qkv; task += pool_.n_active()) {
      const int row = task / n_qkv, head = task % n_qkv;
      const bool is_query = head < s.n_heads, is_key = !is_query && head < s.n_heads + s.n_kv_heads;
      const float* from = qkv_.data + static_cast<size_t>(row) * qkv_stride_ + head * dim;
      alignas(64) float normal[MAX_HEAD_DIM], turned[MAX_HEAD_DIM];
      if (s.qk_norm != QKNorm::NONE && (is_query || is_key)) {
        const float* weight = layer.norms[is_query ? Q_NORM : K_NORM];
        const bool is_wide = s.qk_norm == QKNorm::WIDTH;
        const float square = is_wide ? squares_.data[2 * row + is_key] : mean_square(from, dim);
        scale_by(from, is_wide ? weight + (head - (is_key ? s.n_heads : 0)) * dim : weight, dim,
                 1 / std::sqrt(square + d_.norm_eps), normal);
        from = normal;
      }
      if (s.rotation >= 0 && (is_query || is_key)) {
        const size_t at = static_cast<size_t>(call_->positions[row]) * half;
        const float *cosines = call_->rotations[s.rotation].cosines + at,
                    *sines = call_->rotations[s.rotation].sines + at;
        for (int i = 0; i < half; i++) {
          turned[i] = from[i] * cosines[i] - from[half + i] * sines[i];
          turned[half + i] = from[half + i] * cosines[i] + from[i] * sines[i];
        }
        memcpy(turned + 2 * half, from + 2 * half, sizeof(float) * static_cast<size_t>(dim - 2 * half));
        from = turned;
      }
      if (is_query) {
        if (s.query_beta != 0) {
          const float factor =
              1 + s.query_beta * std::log1p(static_cast<float>(call_->positions[row] / s.query_context));
          for (int i = 0; i < dim; i++) turned[i] = from[i] * factor;
          from = turned;
        }
        const bool is_bf16 = heads.has_bf16_queries();
        const size_t at = (static_cast<size_t>(row) * s.n_heads + head) * dim * (is_bf16 ? 2 : 4);
        write_row(from, dim, is_bf16, reinterpret_cast<uint8_t*>(queries_.data) + at);
        continue;
      }
      const HeadBlock to = cached(index, heads, row, head - s.n_heads - (is_key ? 0 : s.n_kv_heads));
      const int position = call_->positions[row] % KEY_BLOCK;
      const size_t at = static_cast<size_t>(position) * dim * heads.element();
      if (!heads.is_int8) write_row(from, dim, heads.is_bf16, (is_key ? to.keys : to.values) + at);
      else if (is_key) write_row(from, dim, heads.is_bf16, to.recent_keys + at);
      else quantize_value(from, dim, position, to);
    }
  }

  // Quantize the blocks of keys that this call completes.
  void complete_blocks(int index, int thread) {
    const Heads& heads = attentions_[layers_[static_cast<size_t>(index)].attention]->heads();
    const int n_tasks = static_cast<int>(completing_.size()) * heads.n_kv_heads;
    for (int task = thread; task < n_tasks; task += pool_.n_active()) {
      const int row = completing_[static_cast<size_t>(task / heads.n_kv_heads)];
      quantize_keys(heads, cached(index, heads, row, task % heads.n_kv_heads));
    }
  }

  // Where a row's key and value belong.
  HeadBlock cached(int layer, const Heads& heads, int row, int kv_head) const {
    return head_block(*call_, heads, layer, call_->slots[row], kv_head, call_->positions[row] / KEY_BLOCK);
  }

  const Dimensions d_;
  const int stride_, qkv_stride_, query_floats_;  // of rows, in floats
  std::vector<Layer> layers_;
  Linear head_;
  const float* norm_ = nullptr;
  WeightView embedding_{};
  Sum sum_ = nullptr;
  bool is_first_ = true;
  int n_ranks_ = 1;
  const std::shared_ptr<Pool> shared_pool_;
  Pool& pool_;
  std::vector<Flag> counters_;  // units taken, by layer, matrix and owner
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Arena arena_;
  int n_reserved_ = 0;  // rows that the next ones have room for
  Buffer x_, qkv_, queries_, squares_, heads_out_, hidden_, product_, shared_memory_;
  Input shared_;
  std::vector<Buffer> own_memory_;
  std::vector<Buffer> reordered_;  // of the threads, a row of input in another order
  std::vector<std::vector<int32_t>> orders_;
  std::vector<Input> own_;  // for the threads, of a single row
  std::vector<std::unique_ptr<AttentionSchedule>> attentions_;
  std::vector<Wanted> wanted_;
  std::vector<int> wanted_rows_;   // ascending, each once
  int n_rows_ = 0;                 // in x_: those of the call, and after the last attention those that are wanted
  std::vector<int> completing_;    // rows that are the last of a block of keys, where these become codes
  std::vector<Sampler> samplers_;  // of the threads
  Sampling sampling_{};
  const Call* call_ = nullptr;
};
