// Sampling a token from logits: argmax, or the inverse CDF after temperature, top-k, top-p and min-p.
//
// The rules and their order are those of engine/sampling.py, the repetition penalty before all others;
// tests/backends/test_cpu_choosing.py holds both equal. Most blocks of logits are skipped: the k-th largest of the block
// maxima is a lower bound of the k-th largest logit.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "abi.h"
#include "simd.h"

// The repetition penalty on the logits of the tokens seen, once however often they come, as long as this lives.
// Source: CTRL (Keskar et al. 2019, arXiv:1909.05858).
class Penalized {
 public:
  Penalized(float* logits, const SamplingParams& params) : logits_(logits), seen_(params.seen) {
    if (params.repetition_penalty == 1) return;
    kept_.resize(static_cast<size_t>(params.n_seen));
    for (size_t i = 0; i < kept_.size(); i++) kept_[i] = logits[seen_[i]];
    for (size_t i = 0; i < kept_.size(); i++)
      logits[seen_[i]] = kept_[i] > 0 ? kept_[i] / params.repetition_penalty : kept_[i] * params.repetition_penalty;
  }

  Penalized(const Penalized&) = delete;
  Penalized& operator=(const Penalized&) = delete;

  ~Penalized() {
    for (size_t i = 0; i < kept_.size(); i++) logits_[seen_[i]] = kept_[i];
  }

 private:
  float* logits_;
  const int64_t* seen_;
  std::vector<float> kept_;
};

// The sampling parameters of a text to which tokens are added, and removed from its end.
class GrowingParams {
 public:
  explicit GrowingParams(const SamplingParams& params) : params_(params) {
    if (penalizes()) seen_.assign(params.seen, params.seen + params.n_seen);
  }

  void add(int64_t token) {
    if (penalizes()) seen_.push_back(token);
  }

  void remove(size_t n_tokens) {
    if (penalizes()) seen_.resize(seen_.size() - n_tokens);
  }

  // Without the last so many tokens; until the text changes.
  SamplingParams params(size_t n_without = 0) const {
    SamplingParams params = params_;
    if (penalizes()) params.n_seen = static_cast<int>(seen_.size() - n_without), params.seen = seen_.data();
    return params;
  }

 private:
  bool penalizes() const { return params_.repetition_penalty != 1; }

  SamplingParams params_;
  std::vector<int64_t> seen_;
};

struct Candidate {
  int token;
  float logit;  // relative to the largest, over the temperature
  float weight;
};

class Sampler {
 public:
  // The token at `uniform` in [0, 1) of the CDF; `n` where a logit is NaN or infinite.
  int sample(const float* logits, int n, const SamplingParams& params, double uniform) {
    if (!begin(logits, n, params)) return n;
    if (params.temperature == 0) return first_of_the_largest();
    if (!truncates(params)) return draw_from_all(params.min_p, uniform);
    truncate(params);
    return draw(uniform);
  }

  // The same; at a temperature above 0 the distribution is kept.
  int sample_and_keep(const float* logits, int n, const SamplingParams& params, double uniform) {
    if (params.temperature == 0) return sample(logits, n, params, uniform);
    return compute_distribution(logits, n, params) ? draw(uniform) : n;
  }

  // Compute and keep the distribution at a temperature above 0; false where a logit is NaN or infinite.
  bool compute_distribution(const float* logits, int n, const SamplingParams& params) {
    candidates_.clear();
    if (!begin(logits, n, params)) return false;
    truncate(params);
    return true;
  }

  // That distribution: tokens in ascending order; probability = weight / total.
  const std::vector<Candidate>& candidates() const { return candidates_; }
  double total() const { return total_; }

  double probability(int token) const {
    auto found = std::lower_bound(candidates_.begin(), candidates_.end(), token,
                                  [](const Candidate& c, int wanted) { return c.token < wanted; });
    return found != candidates_.end() && found->token == token ? found->weight / total_ : 0;
  }

  // Probability of the token just sampled: of the kept distribution, or at temperature 0 its softmax probability.
  double confidence(int token) const { return temperature_ == 0 ? max_probability() : probability(token); }

  // log(sum(exp(logits))), after `sample` at temperature 0.
  double logsumexp() const { return largest_ - std::log(max_probability()); }

