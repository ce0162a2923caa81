// Which drafted tokens of a sequence its target accepts, and the token that follows them.
//
// The rules are those of decode/verification.py (Leviathan et al. 2023, arXiv:2211.17192), on laws that hold only the
// tokens which can be drawn at all.
#pragma once

#include "choose.h"

struct Verdict {
  int n_accepted = 0;
  int64_t token = 0;   // `vocab_size` where a logit is no number
  double overlap = 0;  // the sum, over the tokens that were looked at, of the sum of min(p, q)
};

// Calls visit(token, p, q) for each token that p can give, in their order, until it says false.
template <class Visit>
void both(const Chooser& p, const Chooser& q, const Visit& visit) {
  auto other = q.candidates().begin(), end = q.candidates().end();
  for (const Candidate& c : p.candidates()) {
    while (other != end && other->token < c.token) other++;
    const double chance = other != end && other->token == c.token ? other->weight / q.total() : 0;
    if (!visit(c.token, c.weight / p.total(), chance)) return;
  }
}

// The token at which the sum of max(p - q, 0) passes a share of the whole, or of p alone where nothing is left of it.
inline int draw_rest(Chooser& p, const Chooser& q, double uniform) {
  double rest = 0, reached = 0;
  both(p, q, [&](int, double chance, double drafted) {
    rest += std::max(chance - drafted, 0.0);
    return true;
  });
  if (rest == 0) return p.draw(uniform);
  int drawn = 0;
  both(p, q, [&](int token, double chance, double drafted) {
    if (chance > drafted) reached += chance - drafted, drawn = token;
    return reached <= uniform * rest;
  });
  return drawn;
}

// Of draws: `p` are laws of the target, one more than there are drafted tokens; `q(n)` is the one that token n was
// drawn from; `accepting(n)` and `choosing(n)` are the numbers that decide about it. A law n whose `best[n]` is `none`
// is no law, as a logit was no number: where it is come to, the token is `none`.
template <class Law, class Number>
Verdict verify_draws(Chooser* p, const Law& q, const int64_t* drafted, int n_drafted, const Number& accepting,
                     const Number& choosing, const int64_t* best, int64_t none) {
  Verdict verdict;
  for (int n = 0; n < n_drafted; n++) {
    if (best[n] == none) {
      verdict.token = none;
      return verdict;
    }
    const Chooser& proposed = q(n);
    both(p[n], proposed, [&](int, double chance, double other) {
      verdict.overlap += std::min(chance, other);
      return true;
    });
    const int token = static_cast<int>(drafted[n]);
    if (!(accepting(n) * proposed.probability(token) < p[n].probability(token))) {
      verdict.token = draw_rest(p[n], proposed, choosing(n));
      return verdict;
    }
    verdict.n_accepted++;
  }
  verdict.token = best[n_drafted] == none ? none : p[n_drafted].draw(choosing(n_drafted));
  return verdict;
}

// Of most probable tokens: equal ones stay.
inline Verdict verify_greedy(const int64_t* best, const int64_t* drafted, int n_drafted) {
  Verdict verdict;
  while (verdict.n_accepted < n_drafted && best[verdict.n_accepted] == drafted[verdict.n_accepted])
    verdict.n_accepted++;
  verdict.overlap = verdict.n_accepted;
  verdict.token = best[verdict.n_accepted];
  return verdict;
}
