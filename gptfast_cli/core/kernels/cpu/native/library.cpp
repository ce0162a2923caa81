// What Python calls.
#include "engine.h"
#include "outlook.h"
#include "rounds.h"

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

GF_EXPORT void gptfast_set_sum(void* engine, Sum sum, int is_first) {
  static_cast<Engine*>(engine)->set_sum(sum, is_first != 0);
}

GF_EXPORT int gptfast_run(void* engine, const Call* call) { return static_cast<Engine*>(engine)->run(*call); }

GF_EXPORT int gptfast_run_ahead(void* engine, const Call* call, const Ahead* ahead) {
  return static_cast<Engine*>(engine)->run_ahead(*call, *ahead);
}

GF_EXPORT int gptfast_run_rounds(void* target, void* draft, const Rounds* rounds) {
  return run_rounds(*static_cast<Engine*>(target), *static_cast<Engine*>(draft), *rounds);
}

GF_EXPORT void gptfast_find_outlook(void* engine, const Outlook* outlook) {
  find_outlook(static_cast<Engine*>(engine)->pool(), *outlook);
}

GF_EXPORT int gptfast_choose(const float* logits, int n, const Choice* choice, double uniform) {
  return Chooser().choose(logits, n, *choice, uniform);
}
