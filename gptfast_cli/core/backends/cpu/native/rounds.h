// Rounds of speculative decoding in one call: the draft proposes, the target verifies, each row of a batch on its own.
//
// The rules are those of engine/speculative: tests/backends/test_cpu_rounds.py holds both equal, token for token.
#pragma once

#include <chrono>

#include "engine.h"
#include "verify.h"

// The uniform numbers of engine/sampling.py, keyed by (seed, stream, position, purpose).
// test_rounds_in_one_call_give_what_rounds_one_by_one_give fails where one bit of them differs.
enum Purpose { TOKEN, PROPOSAL, ACCEPTANCE };

inline uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline double uniform(const Row& row, int position, Purpose purpose) {
  uint64_t state = 0;
  for (uint64_t part : {row.seed, row.stream, static_cast<uint64_t>(position)})
    state = mixed((state ^ part) + 0x9E3779B97F4A7C15u);
  if (purpose != TOKEN) state = mixed((state ^ static_cast<uint64_t>(purpose)) + 0x9E3779B97F4A7C15u);
  return static_cast<double>(state >> 32) / 4294967296.0;
}

class SpeculativeRounds {
 public:
  SpeculativeRounds(Engine& target, Engine& draft, const Rounds& rounds)
      : target_(target), draft_(draft), rounds_(rounds), rows_(rounds.rows, rounds.rows + rounds.n_rows) {
    for (const Row& row : rows_) texts_.emplace_back(row.rest, row.rest + (row.n_text - row.n_draft));
    for (const Row& row : rows_) first_.push_back(row.n_draft), sampled_.emplace_back(row.params);
  }

  // Rounds until `n_rounds`, a stop token, or the end of a row; returns how
  // many, or NO_EMBEDDING. The token of a row is `vocab_size` where a logit was no number.
  int run() {
    int n = 0;
    for (bool goes_on = true; goes_on && n < rounds_.n_rounds; n++) {
      auto began = now();
      if (!propose()) return NO_EMBEDDING;
      auto drafted = now();
      if (!feed_target()) return NO_EMBEDDING;
      auto verified = now();
      goes_on = verify(n);
      rounds_.seconds[0] += seconds(began, drafted);
      rounds_.seconds[1] += seconds(drafted, verified);
      rounds_.seconds[2] += seconds(verified, now());
    }
    for (size_t r = 0; r < n_rows(); r++) rounds_.n_held[r] = rows_[r].n_draft;
    return n;
  }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static Time now() { return std::chrono::steady_clock::now(); }
  static double seconds(Time from, Time to) { return std::chrono::duration<double>(to - from).count(); }

  size_t n_rows() const { return rows_.size(); }
  size_t vocab_size() const { return static_cast<size_t>(target_.vocab_size()); }
  int draft_length_of(size_t row) const { return std::min(rounds_.draft_length, rows_[row].n_left - 1); }
  int64_t text(size_t row, int position) const { return texts_[row][static_cast<size_t>(position - first_[row])]; }

  // Tokens of a call as they come together.
  struct Tokens {
    std::vector<int64_t> tokens;
    std::vector<int32_t> positions, slots, outputs;

    void add(int64_t token, int position, int slot) {
      tokens.push_back(token), positions.push_back(position), slots.push_back(slot);
    }

    Call call(const Call& place, float* logits) const {
      Call call = place;
      call.n_rows = static_cast<int>(tokens.size()), call.tokens = tokens.data();
      call.positions = positions.data(), call.slots = slots.data();
      call.n_outputs = static_cast<int>(outputs.size()), call.outputs = outputs.data(), call.logits = logits;
      return call;
    }
  };

  // The draft is fed what it lacks of each text, and goes on from there; false where it has no embedding of a token.
  bool propose() {
    const size_t draft_length = static_cast<size_t>(rounds_.draft_length), n = n_rows();
    proposed_.assign(draft_length * n, 0), uniforms_.resize(draft_length * n), params_.clear();
    q_.resize(draft_length * n), uncertainties_.assign(draft_length * n, 0), logits_.resize(n * vocab_size());
    Tokens fed;
    for (size_t r = 0; r < n; r++) {
      Row& row = rows_[r];
      for (; row.n_draft < row.n_text; row.n_draft++) fed.add(text(r, row.n_draft), row.n_draft, row.slot);
      fed.outputs.push_back(static_cast<int32_t>(fed.tokens.size()) - 1);
      params_.push_back(sampled_[r].params());
      for (size_t step = 0; step < draft_length; step++)
        uniforms_[step * n + r] = uniform(row, row.n_text + static_cast<int>(step), PROPOSAL);
    }
    Ahead ahead{rounds_.draft_length, params_.data(), uniforms_.data(), 0, nullptr, proposed_.data(), 0};
    double* uncertainties = std::isinf(rounds_.max_uncertainty) ? nullptr : uncertainties_.data();
    n_proposed_ = draft_.run_ahead(fed.call(*rounds_.draft, logits_.data()), ahead,
                                   {q_.data(), rounds_.max_uncertainty, uncertainties});
    return n_proposed_ != NO_EMBEDDING;
  }

  bool feed_target() {
    Tokens fed;
    begins_.clear(), owners_.clear(), drafted_.resize(n_rows());
    for (size_t r = 0; r < n_rows(); r++) {
      const Row& row = rows_[r];
      begins_.push_back(fed.tokens.size());
      fed.add(text(r, row.n_text - 1), row.n_text - 1, row.slot);
      drafted_[r].clear();
      for (int n = 0; n < std::min(draft_length_of(r), n_proposed_); n++) {
        const int64_t token = proposed_[static_cast<size_t>(n) * n_rows() + r];
        if (token == static_cast<int64_t>(vocab_size())) break;  // the draft's output was no number
        drafted_[r].push_back(token), sampled_[r].add(token);
        fed.add(token, row.n_text + n, row.slot);
      }
    }
    for (size_t r = 0; r < n_rows(); r++) owners_.insert(owners_.end(), drafted_[r].size() + 1, r);
    for (size_t i = 0; i < owners_.size(); i++) fed.outputs.push_back(static_cast<int32_t>(i));
    logits_.resize(owners_.size() * vocab_size());
    return target_.run(fed.call(*rounds_.target, logits_.data()));
  }

