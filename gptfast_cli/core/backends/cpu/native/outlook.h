// What rows of logits say of the token to come: all threads look at them, each row by one, so that it comes to the same
// in any company.
#pragma once

#include "choose.h"
#include "pool.h"

struct Outlook {
  const float* logits;  // [n_rows][vocab_size]
  int n_rows, vocab_size;
  double* log_totals;  // [n_rows], the logarithm of the sum of exponentials; NaN where a logit is no number
  int64_t* likeliest;  // [n_rows], the first of the largest; `vocab_size` where a logit is no number
};

inline void find_outlook(Pool& pool, const Outlook& outlook) {
  struct Work {
    Pool& pool;
    const Outlook& outlook;
  } work{pool, outlook};
  pool.run(
      [](void* argument, int thread) {
        auto& [pool, outlook] = *static_cast<Work*>(argument);
        pool.attempt([&] {
          Chooser chooser;
          for (int row = thread; row < outlook.n_rows; row += pool.n_active()) {
            const float* logits = outlook.logits + static_cast<size_t>(row) * static_cast<size_t>(outlook.vocab_size);
            const int token = chooser.choose(logits, outlook.vocab_size, Choice{}, 0);
            outlook.likeliest[row] = token;
            outlook.log_totals[row] = token == outlook.vocab_size ? NAN : chooser.log_total();
          }
        });
        pool.barrier(thread, false);
      },
      &work);
}
