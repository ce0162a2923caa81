// A decoder's whole step as one native call: all layers and the head, for any number of tokens of any rows of the cache.
//
// Threads go through the phases of a layer together: norm and form of the input, query/key/value, rotation and cache,
// attention, output, gate and up, down. A thread takes the units of its own share of a matrix first, in order, and then
// helps the others with theirs.
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "attention.h"
#include "input.h"
#include "matrix.h"
#include "pack.h"
#include "pool.h"

namespace {

constexpr int MOST_ROWS = 128;  // tokens that go through the layers at once; of a prompt with more, one piece after another
constexpr int PHASES = 10;      // of a layer, in which units are taken

enum Which { QKV, OUTPUT, GATE_UP, DOWN, N_MATRICES };

struct Layer {
  Matrix matrices[N_MATRICES];
  const float *attention_norm = nullptr, *ffn_norm = nullptr;
};

struct Dimensions {
  int n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab_size;
  float norm_eps;
  int cache_is_bf16;  // else float
  int narrow;         // inputs may be bfloat16 or 8-bit codes, where the machine multiplies these
};

// What a call is about; row r is one token.
struct Call {
  int n_rows;
  const int64_t* tokens;
  const int32_t* positions;  // in its sequence
  const int32_t* slots;      // its row of the cache; rows of one slot stand together, by position
  int n_outputs;
  const int32_t* outputs;    // rows whose logits are wanted
  float* logits;             // [n_outputs][vocab_size]
  void* const* keys;         // of each layer
  void* const* values;
  size_t row_stride, head_stride, token_stride;  // of these, in elements
  const float *cosines, *sines;                  // [positions][head_dim / 2]
};

// Memory in huge pages, of which fewer have to be looked up, cut off from large pieces: what is not written takes none.
class Arena {
 public:
  ~Arena() {
    for (auto& [memory, n_bytes] : pieces_) munmap(memory, n_bytes);
  }

  // Memory from the start of a cache line on, behind which may be prefetched; null where there is none.
  uint8_t* take(size_t n_bytes) {
    const size_t whole = (n_bytes + PREFETCH + 63) & ~size_t{63};
    if (whole > left_ && !add_piece(whole)) return nullptr;
    uint8_t* taken = next_;
    next_ += whole, left_ -= whole;
    return taken;
  }

 private:
  static constexpr size_t HUGE = 2 << 20, PIECE = size_t{256} << 20;

  bool add_piece(size_t n_bytes) {
    const size_t whole = (std::max(n_bytes, PIECE) + 2 * HUGE) & ~(HUGE - 1);
    void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
#if defined(MADV_HUGEPAGE)
    madvise(memory, whole, MADV_HUGEPAGE);
#endif
    pieces_.emplace_back(memory, whole);
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory) + HUGE - 1) & ~uintptr_t{HUGE - 1};
    next_ = reinterpret_cast<uint8_t*>(at);
    left_ = whole - (at - reinterpret_cast<uintptr_t>(memory));
    return true;
  }

  std::vector<std::pair<void*, size_t>> pieces_;
  uint8_t* next_ = nullptr;
  size_t left_ = 0;
};

