// What Python calls. Nothing is thrown at it: what would be is returned as a number below 0, which library.py raises.
#include <new>
#include <system_error>

#include "engine.h"
#include "outlook.h"
#include "rounds.h"

#define GF_EXPORT extern "C" __attribute__((visibility("default")))

enum Failure { NO_MEMORY = -2, NO_THREADS = -3 };

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

GF_EXPORT int gptfast_set_matrix(void* engine, int layer, int which, const Stored* stored, const float* bias) {
  return attempt([&] {
    engine_at(engine).set_matrix(layer, which, *stored, bias);
    return 0;
  });
}

GF_EXPORT int gptfast_set_norm(void* engine, int layer, int which, const float* weight) {
  return attempt([&] {
    engine_at(engine).set_norm(layer, which, weight);
    return 0;
  });
}

GF_EXPORT void gptfast_set_embedding(void* engine, const Stored* stored) { engine_at(engine).set_embedding(*stored); }

GF_EXPORT void gptfast_set_sum(void* engine, Sum sum, int is_first) { engine_at(engine).set_sum(sum, is_first != 0); }

GF_EXPORT int gptfast_run(void* engine, const Call* call) {
  return attempt([&] { return engine_at(engine).run(*call) ? 1 : 0; });
}

GF_EXPORT int gptfast_run_ahead(void* engine, const Call* call, const Ahead* ahead) {
  return attempt([&] { return engine_at(engine).run_ahead(*call, *ahead); });
}

GF_EXPORT int gptfast_run_rounds(void* target, void* draft, const Rounds* rounds) {
  return attempt([&] { return run_rounds(engine_at(target), engine_at(draft), *rounds); });
}

GF_EXPORT int gptfast_find_outlook(void* engine, const Outlook* outlook) {
  return attempt([&] {
    find_outlook(engine_at(engine).pool(), *outlook);
    return 0;
  });
}

GF_EXPORT int gptfast_choose(const float* logits, int n, const Choice* choice, double uniform) {
  return attempt([&] { return Chooser().choose(logits, n, *choice, uniform); });
}
