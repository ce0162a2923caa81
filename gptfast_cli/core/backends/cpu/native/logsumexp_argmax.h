// log(sum(exp(row))) and argmax of rows of logits. One thread reduces a whole row, so the result is batch-invariant.
#pragma once

#include "pool.h"
#include "sampling.h"

inline void logsumexp_argmax(Pool& pool, const LogsumexpArgmax& request) {
  struct Work {
    Pool& pool;
    const LogsumexpArgmax& request;
  } work{pool, request};
  pool.run(
      [](void* argument, int thread) {
        auto& [pool, request] = *static_cast<Work*>(argument);
        pool.attempt([&] {
          Sampler sampler;
          for (int row = thread; row < request.n_rows; row += pool.n_active()) {
            const float* logits = request.logits + static_cast<size_t>(row) * static_cast<size_t>(request.vocab_size);
            const int token = sampler.sample(logits, request.vocab_size, SamplingParams{}, 0);
            request.likeliest[row] = token;
            request.log_totals[row] = token == request.vocab_size ? NAN : sampler.logsumexp();
          }
        });
        pool.barrier(thread, false);
      },
      &work);
}
