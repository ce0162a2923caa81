// The exported functions. An exception becomes a negative Status, which library.py raises.
#include <climits>
#include <cstring>
#include <new>
#include <system_error>

#include "engine.h"
#include "logsumexp_argmax.h"
#include "rounds.h"

#define GF_EXPORT extern "C" __attribute__((visibility("default")))

template <class Work>
static int attempt(const Work& work) noexcept {
  try {
    return work();
  } catch (const std::system_error&) {  // of a thread, and nothing else that could fail is asked of the system
    return NO_THREADS;
  } catch (const std::exception&) {  // bad_alloc, or length_error of a size that no memory has
    return NO_MEMORY;
  }
}

static Engine& engine_at(void* pointer) { return *static_cast<Engine*>(pointer); }

GF_EXPORT int gptfast_engine_new(const Dimensions* dimensions, int n_threads, void** engine) {
  return attempt([&] {
    *engine = new Engine(*dimensions, std::clamp(n_threads, 1, MAX_THREADS));
    return 0;
  });
}

GF_EXPORT void gptfast_engine_free(void* engine) { delete static_cast<Engine*>(engine); }

GF_EXPORT int gptfast_set_matrix(void* engine, int layer, int role, const WeightView* views, int n_views,
                                 const float* bias) {
  return attempt([&] {
    engine_at(engine).set_matrix(layer, role, views, n_views, bias);
    return 0;
  });
}

GF_EXPORT int gptfast_set_norm(void* engine, int layer, int role, const float* weight) {
  return attempt([&] {
    engine_at(engine).set_norm(layer, role, weight);
    return 0;
  });
}

GF_EXPORT void gptfast_set_embedding(void* engine, const WeightView* view) { engine_at(engine).set_embedding(*view); }

GF_EXPORT void gptfast_set_sum(void* engine, Sum sum, int is_first, int n_ranks) {
  engine_at(engine).set_sum(sum, is_first != 0, n_ranks);
}

GF_EXPORT int gptfast_run(void* engine, const Call* call) {
  return attempt([&] { return engine_at(engine).run(*call) ? 1 : 0; });
}

GF_EXPORT int gptfast_run_ahead(void* engine, const Call* call, const Ahead* ahead) {
  return attempt([&] { return engine_at(engine).run_ahead(*call, *ahead); });
}

GF_EXPORT int gptfast_run_rounds(void* target, void* draft, const Rounds* rounds) {
  return attempt([&] { return run_rounds(engine_at(target), engine_at(draft), *rounds); });
}

GF_EXPORT int gptfast_logsumexp_argmax(void* engine, const LogsumexpArgmax* request) {
  return attempt([&] {
    logsumexp_argmax(engine_at(engine).pool(), *request);
    return 0;
  });
}

GF_EXPORT int gptfast_sample(float* logits, int n, const SamplingParams* params, double uniform) {
  return attempt([&] {
    const Penalized penalized(logits, *params);
    return Sampler().sample(logits, n, *params, uniform);
  });
}

// The size of a structure or the value of a constant, by the name that library.py has for it; INT_MIN: no such name.
GF_EXPORT int gptfast_abi(const char* name) {
  struct Entry {
    const char* name;
    int value;
  };
#define GF_SIZE(type) {#type, static_cast<int>(sizeof(type))}
#define GF_VALUE(constant)                \
  {                                       \
    #constant, static_cast<int>(constant) \
  }
  // clang-format off
  static constexpr Entry entries[] = {
      GF_SIZE(LayerShape), GF_SIZE(Dimensions), GF_SIZE(Rotation), GF_SIZE(WeightView), GF_SIZE(Groups), GF_SIZE(SamplingParams),
      GF_SIZE(LayerKV), GF_SIZE(Call), GF_SIZE(Ahead), GF_SIZE(Row), GF_SIZE(Rounds), GF_SIZE(LogsumexpArgmax),
      GF_VALUE(Status::NO_EMBEDDING), GF_VALUE(Status::NO_MEMORY), GF_VALUE(Status::NO_THREADS),
      GF_VALUE(WeightKind::FLOAT32), GF_VALUE(WeightKind::BFLOAT16), GF_VALUE(WeightKind::FLOAT16),
      GF_VALUE(WeightKind::INT8), GF_VALUE(WeightKind::INT4), GF_VALUE(WeightKind::GROUPED),
      GF_VALUE(ScaleForm::NONE), GF_VALUE(ScaleForm::HALF), GF_VALUE(ScaleForm::BF16), GF_VALUE(ScaleForm::FLOAT),
      GF_VALUE(ScaleForm::SIGNED), GF_VALUE(ScaleForm::UNSIGNED), GF_VALUE(ScaleForm::E4M3),
      GF_VALUE(ScaleForm::E8M0), GF_VALUE(CodeValues::CONSECUTIVE), GF_VALUE(CodeValues::INTEGERS),
      GF_VALUE(CodeValues::FLOATS), GF_VALUE(CodeValues::E4M3),
      GF_VALUE(MatrixRole::QKV), GF_VALUE(MatrixRole::OUTPUT), GF_VALUE(MatrixRole::GATE_UP),
      GF_VALUE(MatrixRole::DOWN), GF_VALUE(NormRole::ATTENTION_NORM), GF_VALUE(NormRole::Q_NORM),
      GF_VALUE(NormRole::K_NORM), GF_VALUE(NormRole::ATTENTION_OUTPUT_NORM), GF_VALUE(NormRole::FFN_NORM),
      GF_VALUE(NormRole::FFN_OUTPUT_NORM), GF_VALUE(Activation::SILU), GF_VALUE(Activation::GELU_TANH),
      GF_VALUE(QKNorm::NONE), GF_VALUE(QKNorm::HEAD), GF_VALUE(QKNorm::WIDTH),
      GF_VALUE(KEY_BLOCK), {"KEY_TILE", LANES}, GF_VALUE(QUAD), GF_VALUE(MAX_HEAD_DIM),
  };
  // clang-format on
  for (const Entry& entry : entries)
    if (std::strcmp(entry.name, name) == 0) return entry.value;
  return INT_MIN;
}
