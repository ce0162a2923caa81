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

// What one thread verifies with.
class Verifier {
 public:
  // `p` are logits [n_drafted + 1][vocab_size] of the target, `q` those of the draft, of row n at q + n * q_stride;
  // `acceptance` and `choosing` give the numbers that decide about token n.
  template <class Uniform>
  Verdict verify(const float* p, const float* q, size_t q_stride, int vocab_size, const int64_t* drafted, int n_drafted,
                 const Choice& choice, const Uniform& acceptance, const Uniform& choosing) {
    Verdict verdict;
    for (int n = 0;; n++, p += vocab_size, q += q_stride) {
      if (choice.temperature == 0) {
        verdict.token = p_.choose(p, vocab_size, choice, 0);
        if (n == n_drafted || verdict.token != drafted[n]) return verdict;
        verdict.overlap++;
      } else {
        if (!p_.find_law(p, vocab_size, choice)) return verdict.token = vocab_size, verdict;
        if (n == n_drafted) return verdict.token = p_.draw(choosing(n)), verdict;
        if (!q_.find_law(q, vocab_size, choice)) return verdict.token = vocab_size, verdict;
        const double rest = compare(verdict);
        const int token = static_cast<int>(drafted[n]);
        if (!(acceptance(n) * q_.probability(token) < p_.probability(token)))
          return verdict.token = rest > 0 ? draw_rest(choosing(n) * rest) : p_.draw(choosing(n)), verdict;
      }
      verdict.n_accepted++;
    }
  }

 private:
  // Calls visit(token, p, q) for each token that p can give, in their order.
  template <class Visit>
  void both(const Visit& visit) const {
    auto other = q_.candidates().begin(), end = q_.candidates().end();
    for (const Candidate& c : p_.candidates()) {
      while (other != end && other->token < c.token) other++;
      const double q = other != end && other->token == c.token ? other->weight / q_.total() : 0;
      if (!visit(c.token, c.weight / p_.total(), q)) return;
    }
  }

  // Adds the overlap of both laws to a verdict; returns the sum of max(p - q, 0).
  double compare(Verdict& verdict) const {
    double rest = 0;
    both([&](int, double p, double q) {
      verdict.overlap += std::min(p, q);
      rest += std::max(p - q, 0.0);
      return true;
    });
    return rest;
  }

  // The token at which the sum of max(p - q, 0) passes a threshold.
  int draw_rest(double threshold) const {
    double reached = 0;
    int drawn = 0;
    both([&](int token, double p, double q) {
      if (p > q) reached += p - q, drawn = token;
      return reached <= threshold;
    });
    return drawn;
  }

  Chooser p_, q_;
};