struct Buffer {
  float* data = nullptr;
  explicit Buffer(size_t n) : data(static_cast<float*>(aligned_alloc(64, (n * sizeof(float) + 127) & ~size_t{63}))) {
    memset(data, 0, n * sizeof(float));
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

class Engine {
 public:
  Engine(const Dimensions& d, int n_threads)
      : d_(d),
        heads_{d.n_heads, d.n_kv_heads, d.head_dim, d.cache_is_bf16 != 0},
        stride_(round_up(std::max({d.dim, d.ffn_dim, d.n_heads * d.head_dim}), BLOCK)),
        qkv_stride_(round_up((d.n_heads + 2 * d.n_kv_heads) * d.head_dim, UNIT)),
        layers_(static_cast<size_t>(d.n_layers)),
        pool_(n_threads),
        counters_(static_cast<size_t>(d.n_layers + 1) * PHASES * static_cast<size_t>(n_threads)),
        x_(rows_of(stride_)),
        qkv_(rows_of(qkv_stride_)),
        queries_(rows_of(d.n_heads * d.head_dim)),
        heads_out_(rows_of(stride_)),
        hidden_(rows_of(stride_)),
        shared_(input(MOST_ROWS)),
        scratch_(static_cast<size_t>(n_threads)),
        answers_(static_cast<size_t>(n_threads)),
        seen_(static_cast<size_t>(n_threads)) {
    for (int thread = 0; thread < n_threads; thread++) own_.push_back(input(1));
  }

  bool set_matrix(int layer, int which, const Stored& stored, const float* bias) {
    Matrix& m = layer == d_.n_layers ? head_ : layers_[static_cast<size_t>(layer)].matrices[which];
    m.n_rows = stored.n_rows, m.n_columns = stored.n_columns, m.group = stored.group ? stored.group : BLOCK;
    m.format = format_of(stored, d_.narrow != 0);
    m.form = form_of(m.format, d_.narrow != 0);
    m.unit_bytes = bytes_of_unit(m);
    const int n_units = stored.interleaved ? (stored.n_rows / 2 + LANES - 1) / LANES : m.n_units();
    m.n_rows = n_units * UNIT;
    m.units = arena_.take(m.bytes());
    if (m.units == nullptr) return false;
    if (bias != nullptr) m.bias = ordered(stored, bias, n_units);
    Packing packing{&stored, &m, this};
    pool_.run(
        [](void* argument, int thread) {
          auto& p = *static_cast<Packing*>(argument);
          Pool& pool = p.engine->pool_;
          for (int unit = thread; unit < p.matrix->n_units(); unit += pool.n_threads) pack_unit(*p.stored, *p.matrix, unit);
          pool.barrier(thread);
        },
        &packing);
    return true;
  }

  void set_norm(int layer, int which, const float* weight) {
    float* kept = floats(static_cast<size_t>(d_.dim));
    memcpy(kept, weight, sizeof(float) * static_cast<size_t>(d_.dim));
    if (layer == d_.n_layers) norm_ = kept;
    else (which == 0 ? layers_[static_cast<size_t>(layer)].attention_norm : layers_[static_cast<size_t>(layer)].ffn_norm) = kept;
  }

  void set_embedding(const Stored& stored) { embedding_ = stored; }

  void run(const Call& call) {
    for (int first = 0; first < call.n_rows; first += MOST_ROWS) {
      Call piece = call;
      piece.n_rows = std::min(MOST_ROWS, call.n_rows - first);
      piece.tokens += first, piece.positions += first, piece.slots += first;
      wanted_.clear();
      for (int i = 0; i < call.n_outputs; i++)
        if (call.outputs[i] >= first && call.outputs[i] < first + piece.n_rows) wanted_.push_back({i, call.outputs[i] - first});
      call_ = &piece;
      list_tasks();
      for (Flag& counter : counters_) counter.value.store(0, std::memory_order_relaxed);
      pool_.run([](void* engine, int thread) { static_cast<Engine*>(engine)->step(thread); }, this);
    }
  }

  size_t weight_bytes() const {
    size_t total = head_.bytes();
    for (const Layer& layer : layers_)
      for (const Matrix& m : layer.matrices) total += m.bytes();
    return total;
  }

 private:
  struct Packing {
    const Stored* stored;
    const Matrix* matrix;
    Engine* engine;
  };
  struct Wanted {
    int output, row;
  };
  struct Task {  // rows `first` to `end` of one slot, and query heads that share a key head
    int first, end, head, n_heads, n_chunks;
    size_t first_part;  // of its chunks, where these are shared out
  };

  size_t rows_of(int n) const { return static_cast<size_t>(MOST_ROWS) * static_cast<size_t>(n); }

  float* floats(size_t n) {
    buffers_.push_back(std::make_unique<Buffer>(n));
    return buffers_.back()->data;
  }

  Input input(int n_rows) {
    size_t n = static_cast<size_t>(n_rows) * static_cast<size_t>(stride_);
    Input made;
    made.floats = floats(n);
    made.bfloats = reinterpret_cast<uint16_t*>(floats(n / 2));
    made.codes = reinterpret_cast<int8_t*>(floats(n / 4));
    made.scales = floats(n / GROUP), made.scaled_sums = floats(n / GROUP);
    made.offsets = reinterpret_cast<int32_t*>(floats(n / GROUP));
    made.stride = stride_;
    return made;
  }

  // A bias in the order of the units' rows.
  const float* ordered(const Stored& stored, const float* bias, int n_units) {
    float* kept = floats(static_cast<size_t>(n_units) * UNIT);
    for (int unit = 0; unit < n_units; unit++)
      for (int lane = 0; lane < UNIT; lane++)
        if (int row = stored_row(stored, unit, lane); row >= 0) kept[unit * UNIT + lane] = bias[row];
    return kept;
  }

  // Rows of one slot, and heads that share a key head, are answered together, as many as there is room for.
  void list_tasks() {
    tasks_.clear();
    const int group = heads_.group(), most = std::max(1, QUERIES / group);
    size_t n_parts = 0;
    int n_chunks = 0;  // of a task, at most
    for (int first = 0; first < call_->n_rows;) {
      int end = first + 1;
      while (end < call_->n_rows && end - first < most && call_->slots[end] == call_->slots[first]) end++;
      const int chunks = call_->positions[end - 1] / CHUNK + 1;
      n_chunks = std::max(n_chunks, chunks);
      for (int kv_head = 0; kv_head < d_.n_kv_heads; kv_head++) {
        for (int g = 0; g < group; g += QUERIES, n_parts += static_cast<size_t>(chunks) * QUERIES)
          tasks_.push_back({first, end, kv_head * group + g, std::min(QUERIES, group - g), chunks, n_parts});
      }
      first = end;
    }
    splits_chunks_ = n_chunks > 1 && static_cast<int>(tasks_.size()) < 2 * pool_.n_threads;
    if (splits_chunks_) parts_.resize(std::max(parts_.size(), n_parts * static_cast<size_t>(LANES + d_.head_dim)));
  }

  void step(int thread) {
    const int n_rows = call_->n_rows;
    for (int row = thread; row < n_rows; row += pool_.n_threads) {
      float* x = x_.data + static_cast<size_t>(row) * stride_;
      read_row(embedding_, static_cast<int>(call_->tokens[row]), x);
    }
    pool_.barrier(thread);
    for (int layer = 0; layer < d_.n_layers; layer++) decode(layer, thread);
    if (!wanted_.empty()) head(thread);
    pool_.barrier(thread);
  }

  void decode(int index, int thread) {
    const Layer& layer = layers_[static_cast<size_t>(index)];
    const Matrix &qkv = layer.matrices[QKV], &output = layer.matrices[OUTPUT];
    const Matrix &gate_up = layer.matrices[GATE_UP], &down = layer.matrices[DOWN];
    const int n_rows = call_->n_rows;

    Input ready = prepare(x_.data, layer.attention_norm, d_.dim, qkv, thread);
    multiply(qkv, ready, n_rows, index, 0, thread, [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++)
        memcpy(qkv_.data + static_cast<size_t>(first + r) * qkv_stride_ + unit * UNIT, y + UNIT * r, sizeof(float) * UNIT);
    });
    pool_.barrier(thread);
    place(index, thread);
    pool_.barrier(thread);
    attend(index, thread);
    pool_.barrier(thread);

    auto add_to_x = [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++) {
        float* x = x_.data + static_cast<size_t>(first + r) * stride_ + unit * UNIT;
        store(x, load(x) + load(y + UNIT * r));
        store(x + LANES, load(x + LANES) + load(y + UNIT * r + LANES));
      }
    };
    ready = prepare(heads_out_.data, nullptr, d_.n_heads * d_.head_dim, output, thread);
    multiply(output, ready, n_rows, index, 1, thread, add_to_x);
    pool_.barrier(thread);

    ready = prepare(x_.data, layer.ffn_norm, d_.dim, gate_up, thread);
    multiply(gate_up, ready, n_rows, index, 2, thread, [&](int unit, int first, int n, const float* y) {
      for (int r = 0; r < n; r++) {
        Floats gate = load(y + UNIT * r), up = load(y + UNIT * r + LANES);
        Floats silu = gate / (splat(1) + exp(splat(0) - gate));
        store(hidden_.data + static_cast<size_t>(first + r) * stride_ + unit * LANES, silu * up);
      }
    });
    pool_.barrier(thread);

    ready = prepare(hidden_.data, nullptr, d_.ffn_dim, down, thread);
    multiply(down, ready, n_rows, index, 3, thread, add_to_x);
    pool_.barrier(thread);
  }

