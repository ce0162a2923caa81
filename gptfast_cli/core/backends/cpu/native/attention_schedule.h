// Work split of attention: (rows, KV head) tasks over the threads, split along the keys when there are few tasks.
#pragma once

#include <algorithm>
#include <vector>

#include "abi.h"
#include "attention.h"
#include "pool.h"

class AttentionSchedule {
 public:
  AttentionSchedule(const Heads& heads, int n_threads)
      : heads_(heads),
        n_threads_(n_threads),
        scratch_(static_cast<size_t>(n_threads)),
        tiles_(static_cast<size_t>(n_threads)),
        results_(static_cast<size_t>(n_threads)),
        begins_(static_cast<size_t>(n_threads) + 1) {}

  const Heads& heads() const { return heads_; }

  // A task is a QueryTile: adjacent rows of one slot times the query heads of one KV head, up to QUERIES.
  void plan(const Call& call) {
    call_ = &call;
    tasks_.clear();
    const int group = heads_.group(), most = std::max(1, QUERIES / group);
    size_t n_parts = 0;
    int most_chunks = 0;  // of a task
    for (int begin = 0, end; begin < call_->n_rows; begin = end) {
      for (end = begin + 1; end < call_->n_rows && call_->slots[end] == call_->slots[begin];) end++;
      const int n_pieces = (end - begin + most - 1) / most, per_piece = (end - begin + n_pieces - 1) / n_pieces;
      for (int kv_head = 0; kv_head < heads_.n_kv_heads; kv_head++) {  // whose keys stay near until all have read them
        for (int first = begin; first < end; first += per_piece) {
          const int last = std::min(first + per_piece, end), end_chunk = call_->positions[last - 1] / CHUNK + 1;
          const int first_chunk = heads_.first_key(call_->positions[first]) / CHUNK;
          most_chunks = std::max(most_chunks, end_chunk - first_chunk);
          for (int g = 0; g < group; g += QUERIES, n_parts += static_cast<size_t>(end_chunk - first_chunk) * QUERIES)
            tasks_.push_back(
                {first, last, kv_head * group + g, std::min(QUERIES, group - g), first_chunk, end_chunk, n_parts});
        }
      }
    }
    splits_chunks_ = most_chunks > 1 && static_cast<int>(tasks_.size()) < 2 * n_threads_;
    if (splits_chunks_)
      partials_.resize(std::max(partials_.size(), n_parts * static_cast<size_t>(LANES + heads_.head_dim)));
  }

  // Contiguous runs of tasks of about equal cost (queries times keys) for each thread: neighbours share keys.
  void assign(int n_threads) {
    auto cost = [&](const Task& task) {
      const int position = call_->positions[task.end - 1];
      return static_cast<size_t>(task.end - task.first) * task.n_heads * (position + 1 - heads_.first_key(position));
    };
    n_assigned_ = n_threads;
    size_t total = 0, before = 0, thread = 0;
    const size_t n_parts = static_cast<size_t>(n_threads);
    for (const Task& task : tasks_) total += cost(task);
    begins_.assign(n_parts + 1, tasks_.size());
    for (size_t t = 0; t < tasks_.size(); before += cost(tasks_[t++]))
      while (thread < n_parts && before * n_parts >= thread * total) begins_[thread++] = t;
  }

