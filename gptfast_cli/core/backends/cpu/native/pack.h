// From the parts in which a checkpoint stores a matrix to the units in which the kernels read it.
#pragma once

#include <algorithm>
#include <vector>

#include "groups.h"
#include "transpose.h"

inline Format format_of(const WeightView& s, bool narrow) {
  switch (s.kind) {
    case WeightKind::FLOAT32:
    case WeightKind::FLOAT16: return narrow ? BF16 : F32;
    case WeightKind::BFLOAT16: return BF16;
    case WeightKind::INT8: return INT8;
    case WeightKind::INT4: return INT4;
    default: return GROUPED;
  }
}

// The stored row that is row `lane` of a unit, or -1 where there is none.
inline int stored_row(const WeightView& s, int unit, int lane) {
  if (!s.interleaved) return unit * UNIT + lane < s.n_rows ? unit * UNIT + lane : -1;
  int half = s.n_rows / 2, row = unit * LANES + lane % LANES;
  if (row >= half) return -1;
  return lane < LANES ? row : half + row;
}

inline float element(const WeightView& s, int row, int column) {
  if (row < 0 || column >= s.n_columns) return 0;
  size_t at = static_cast<size_t>(row) * s.n_columns + column;
  if (s.kind == WeightKind::FLOAT32) return static_cast<const float*>(s.values)[at];
  uint16_t bits = static_cast<const uint16_t*>(s.values)[at];
  return s.kind == WeightKind::BFLOAT16 ? bf16_to_float(bits) : half_to_float(bits);
}

// 16 rows of a unit, each a run of 32-bit words, become words of 16 lanes among the unit's 32.
using Words = std::vector<uint32_t>;

inline void lay_out(const Words& rows, int n_words, int half, uint8_t* to) {
  transpose(rows.data(), static_cast<size_t>(n_words), n_words, reinterpret_cast<uint32_t*>(to) + LANES * half, UNIT);
}

inline void pack_floats(const WeightView& s, const Matrix& m, int unit, uint8_t* to) {
  Words rows(static_cast<size_t>(LANES) * m.n_columns);
  for (int half = 0; half < 2; half++) {
    for (int lane = 0; lane < LANES; lane++)
      for (int k = 0, row = stored_row(s, unit, LANES * half + lane); k < m.n_columns; k++)
        rows[static_cast<size_t>(lane) * m.n_columns + k] = to_bits(element(s, row, k));
    lay_out(rows, m.n_columns, half, to);
  }
}

inline void pack_bfloats(const WeightView& s, const Matrix& m, int unit, uint8_t* to) {
  const int n_words = (m.n_columns + 1) / 2;
  Words rows(static_cast<size_t>(LANES) * n_words);
  for (int half = 0; half < 2; half++) {
    std::fill(rows.begin(), rows.end(), 0);
    for (int lane = 0; lane < LANES; lane++) {
      const int row = stored_row(s, unit, LANES * half + lane);
      if (row < 0) continue;
      uint16_t* values = reinterpret_cast<uint16_t*>(rows.data() + static_cast<size_t>(lane) * n_words);
      if (s.kind == WeightKind::BFLOAT16) {
        const uint16_t* from = static_cast<const uint16_t*>(s.values) + static_cast<size_t>(row) * s.n_columns;
        memcpy(values, from, sizeof(uint16_t) * static_cast<size_t>(s.n_columns));
      } else {
        for (int k = 0; k < s.n_columns; k++) values[k] = float_to_bf16(element(s, row, k));
      }
    }
    lay_out(rows, n_words, half, to);
  }
}

inline void pack_int8(const WeightView& s, const Matrix& m, int unit, uint8_t* to) {
  const int n_columns = round_up(m.n_columns, GROUP), n_words = n_columns / 4;
  float* scales = reinterpret_cast<float*>(to + static_cast<size_t>(UNIT) * n_columns);
  Words rows(static_cast<size_t>(LANES) * n_words);
  for (int half = 0; half < 2; half++) {
    std::fill(rows.begin(), rows.end(), 0);
    for (int lane = 0; lane < LANES; lane++) {
      const int row = stored_row(s, unit, LANES * half + lane);
      scales[LANES * half + lane] = row >= 0 ? bf16_to_float(s.scales[row]) : 0;
      if (row < 0) continue;
      const int8_t* from = static_cast<const int8_t*>(s.values) + static_cast<size_t>(row) * s.n_columns;
      memcpy(rows.data() + static_cast<size_t>(lane) * n_words, from, static_cast<size_t>(s.n_columns));
    }
    for (uint32_t& word : rows) word ^= 0x80808080u;  // to code + 128
    lay_out(rows, n_words, half, to);
  }
}