  void head(int thread) {
    const int n = static_cast<int>(wanted_.size());
    for (int i = thread; i < n; i += pool_.n_threads) {
      Input row = shared_.from(i);
      normalise(x_.data + static_cast<size_t>(wanted_[static_cast<size_t>(i)].row) * stride_, norm_, d_.dim, d_.norm_eps,
                row.floats, stride_);
      bring_into_form(row.floats, head_.form, row);
    }
    pool_.barrier(thread);
    multiply(head_, shared_, n, d_.n_layers, 0, thread, [&](int unit, int first, int n_here, const float* y) {
      const int n_columns = std::min(UNIT, d_.vocab_size - unit * UNIT);
      for (int r = 0; r < n_here; r++) {
        size_t output = static_cast<size_t>(wanted_[static_cast<size_t>(first + r)].output);
        memcpy(call_->logits + output * static_cast<size_t>(d_.vocab_size) + unit * UNIT, y + UNIT * r,
               sizeof(float) * static_cast<size_t>(n_columns));
      }
    });
  }

  // The rows in the form that a matrix wants. A single row every thread makes ready for itself, which saves a barrier.
  Input prepare(const float* from, const float* norm, int n, const Matrix& m, int thread) {
    auto row = [&](int r, const Input& to) {
      const float* x = from + static_cast<size_t>(r) * stride_;
      if (norm != nullptr) normalise(x, norm, n, d_.norm_eps, to.floats, stride_);
      bring_into_form(norm != nullptr ? to.floats : x, m.form, to);
    };
    if (call_->n_rows == 1) {
      row(0, own_[static_cast<size_t>(thread)]);
      return own_[static_cast<size_t>(thread)];
    }
    for (int r = thread; r < call_->n_rows; r += pool_.n_threads) row(r, shared_.from(r));
    pool_.barrier(thread);
    return shared_;
  }