  // Attention of a layer on this thread. With few tasks the threads split chunks of keys, and merge after a barrier.
  void run(int layer, const float* queries, float* to, int stride, Pool& pool, int thread) {
    QueryTile& tile = tiles_[static_cast<size_t>(thread)];
    ChunkResult& result = results_[static_cast<size_t>(thread)];
    const int n_threads = n_assigned_, n_tasks = static_cast<int>(tasks_.size());
    if (!splits_chunks_) {
      for (size_t t = begins_[static_cast<size_t>(thread)]; t < begins_[static_cast<size_t>(thread) + 1]; t++) {
        const Task& task = tasks_[t];
        begin(task, queries, tile);
        for (int chunk = task.first_chunk; chunk < task.end_chunk; chunk++) {
          attend(layer, task, tile, chunk, thread);
          for (int i = 0; i < tile.n; i++)
            if (result.has_keys[i])
              merge_chunk(tile, i, result.largest[i], result.total[i], result.value[i], heads_.head_dim);
        }
        finish(task, tile, to, stride);
      }
      return;
    }
    int number = 0;  // of a task's chunk, among all
    for (const Task& task : tasks_) {
      begin(task, queries, tile);
      for (int chunk = task.first_chunk; chunk < task.end_chunk; chunk++, number++) {
        if (number % n_threads != thread) continue;
        attend(layer, task, tile, chunk, thread);
        for (int i = 0; i < tile.n; i++) {
          float* part = partial_at(task, chunk, i);
          part[0] = result.has_keys[i], part[1] = result.largest[i], part[2] = result.total[i];
          memcpy(part + LANES, result.value[i], sizeof(float) * static_cast<size_t>(heads_.head_dim));
        }
      }
    }
    pool.barrier(thread);
    for (int t = thread; t < n_tasks; t += n_threads) {
      const Task& task = tasks_[static_cast<size_t>(t)];
      begin(task, queries, tile);
      for (int chunk = task.first_chunk; chunk < task.end_chunk; chunk++)
        for (int i = 0; i < tile.n; i++)
          if (const float* part = partial_at(task, chunk, i); part[0] != 0)
            merge_chunk(tile, i, part[1], part[2], part + LANES, heads_.head_dim);
      finish(task, tile, to, stride);
    }
  }

 private:
  struct Task {  // rows `first` to `end` of one slot, and query heads that share a key head
    int first, end, head, n_heads, first_chunk, end_chunk;
    size_t first_part;  // of its chunks, where these are shared out
  };

  void begin(const Task& task, const float* queries, QueryTile& a) const {
    const size_t element = heads_.has_bf16_queries() ? 2 : 4;
    a.n = 0;
    for (int row = task.first; row < task.end; row++) {
      for (int head = task.head; head < task.head + task.n_heads; head++, a.n++) {
        const size_t at = (static_cast<size_t>(row) * heads_.n_heads + head) * heads_.head_dim;
        a.query[a.n] = reinterpret_cast<const uint8_t*>(queries) + at * element;
        a.position[a.n] = call_->positions[row];
        a.largest[a.n] = -3e38f, a.total[a.n] = 0;
        memset(a.value[a.n], 0, sizeof(float) * static_cast<size_t>(heads_.head_dim));
      }
    }
  }

  void attend(int layer, const Task& task, const QueryTile& a, int chunk, int thread) {
    HeadBlock blocks[2 * CHUNK_BLOCKS];
    const int first = heads_.first_key(call_->positions[task.first]) / KEY_BLOCK;
    const int last = call_->positions[task.end - 1] / KEY_BLOCK;
    for (int b = 0; b < 2 * CHUNK_BLOCKS; b++)  // blocks out of sight stand for those that no query reads
      blocks[b] = head_block(*call_, heads_, layer, call_->slots[task.first], task.head / heads_.group(),
                             std::clamp(chunk * CHUNK_BLOCKS + b, first, last));
    attend_chunk(a, heads_, blocks, chunk, scratch_[static_cast<size_t>(thread)],
                 results_[static_cast<size_t>(thread)]);
  }

  void finish(const Task& task, const QueryTile& a, float* to, int stride) const {
    for (int i = 0; i < a.n; i++) {
      const int row = task.first + i / task.n_heads, head = task.head + i % task.n_heads;
      float* out = to + static_cast<size_t>(row) * stride + head * heads_.head_dim;
      const Floats share = splat(1 / a.total[i]);
      for (int k = 0; k < heads_.head_dim; k += LANES) store(out + k, load(a.value[i] + k) * share);
    }
  }

  // The unmerged result of a chunk for a query: has_keys, largest, total; then, LANES floats on, value [head_dim].
  float* partial_at(const Task& task, int chunk, int query) {
    return partials_.data() + (task.first_part + static_cast<size_t>(chunk - task.first_chunk) * QUERIES + query) *
                                  (LANES + heads_.head_dim);
  }

  const Heads heads_;
  const int n_threads_;           // at most
  int n_assigned_ = 0;            // in the present run
  std::vector<Scratch> scratch_;  // of each thread, as the next two
  std::vector<QueryTile> tiles_;
  std::vector<ChunkResult> results_;
  std::vector<Task> tasks_;
  std::vector<size_t> begins_;   // of each thread's tasks, and their end
  std::vector<float> partials_;  // unmerged results of chunks, when these are split over threads
  bool splits_chunks_ = false;
  const Call* call_ = nullptr;
};