  // The candidate at which the sum of the weights passes `uniform` of the whole.
  int draw(double uniform) const {
    const double threshold = uniform * total_;
    double reached = 0;
    for (const Candidate& c : candidates_)
      if ((reached += c.weight) > threshold) return c.token;
    return candidates_.back().token;
  }

 private:
  static constexpr int BLOCK_SIZE = 32;
  static constexpr size_t BLOCKS_SUMMED = 32;
  static constexpr int BIN_SHIFT = 19;  // of the bits of a weight, from 0 to 1: 16 bins for each power of 2
  static constexpr int N_WEIGHT_BINS = (0x3F800000 >> BIN_SHIFT) + 1;

  bool begin(const float* logits, int n, const SamplingParams& params) {
    logits_ = logits, n_ = n, temperature_ = params.temperature;
    return find_maxima();
  }

  bool truncates(const SamplingParams& params) const {
    return (params.top_k > 0 && params.top_k < n_) || params.top_p < 1;
  }

  // Leave the candidates that may be drawn, and weigh them.
  void truncate(const SamplingParams& params) {
    const bool has_top_k = params.top_k > 0 && params.top_k < n_;
    if (params.top_p < 1 && !has_top_k) {
      keep_top_p_of_all(params.top_p);
    } else {
      if (has_top_k) keep_top_k(params.top_k);
      else collect_top(n_);
      const double total = weigh();
      if (params.top_p < 1) keep_top_p(params.top_p, total);
    }
    if (params.min_p > 0) keep_from(static_cast<float>(std::log(params.min_p)));
    total_ = 0;
    for (const Candidate& c : candidates_) total_ += c.weight;
  }

  float scaled(float logit) const { return (logit - largest_) / temperature_; }

  int end_of(size_t block) const { return std::min(n_, static_cast<int>(block + 1) * BLOCK_SIZE); }

  // The largest logit, of each block and of all; false where one is no number.
  bool find_maxima() {
    maxima_.resize(static_cast<size_t>((n_ + BLOCK_SIZE - 1) / BLOCK_SIZE));
    const Floats lowest = splat(-3e38f);  // -infinity masks a token
    Floats differences = splat(0);  // x - x is 0, but for what is no number; max gives its second where one is none
    float rest = 0;
    largest_ = -INFINITY;
    for (size_t block = 0; block < maxima_.size(); block++) {
      int i = static_cast<int>(block) * BLOCK_SIZE;
      float largest = -INFINITY;
      if (i + BLOCK_SIZE <= n_) {
        Floats low = load(logits_ + i), high = load(logits_ + i + LANES);
        largest = maximum(max(low, high));
        low = max(lowest, low), high = max(lowest, high);
        differences = differences + (low - low) + (high - high);
      } else {
        for (; i < n_; i++) {
          if (logits_[i] != -INFINITY) rest += logits_[i] - logits_[i];
          largest = std::max(largest, logits_[i]);
        }
      }
      maxima_[block] = largest;
      largest_ = std::max(largest_, largest);
    }
    return sum(differences) + rest == 0 && largest_ != -INFINITY;
  }

  int first_of_the_largest() const {
    const auto block = std::find(maxima_.begin(), maxima_.end(), largest_) - maxima_.begin();
    return static_cast<int>(std::find(logits_ + block * BLOCK_SIZE, logits_ + n_, largest_) - logits_);
  }

  double max_probability() const {
    double total = 0;
    for (size_t begin = 0; begin < maxima_.size(); begin += BLOCKS_SUMMED) {
      const size_t end = std::min(begin + BLOCKS_SUMMED, maxima_.size());
      total += weight_of(begin, end);
    }
    return 1 / total;
  }

  // Of the tokens of some blocks together, relative to the largest: few enough blocks to be added up in floats.
  float weight_of(size_t begin, size_t end) const {
    Floats total = splat(0);
    float rest = 0;
    for (size_t block = begin; block < end; block++) {
      if (maxima_[block] < largest_ - 30) continue;  // too little to count, even of all tokens together
      int i = static_cast<int>(block) * BLOCK_SIZE;
      for (; i + LANES <= end_of(block); i += LANES) total = total + exp(load(logits_ + i) - splat(largest_));
      for (; i < end_of(block); i++) rest += std::exp(logits_[i] - largest_);
    }
    return sum(total) + rest;
  }