  // The product with a matrix; `take(unit, first row, rows, y)` is given [rows][32] outputs as they come.
  template <class Take>
  void multiply(const Matrix& m, const Input& x, int n_rows, int layer, int phase, int thread, const Take& take) {
    alignas(64) float y[TILE * UNIT];
    auto unit = [&](int u) {
      const uint8_t* w = m.units + static_cast<size_t>(u) * m.unit_bytes;
      for (int first = 0; first < n_rows; first += TILE) {
        const int n = std::min(TILE, n_rows - first);
        kernel(m, n)(m, w, x.from(first), y);
        if (m.bias != nullptr)
          for (int r = 0; r < n; r++)
            for (int j = 0; j < UNIT; j++) y[UNIT * r + j] += m.bias[u * UNIT + j];
        take(u, first, n, y);
      }
    };
    const int n_threads = pool_.n_threads, n_units = m.n_units();
    Flag* counters = &counters_[(static_cast<size_t>(layer) * PHASES + static_cast<size_t>(phase)) * static_cast<size_t>(n_threads)];
    for (int turn = 0; turn < n_threads; turn++) {
      const int owner = (thread + turn) % n_threads;
      const int begin = static_cast<int>(static_cast<int64_t>(owner) * n_units / n_threads);
      const int end = static_cast<int>(static_cast<int64_t>(owner + 1) * n_units / n_threads);
      for (int u; (u = begin + counters[owner].value.fetch_add(1, std::memory_order_relaxed)) < end;) unit(u);
    }
  }

