// Which drafted tokens of a sequence its target accepts, and the token that follows them.
//
// The rules are those of engine/speculative/verification.py (block verification, Sun et al. 2024, arXiv:2403.10444),
// which tests/backends/test_cpu_rounds.py holds equal. Distributions are sparse: they hold the tokens that truncation
// left.
#pragma once

#include "sampling.h"

struct Verification {
  int n_accepted = 0;
  int64_t token = 0;   // `vocab_size` where a logit is NaN or infinite
  double overlap = 0;  // sum of min(p, q) over tokens, and over the accepted ones and the one after them
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

// The sum of max(reach * p - q, 0) over tokens, and of min(p, q).
struct Residual {
  double rest = 0, overlap = 0;
};

inline Residual residual(const Sampler& p, const Sampler& q, double reach) {
  Residual result;
  for_each_token(p, q, [&](int, double chance, double drafted) {
    result.rest += std::max(reach * chance - drafted, 0.0);
    result.overlap += std::min(chance, drafted);
    return true;
  });
  return result;
}

// A token sampled from max(reach * p - q, 0) / rest, or from p where that is 0 everywhere.
inline int sample_residual(Sampler& p, const Sampler& q, double reach, double rest, double uniform) {
  if (rest == 0) return p.draw(uniform);
  double reached = 0;
  int drawn = 0;
  for_each_token(p, q, [&](int token, double chance, double drafted) {
    if (reach * chance > drafted) reached += reach * chance - drafted, drawn = token;
    return reached <= uniform * rest;
  });
  return drawn;
}

// Block verification. `p`: [n_drafted + 1] target distributions; `q(n)`: the draft distribution of token n;
// `accepting(n)`, `choosing(n)`: uniform numbers. Where `best[n]` is `none` the logits n have a NaN or an infinity: the
// token is `none` if all tokens before it are accepted, and those after it are not verified.
template <class Distribution, class Number>
Verification verify_sampled(Sampler* p, const Distribution& q, const int64_t* drafted, int n_drafted,
                            const Number& accepting, const Number& choosing, const int64_t* best, int64_t none) {
  const int n_verified = static_cast<int>(std::find(best, best + n_drafted, none) - best);
  Verification result;
  double reach = 1, reach_accepted = 1, overlap = 0;
  Residual rest = n_verified ? residual(p[0], q(0), 1) : Residual(), rest_accepted = rest;
  for (int n = 1; n <= n_verified; n++) {
    const int token = static_cast<int>(drafted[n - 1]);
    const double proposed = q(n - 1).probability(token);
    reach = proposed > 0 ? std::min(reach * p[n - 1].probability(token) / proposed, 1.0) : 0;
    overlap += rest.overlap;
    rest = n < n_verified ? residual(p[n], q(n), reach) : Residual();
    const double goes_on = n == n_verified || reach == 1 ? reach : rest.rest / (rest.rest + 1 - reach);
    if (accepting(n - 1) < goes_on) {
      result.n_accepted = n, result.overlap = overlap;
      reach_accepted = reach, rest_accepted = rest;
    }
  }
  const int n = result.n_accepted;
  if (n < n_verified) {
    result.overlap += rest_accepted.overlap;
    result.token = sample_residual(p[n], q(n), reach_accepted, rest_accepted.rest, choosing(n));
  } else {
    result.token = best[n] == none ? none : p[n].draw(choosing(n));
  }
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