  // Settle each row; false where one is over.
  bool verify(int round) {
    results_.resize(n_rows()), best_.resize(owners_.size()), p_.resize(std::max(p_.size(), owners_.size()));
    target_.pool().run(
        [](void* self, int thread) {
          auto& s = *static_cast<SpeculativeRounds*>(self);
          Pool& pool = s.target_.pool();
          for (size_t i = static_cast<size_t>(thread); i < s.owners_.size(); i += static_cast<size_t>(pool.n_active()))
            pool.attempt([&] { s.compute_distribution(i); });
          pool.barrier(thread, false);
          for (size_t r = static_cast<size_t>(thread); r < s.n_rows(); r += static_cast<size_t>(pool.n_active()))
            if (!pool.has_failed()) s.verify_row(r);
          pool.barrier(thread, false);
        },
        this);
    bool goes_on = true;
    for (size_t r = 0; r < n_rows(); r++) {
      Row& row = rows_[r];
      const Verification& result = results_[r];
      const size_t at = static_cast<size_t>(round) * n_rows() + r;
      rounds_.n_drafted[at] = static_cast<int32_t>(drafted_[r].size());
      rounds_.n_accepted[at] = result.n_accepted;
      rounds_.overlaps[at] = result.overlap;
      rounds_.uncertainties[at] = 0;
      for (size_t n = 0; n < std::min(static_cast<size_t>(result.n_accepted) + 1, drafted_[r].size()); n++)
        rounds_.uncertainties[at] += uncertainties_[n * n_rows() + r];
      sampled_[r].remove(drafted_[r].size());
      for (int n = 0; n <= result.n_accepted; n++) {
        const int64_t token = n < result.n_accepted ? drafted_[r][static_cast<size_t>(n)] : result.token;
        rounds_.tokens[at * static_cast<size_t>(rounds_.draft_length + 1) + static_cast<size_t>(n)] = token;
        texts_[r].push_back(token), sampled_[r].add(token);
        goes_on = goes_on && token != static_cast<int64_t>(vocab_size()) &&
                  std::find(rounds_.stops, rounds_.stops + rounds_.n_stops, token) == rounds_.stops + rounds_.n_stops;
      }
      // the draft's cache holds what it was fed: all that it proposed but the last
      row.n_draft = std::min(row.n_text + n_proposed_ - 1, row.n_text + result.n_accepted);
      row.n_text += result.n_accepted + 1;
      row.n_left -= result.n_accepted + 1;
      goes_on = goes_on && row.n_left > 1;  // the last token needs no draft
    }
    return goes_on;
  }

  // The target's distribution after a token that it was fed, or at temperature 0 its argmax.
  void compute_distribution(size_t i) {
    const size_t r = owners_[i], n_drafted = i - begins_[r];  // before this position
    const SamplingParams params = sampled_[r].params(drafted_[r].size() - n_drafted);
    float* logits = logits_.data() + i * vocab_size();
    const Penalized penalized(logits, params);
    const int n = target_.vocab_size();
    if (params.temperature == 0) best_[i] = p_[i].sample(logits, n, params, 0);
    else best_[i] = p_[i].compute_distribution(logits, n, params) ? 0 : n;
  }

  void verify_row(size_t r) {
    const Row& row = rows_[r];
    const size_t begin = begins_[r];
    const int n_drafted = static_cast<int>(drafted_[r].size());
    auto number = [&row](Purpose purpose) {
      return [&row, purpose](int n) { return uniform(row, row.n_text + n, purpose); };
    };
    auto proposed = [this, r](int n) -> const Sampler& { return q_[static_cast<size_t>(n) * n_rows() + r]; };
    if (row.params.temperature == 0) {
      results_[r] = verify_greedy(best_.data() + begin, drafted_[r].data(), n_drafted);
    } else {
      results_[r] = verify_sampled(p_.data() + begin, proposed, drafted_[r].data(), n_drafted, number(ACCEPTANCE),
                                   number(TOKEN), best_.data() + begin, target_.vocab_size());
    }
  }

  Engine &target_, &draft_;
  const Rounds& rounds_;
  std::vector<Row> rows_;
  std::vector<std::vector<int64_t>> texts_;       // of each row, from the token that the draft lacked first
  std::vector<int> first_;                        // the position of that token
  std::vector<int64_t> proposed_;                 // [depth][rows]
  int n_proposed_ = 0;                            // steps that the draft made
  std::vector<double> uniforms_, uncertainties_;  // [depth][rows]
  std::vector<GrowingParams> sampled_;  // of each row; from drafting to verification its text has the drafted tokens
  std::vector<SamplingParams> params_;
  std::vector<std::vector<int64_t>> drafted_;  // of each row
  std::vector<size_t> begins_, owners_;        // the first logits of each row; of each logits, their row
  std::vector<float> logits_;
  std::vector<Sampler> p_, q_;  // distributions: of the target's logits, and of the draft, [draft_length][rows]
  std::vector<int64_t> best_;   // of the logits, where the most probable token is wanted; `vocab_size`: no numbers
  std::vector<Verification> results_;
};

inline int run_rounds(Engine& target, Engine& draft, const Rounds& rounds) {
  return SpeculativeRounds(target, draft, rounds).run();
}