  // Rotate queries and keys, and put keys and values into the cache (arXiv:2104.09864).
  void place(int layer, int thread) {
    const int dim = d_.head_dim, half = dim / 2;
    const int n_tasks = call_->n_rows * (d_.n_heads + 2 * d_.n_kv_heads);
    for (int task = thread; task < n_tasks; task += pool_.n_threads) {
      const int row = task / (d_.n_heads + 2 * d_.n_kv_heads), head = task % (d_.n_heads + 2 * d_.n_kv_heads);
      const float* from = qkv_.data + static_cast<size_t>(row) * qkv_stride_ + head * dim;
      alignas(64) float turned[MAX_HEAD_DIM];
      if (head < d_.n_heads + d_.n_kv_heads) {
        const size_t at = static_cast<size_t>(call_->positions[row]) * half;
        for (int i = 0; i < half; i++) {
          float cosine = call_->cosines[at + i], sine = call_->sines[at + i];
          turned[i] = from[i] * cosine - from[half + i] * sine;
          turned[half + i] = from[half + i] * cosine + from[i] * sine;
        }
        from = turned;
      }
      const bool narrow_query = heads_.has_bf16_queries(), narrow = heads_.is_bf16;
      if (head < d_.n_heads) write(from, narrow_query, queries_.data, (static_cast<size_t>(row) * d_.n_heads + head) * dim);
      else if (head < d_.n_heads + d_.n_kv_heads) write(from, narrow, call_->keys[layer], cached(row, head - d_.n_heads));
      else write(from, narrow, call_->values[layer], cached(row, head - d_.n_heads - d_.n_kv_heads));
    }
  }

  size_t cached(int row, int kv_head) const {
    return static_cast<size_t>(call_->slots[row]) * call_->row_stride + static_cast<size_t>(kv_head) * call_->head_stride +
           static_cast<size_t>(call_->positions[row]) * call_->token_stride;
  }

  void write(const float* from, bool narrow, void* to, size_t at) const {
    for (int i = 0; i < d_.head_dim; i += LANES) {
      if (narrow) store_bf16(static_cast<uint16_t*>(to) + at + i, load(from + i));
      else store(static_cast<float*>(to) + at + i, load(from + i));
    }
  }

  // Threads share out the rows and key heads; where these are few, the chunks of their keys as well.
  void attend(int layer, int thread) {
    Answers& answers = answers_[static_cast<size_t>(thread)];
    Seen& seen = seen_[static_cast<size_t>(thread)];
    const int n_threads = pool_.n_threads, n_tasks = static_cast<int>(tasks_.size());
    if (!splits_chunks_) {
      for (int t = thread; t < n_tasks; t += n_threads) {
        begin(tasks_[static_cast<size_t>(t)], answers);
        for (int chunk = 0; chunk < tasks_[static_cast<size_t>(t)].n_chunks; chunk++) {
          look(layer, tasks_[static_cast<size_t>(t)], answers, chunk, thread);
          for (int i = 0; i < answers.n; i++)
            if (seen.anything[i]) add_chunk(answers, i, seen.largest[i], seen.total[i], seen.value[i], d_.head_dim);
        }
        finish(tasks_[static_cast<size_t>(t)], answers);
      }
      return;
    }
    int number = 0;  // of a task's chunk, among all
    for (const Task& task : tasks_) {
      begin(task, answers);
      for (int chunk = 0; chunk < task.n_chunks; chunk++, number++) {
        if (number % n_threads != thread) continue;
        look(layer, task, answers, chunk, thread);
        for (int i = 0; i < answers.n; i++) {
          float* part = part_of(task, chunk, i);
          part[0] = seen.anything[i], part[1] = seen.largest[i], part[2] = seen.total[i];
          memcpy(part + LANES, seen.value[i], sizeof(float) * static_cast<size_t>(d_.head_dim));
        }
      }
    }
    pool_.barrier(thread);
    for (int t = thread; t < n_tasks; t += n_threads) {
      const Task& task = tasks_[static_cast<size_t>(t)];
      begin(task, answers);
      for (int chunk = 0; chunk < task.n_chunks; chunk++)
        for (int i = 0; i < answers.n; i++)
          if (const float* part = part_of(task, chunk, i); part[0] != 0)
            add_chunk(answers, i, part[1], part[2], part + LANES, d_.head_dim);
      finish(task, answers);
    }
  }

