// Which drafted tokens of a sequence its target accepts, and the token that follows them.
//
// The rules are those of engine/speculative/verification.py (Leviathan et al. 2023, arXiv:2211.17192), which
// tests/backends/test_cpu_rounds.py holds equal. Distributions are sparse: they hold the tokens that truncation left.
#pragma once

#include "sampling.h"

struct Verification {
  int n_accepted = 0;
  int64_t token = 0;   // `vocab_size` where a logit is NaN or infinite
  double overlap = 0;  // sum of min(p, q) over tokens and verified positions
};

// Calls visit(token, p, q) for each token of p in ascending order, until it returns false.
template <class Visit>
void for_each_token(const Sampler& p, const Sampler& q, const Visit& visit) {
  auto other = q.candidates().begin(), end = q.candidates().end();
  for (const Candidate& c : p.candidates()) {
    while (other != end && other->token < c.token) other++;
    const double chance = other != end && other->token == c.token ? other->weight / q.total() : 0;
    if (!visit(c.token, c.weight / p.total(), chance)) return;
  }
}

// A token sampled from max(p - q, 0) / sum, or from p where that is 0 everywhere.
inline int sample_residual(Sampler& p, const Sampler& q, double uniform) {
  double rest = 0, reached = 0;
  for_each_token(p, q, [&](int, double chance, double drafted) {
    rest += std::max(chance - drafted, 0.0);
    return true;
  });
  if (rest == 0) return p.draw(uniform);
  int drawn = 0;
  for_each_token(p, q, [&](int token, double chance, double drafted) {
    if (chance > drafted) reached += chance - drafted, drawn = token;
    return reached <= uniform * rest;
  });
  return drawn;
}

// Speculative sampling. `p`: [n_drafted + 1] target distributions; `q(n)`: the draft distribution of token n;
// `accepting(n)`, `choosing(n)`: uniform numbers. Where `best[n]` is `none` the logits n have a NaN or an infinity: the
// token is `none` if verification gets there.
template <class Distribution, class Number>
Verification verify_sampled(Sampler* p, const Distribution& q, const int64_t* drafted, int n_drafted,
                            const Number& accepting, const Number& choosing, const int64_t* best, int64_t none) {
  Verification result;
  for (int n = 0; n < n_drafted; n++) {
    if (best[n] == none) {
      result.token = none;
      return result;
    }
    const Sampler& proposed = q(n);
    for_each_token(p[n], proposed, [&](int, double chance, double other) {
      result.overlap += std::min(chance, other);
      return true;
    });
    const int token = static_cast<int>(drafted[n]);
    if (!(accepting(n) * proposed.probability(token) < p[n].probability(token))) {
      result.token = sample_residual(p[n], proposed, choosing(n));
      return result;
    }
    result.n_accepted++;
  }
  result.token = best[n_drafted] == none ? none : p[n_drafted].draw(choosing(n_drafted));
  return result;
}

// Of most probable tokens: equal ones stay.
inline Verification verify_greedy(const int64_t* best, const int64_t* drafted, int n_drafted) {
  Verification result;
  while (result.n_accepted < n_drafted && best[result.n_accepted] == drafted[result.n_accepted]) result.n_accepted++;
  result.overlap = result.n_accepted;
  result.token = best[result.n_accepted];
  return result;
}