  // At least the k largest, in the order of tokens; all of them where there are no more.
  void collect_top(int k) {
    candidates_.clear();
    if (2 * k >= static_cast<int>(maxima_.size())) return collect_by_bins(k);
    sorted_ = maxima_;
    std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<>());
    const float bound = scaled(sorted_[static_cast<size_t>(k - 1)]);
    for (size_t block = 0; block < maxima_.size(); block++) {
      if (scaled(maxima_[block]) < bound) continue;
      for (int i = static_cast<int>(block) * BLOCK_SIZE; i < end_of(block); i++)
        if (float logit = scaled(logits_[i]); logit >= bound) candidates_.push_back({i, logit, 0});
    }
  }

  // The same where blocks are too few to rule out much: by how far each is from the largest, in eighths.
  void collect_by_bins(int k) {
    constexpr int N_BINS = 256;
    int counts[N_BINS] = {};
    bins_.resize(static_cast<size_t>(n_));
    for (int i = 0; i < n_; i++) {
      const float away = std::min(-8 * scaled(logits_[i]), N_BINS - 1.0f);
      bins_[static_cast<size_t>(i)] = static_cast<uint8_t>(away);
    }
    for (uint8_t bin : bins_) counts[bin]++;
    int last = 0;
    for (int n = counts[0]; n < k && last < N_BINS - 1;) n += counts[++last];
    for (int i = 0; i < n_; i++)
      if (bins_[static_cast<size_t>(i)] <= last) candidates_.push_back({i, scaled(logits_[i]), 0});
  }

  // The k largest, and those that equal the smallest of them.
  void keep_top_k(int k) {
    collect_top(k);
    sorted_.clear();
    for (const Candidate& c : candidates_) sorted_.push_back(c.logit);
    std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<>());
    keep_from(sorted_[static_cast<size_t>(k - 1)]);
  }

  void keep_from(float bound) {
    std::erase_if(candidates_, [bound](const Candidate& c) { return c.logit < bound; });
  }

  // The weights of the candidates; returns their sum.
  double weigh() {
    double total = 0;
    for (Candidate& c : candidates_) total += c.weight = std::exp(c.logit);
    return total;
  }

  // The fewest candidates that together reach a share of p, of equals the later tokens; false where all of them do not.
  // Their weights, known to about 1e-7 of themselves, are added up in bins; only those at the border are compared.
  bool keep_top_p(double p, double total) {
    constexpr double ERROR = 1e-6;  // above that of a weight, or of a sum of them
    const double least = p * total;
    double bin_weights[N_WEIGHT_BINS] = {};
    for (const Candidate& c : candidates_) bin_weights[to_bits(c.weight) >> BIN_SHIFT] += c.weight;
    int bin = N_WEIGHT_BINS - 1;
    double reached = bin_weights[bin];
    while (bin > 0 && reached < least * (1 - ERROR)) reached += bin_weights[--bin];
    const double above = from_bits(static_cast<uint32_t>(bin + 1) << BIN_SHIFT) * (1 + ERROR);
    while (bin > 0 && reached < least * (1 + ERROR)) reached += bin_weights[--bin];
    const double lowest = from_bits(static_cast<uint32_t>(bin) << BIN_SHIFT) * (1 - ERROR);
    size_t n = 0;
    for (const Candidate& c : candidates_) candidates_[n] = c, n += c.weight >= lowest;
    candidates_.resize(n);
    border_.clear();
    reached = 0;
    for (Candidate& c : candidates_) {
      c.logit = scaled(logits_[c.token]), c.weight = std::exp(c.logit);
      if (c.weight >= above) reached += c.weight;
      else border_.push_back(c);
    }
    const auto precedes = [](const Candidate& a, const Candidate& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.token > b.token);
    };
    // halve the range that holds the last one to keep
    auto begin = border_.begin(), end = border_.end();
    while (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, precedes);
      double weight = 0;
      for (auto c = begin; c != middle; c++) weight += c->weight;
      if (reached + weight >= least) end = middle;
      else reached += weight, begin = middle;
    }
    const Candidate last = *begin;
    std::erase_if(candidates_, [&](const Candidate& c) { return precedes(last, c); });
    return reached + last.weight >= least;
  }

  // The same over all tokens. Those left out at once, without a sort, weigh less than 1 - p together.
  void keep_top_p_of_all(double p) {
    const double total = sum_blocks(-INFINITY);
    const float least = static_cast<float>(0.5 * (1 - p) * total / n_);
    heavy_.resize(static_cast<size_t>(n_) + 1);
    size_t n = 0;
    for (size_t block = 0; block < maxima_.size(); block++) {
      if (sums_[block] < least) continue;
      for (int i = static_cast<int>(block) * BLOCK_SIZE; i < end_of(block); i++)
        heavy_[n] = i, n += weights_[static_cast<size_t>(i)] >= least;
    }
    candidates_.clear();
    for (size_t i = 0; i < n; i++) candidates_.push_back({heavy_[i], 0, weights_[static_cast<size_t>(heavy_[i])]});
    if (keep_top_p(p, total)) return;
    collect_top(n_);  // p is too near to 1 for sums that are rounded
    keep_top_p(p, weigh());
  }

  // The sum of the weights of each block, without those of logits below a bound, and of all.
  double sum_blocks(float bound) {
    constexpr size_t AT_ONCE = 4;  // additions in a block wait for each other, but not for those in others
    weights_.resize((maxima_.size() + AT_ONCE) * BLOCK_SIZE);
    sums_.resize(maxima_.size());
    const float lowest = std::max(bound, -87.0f);
    double total = 0;
    for (size_t first = 0; first < maxima_.size(); first += AT_ONCE) {
      const size_t end = std::min(first + AT_ONCE, maxima_.size());
      for (size_t block = first; block < end; block++) weigh_block(block, lowest);
      const float* weights = weights_.data() + first * BLOCK_SIZE;
      double sums[AT_ONCE] = {};
      for (int i = 0; i < BLOCK_SIZE; i++)
        for (size_t n = 0; n < AT_ONCE; n++) sums[n] += weights[n * BLOCK_SIZE + static_cast<size_t>(i)];
      for (size_t block = first; block < end; block++) total += sums_[block] = sums[block - first];
    }
    return total;
  }

  // 0 for logits below `lowest`.
  void weigh_block(size_t block, float lowest) {
    float* weights = weights_.data() + block * BLOCK_SIZE;
    if (scaled(maxima_[block]) < lowest) {
      std::fill(weights, weights + BLOCK_SIZE, 0.0f);
      return;
    }
    const int begin = static_cast<int>(block) * BLOCK_SIZE, n = std::min(BLOCK_SIZE, n_ - begin);
    const float largest = largest_, temperature = temperature_;
    alignas(64) float logits[BLOCK_SIZE];
    std::fill(logits, logits + BLOCK_SIZE, -INFINITY);
    std::copy(logits_ + begin, logits_ + begin + n, logits);
    for (float& logit : logits) logit = (logit - largest) / temperature;
    store(weights, exp(load(logits)));
    store(weights + LANES, exp(load(logits + LANES)));
    for (int i = 0; i < BLOCK_SIZE; i++) weights[i] = logits[i] < lowest ? 0 : weights[i];
  }

  // A draw from all tokens: first its block, then the token in it.
  int draw_from_all(double min_p, double uniform) {
    const double threshold = uniform * sum_blocks(min_p > 0 ? static_cast<float>(std::log(min_p)) : -INFINITY);
    double reached = 0;
    int last = 0;
    for (size_t block = 0; block < sums_.size(); block++) {
      if (reached + sums_[block] <= threshold) {
        reached += sums_[block];
        continue;
      }
      for (int i = static_cast<int>(block) * BLOCK_SIZE; i < end_of(block); i++) {
        if (weights_[static_cast<size_t>(i)] == 0) continue;
        last = i;
        if ((reached += weights_[static_cast<size_t>(i)]) > threshold) return i;
      }
    }
    return last;
  }

  const float* logits_ = nullptr;
  int n_ = 0;
  float largest_ = 0, temperature_ = 1;
  double total_ = 0;
  std::vector<float> maxima_;  // of blocks
  std::vector<float> sorted_, weights_;
  std::vector<double> sums_;  // of the weights of blocks
  std::vector<uint8_t> bins_;
  std::vector<int> heavy_;  // tokens
  std::vector<Candidate> candidates_, border_;
};