  void begin(const Task& task, Answers& a) const {
    const size_t element = heads_.has_bf16_queries() ? 2 : 4;
    a.n = 0;
    for (int row = task.first; row < task.end; row++) {
      for (int head = task.head; head < task.head + task.n_heads; head++, a.n++) {
        const size_t at = (static_cast<size_t>(row) * d_.n_heads + head) * d_.head_dim;
        a.query[a.n] = reinterpret_cast<const uint8_t*>(queries_.data) + at * element;
        a.position[a.n] = call_->positions[row];
        a.largest[a.n] = -3e38f, a.total[a.n] = 0;
        memset(a.value[a.n], 0, sizeof(float) * static_cast<size_t>(d_.head_dim));
      }
    }
  }

  void look(int layer, const Task& task, const Answers& a, int chunk, int thread) {
    const size_t element = heads_.is_bf16 ? 2 : 4, token_bytes = call_->token_stride * element;
    const size_t at = (static_cast<size_t>(call_->slots[task.first]) * call_->row_stride +
                       static_cast<size_t>(task.head / heads_.group()) * call_->head_stride) * element +
                      static_cast<size_t>(chunk) * CHUNK * token_bytes;
    see_chunk(a, heads_, static_cast<const uint8_t*>(call_->keys[layer]) + at,
              static_cast<const uint8_t*>(call_->values[layer]) + at, token_bytes, chunk * CHUNK,
              scratch_[static_cast<size_t>(thread)], seen_[static_cast<size_t>(thread)]);
  }

  void finish(const Task& task, const Answers& a) {
    for (int i = 0; i < a.n; i++) {
      const int row = task.first + i / task.n_heads, head = task.head + i % task.n_heads;
      float* to = heads_out_.data + static_cast<size_t>(row) * stride_ + head * d_.head_dim;
      const Floats share = splat(1 / a.total[i]);
      for (int k = 0; k < d_.head_dim; k += LANES) store(to + k, load(a.value[i] + k) * share);
    }
  }

  // Where a chunk's words to a query are kept until all chunks have been seen: three numbers, then [head_dim].
  float* part_of(const Task& task, int chunk, int query) {
    return parts_.data() + (task.first_part + static_cast<size_t>(chunk) * QUERIES + query) * (LANES + d_.head_dim);
  }

  const Dimensions d_;
  const Heads heads_;
  const int stride_, qkv_stride_;  // of rows, in floats
  std::vector<Layer> layers_;
  Matrix head_;
  const float* norm_ = nullptr;
  Stored embedding_{};
  Pool pool_;
  std::vector<Flag> counters_;  // units taken, by layer, phase and owner
  std::vector<std::unique_ptr<Buffer>> buffers_;
  Arena arena_;
  Buffer x_, qkv_, queries_, heads_out_, hidden_;
  Input shared_;
  std::vector<Input> own_;  // for the threads, of a single row
  std::vector<Scratch> scratch_;
  std::vector<Answers> answers_;
  std::vector<Seen> seen_;
  std::vector<float> parts_;  // what chunks have to say, where threads share these out
  bool splits_chunks_ = false;
  std::vector<Task> tasks_;
  std::vector<Wanted> wanted_;
  const Call* call_ = nullptr;
};

}  // namespace

#define GF_EXPORT extern "C" __attribute__((visibility("default")))

GF_EXPORT void* gptfast_engine_new(const Dimensions* dimensions, int n_threads) {
  return new Engine(*dimensions, std::clamp(n_threads, 1, MAX_THREADS));
}

GF_EXPORT void gptfast_engine_free(void* engine) { delete static_cast<Engine*>(engine); }

GF_EXPORT int gptfast_set_matrix(void* engine, int layer, int which, const Stored* stored, const float* bias) {
  return static_cast<Engine*>(engine)->set_matrix(layer, which, *stored, bias);
}

GF_EXPORT void gptfast_set_norm(void* engine, int layer, int which, const float* weight) {
  static_cast<Engine*>(engine)->set_norm(layer, which, weight);
}

GF_EXPORT void gptfast_set_embedding(void* engine, const Stored* stored) {
  static_cast<Engine*>(engine)->set_embedding(*stored);
}

GF_EXPORT void gptfast_run(void* engine, const Call* call) { static_cast<Engine*>(engine)->run(*call); }

GF_EXPORT size_t gptfast_weight_bytes(void* engine) { return static_cast<Engine*>(engine)->weight_bytes(); }