// The codes of a stored group in the order of the lines: a word is columns 0..3 of eight, low, and 4..7, high.
inline void reorder_int4(const uint8_t* from, int group, uint32_t* to) {
  for (int k = 0; k < group; k += 8) {
    uint32_t low, high;  // four columns each
    memcpy(&low, from + k % (group / 2), 4);
    memcpy(&high, from + (k + 4) % (group / 2), 4);
    const int shift = k < group / 2 ? 0 : 4;
    *to++ = ((low >> shift) & 0x0f0f0f0fu) | ((high >> shift) & 0x0f0f0f0fu) << 4;
  }
}

inline void pack_int4(const WeightView& s, const Matrix& m, int unit, uint8_t* to) {
  const int n_groups = (s.n_columns + s.group - 1) / s.group, n_blocks = m.n_blocks();
  const int per_block = BLOCK / s.group, words = BLOCK / 8, n_words = n_blocks * words;
  memset(to, 0, m.unit_bytes);  // a group that is not there has a scale of 0: it counts for nothing
  Words rows(static_cast<size_t>(LANES) * n_words);
  for (int half = 0; half < 2; half++) {
    uint8_t* panel = to + static_cast<size_t>(half) * (m.unit_bytes / 2);
    std::fill(rows.begin(), rows.end(), 0);
    for (int lane = 0; lane < LANES; lane++) {
      const int row = stored_row(s, unit, LANES * half + lane);
      if (row < 0) continue;
      const uint8_t* codes =
          static_cast<const uint8_t*>(s.values) + static_cast<size_t>(row) * n_groups * (s.group / 2);
      const uint16_t* scales = s.scales + static_cast<size_t>(row) * n_groups;
      const uint8_t* zeros = s.zeros + static_cast<size_t>(row) * ((n_groups + 1) / 2);
      for (int group = 0; group < n_groups; group++) {
        uint8_t* block = panel + static_cast<size_t>(group / per_block) * m.block_bytes();
        const int j = group % per_block, per_group = s.group / GROUP;
        const uint32_t zero = (zeros[group / 2] >> (4 * (group % 2))) & 15u;
        for (int g = j * per_group; g < (j + 1) * per_group; g++)
          reinterpret_cast<uint32_t*>(block)[lane] |= zero << (4 * g);
        reinterpret_cast<uint16_t*>(block + 64)[LANES * j + lane] = scales[group];
        reorder_int4(codes + static_cast<size_t>(group) * (s.group / 2), s.group,
                     rows.data() + static_cast<size_t>(lane) * n_words + static_cast<size_t>(group) * (s.group / 8));
      }
    }
    for (int block = 0; block < n_blocks; block++)
      transpose(rows.data() + block * words, static_cast<size_t>(n_words),
                std::min(words, m.n_groups() * (GROUP / 8) - block * words),
                reinterpret_cast<uint32_t*>(panel + static_cast<size_t>(block) * m.block_bytes() + 64 +
                                            64 * m.scale_lines()));
  }
}

inline void pack_unit(const WeightView& s, const Matrix& m, int unit) {
  uint8_t* to = m.units + static_cast<size_t>(unit) * m.unit_bytes;
  switch (m.format) {
    case F32: return pack_floats(s, m, unit, to);
    case BF16: return pack_bfloats(s, m, unit, to);
    case INT8: return pack_int8(s, m, unit, to);
    case INT4: return pack_int4(s, m, unit, to);
    default: return pack_grouped(s, m, unit, to, stored_row);
  }
}

// A row of a stored matrix as floats: an embedding.
inline void read_row(const WeightView& s, int row, float* to) {
  if (s.kind == WeightKind::GROUPED) return read_grouped_row(s, row, to);
  const size_t n = static_cast<size_t>(s.n_columns);
  if (s.kind != WeightKind::INT8 && s.kind != WeightKind::INT4) {
    for (int k = 0; k < s.n_columns; k++) to[k] = element(s, row, k);
  } else if (s.kind == WeightKind::INT8) {
    const int8_t* codes = static_cast<const int8_t*>(s.values) + static_cast<size_t>(row) * n;
    float scale = bf16_to_float(s.scales[row]);
    for (int k = 0; k < s.n_columns; k++) to[k] = static_cast<float>(codes[k]) * scale;
  } else {
    const int n_groups = (s.n_columns + s.group - 1) / s.group;
    const uint8_t* codes = static_cast<const uint8_t*>(s.values) + static_cast<size_t>(row) * n_groups * (s.group / 2);
    const uint8_t* zeros = s.zeros + static_cast<size_t>(row) * ((n_groups + 1) / 2);
    for (int k = 0; k < s.n_columns; k++) {
      int group = k / s.group, i = k % s.group;
      const uint8_t* from = codes + static_cast<size_t>(group) * (s.group / 2);
      int code = i < s.group / 2 ? from[i] & 15 : from[i - s.group / 2] >> 4;
      int zero = (zeros[group / 2] >> (4 * (group % 2))) & 15;
      float scale = bf16_to_float(s.scales[static_cast<size_t>(row) * n_groups + group]);
      to[k] = static_cast<float>(code - zero) * scale;
    }
  }
}
