// Weight matrices as the kernels read them, and the rows that they are multiplied with.
//
// A matrix is a run of units; a unit is one strictly ascending stream of whole cache lines, so that a thread that goes
// from unit to unit reads memory as fast as it comes:
//
//   F32    [K][32] float                      BF16   [K/2][32][2] bfloat16
//   INT8   [K/4][32][4] uint8, code + 128; then [32] float, a scale for each row
//   INT4   two panels of 16 rows; a panel is [K/256] blocks of
//            1 line   [16] uint32: eight 4-bit zero points for each row, one for each 32 columns
//            n lines  [8][16] bfloat16 scales, of which [256 / group][16] are stored
//            32 lines [32][16][4] uint8: the low halves are columns 0..3 of eight, the high ones columns 4..7; the last
//                     block has 4 for each 32 columns
//   GROUPED  two panels of 16 rows; a panel is [K/256] blocks of
//            n lines  [256 / group][16] scales, then as many offsets and zero points, then [16] super scales and super
//                     offsets, each as stored and each only where there are any
//            lines    for each 32 columns as many as a code has bits, the planes one after another:
//                     8 bits  a line is 4 columns, a byte each
//                     4 bits  a line is 8 columns as in INT4
//                     2 bits  a line is 16 columns: field q of byte i is column 4 q + i
//                     1 bit   a line is 32 columns, likewise
#pragma once

#include <vector>

#include "abi.h"
#include "dots.h"

constexpr int UNIT = 32;        // output rows of a unit
constexpr int TILE = 8;         // input rows of a kernel call, at most
constexpr int GROUP = 32;       // columns that share an input scale
constexpr int BLOCK = 256;      // columns of an INT4 block; rows of input are zeros up to a multiple of it
constexpr int PREFETCH = 8192;  // bytes ahead, in reading order

enum Format { F32, BF16, INT8, INT4, GROUPED };
enum InputFormat { FLOAT, BFLOAT, CODES };

// How the groups of a GROUPED matrix are packed.
struct GroupFormat {
  int bits = 0;
  int columns = 0;  // that share params in a block: 16 to 256
  CodeValues values = CodeValues::CONSECUTIVE;
  float first = 0, multiplier = 1;
  ScaleForm scale_form = ScaleForm::NONE, offset_form = ScaleForm::NONE;
  bool has_zeros = false, has_super_scales = false, has_super_offsets = false;
  alignas(64) float floats[16] = {};
  int8_t integers[16] = {};

  int n_params() const { return BLOCK / columns; }  // of a row in a block
  int offsets_at() const { return LANES * n_params() * bytes_of(scale_form); }
  int zeros_at() const { return offsets_at() + LANES * n_params() * bytes_of(offset_form); }
  int super_scales_at() const { return zeros_at() + (has_zeros ? LANES * n_params() : 0); }
  int super_offsets_at() const { return super_scales_at() + (has_super_scales ? 2 * LANES : 0); }
  int header_bytes() const { return (super_offsets_at() + (has_super_offsets ? 2 * LANES : 0) + 63) / 64 * 64; }

  static int bytes_of(ScaleForm form) {
    switch (form) {
      case ScaleForm::NONE: return 0;
      case ScaleForm::FLOAT: return 4;
      case ScaleForm::HALF:
      case ScaleForm::BF16: return 2;
      default: return 1;
    }
  }
};

struct Matrix {
  uint8_t* units = nullptr;
  size_t unit_bytes = 0;
  int n_rows = 0, n_columns = 0;
  Format format = F32;
  InputFormat input_format = FLOAT;  // that its input has
  int group = 0;                     // columns that share a scale and a zero point, of INT4
  const float* bias = nullptr;       // [n_units][32], or none
  GroupFormat groups;                // of GROUPED
  const int32_t* order = nullptr;    // [n_columns], where the elements of its input come from; none: their own place

  int n_padded() const { return n_blocks() * BLOCK; }  // columns of its input, zeros at the end
  int n_units() const { return (n_rows + UNIT - 1) / UNIT; }
  int scale_lines() const { return (BLOCK / group + 1) / 2; }
  int scale_shift() const { return __builtin_ctz(static_cast<unsigned>(group / GROUP)); }  // of the groups of 32
  int n_groups() const { return (n_columns + GROUP - 1) / GROUP; }
  int n_blocks() const { return (n_columns + BLOCK - 1) / BLOCK; }
  size_t block_bytes() const { return 64 * static_cast<size_t>(1 + scale_lines() + 32); }
  size_t panel_bytes() const {
    return 64 * static_cast<size_t>(n_blocks() * (1 + scale_lines()) + n_groups() * GROUP / 8);
  }
  size_t bytes() const { return unit_bytes * static_cast<size_t>(n_units()); }
};

// Matrices below one another, which have the same input: rows may be stored in several ways. All but the last have
// whole units.
struct Linear {
  std::vector<Matrix> parts;

  int n_columns() const { return parts[0].n_columns; }
  int n_padded() const { return parts[0].n_padded(); }
  const int32_t* order() const { return parts[0].order; }
  int n_units() const {
    int n = 0;
    for (const Matrix& part : parts) n += part.n_units();
    return n;
  }
};

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

inline size_t bytes_of_unit(const Matrix& m) {
  size_t k = static_cast<size_t>(m.n_columns);
  switch (m.format) {
    case F32: return 4 * UNIT * k;
    case BF16: return 2 * UNIT * static_cast<size_t>(round_up(m.n_columns, 2));
    case INT8: return UNIT * static_cast<size_t>(round_up(m.n_columns, GROUP)) + 4 * UNIT;
    case INT4: return 2 * m.panel_bytes();
    default: {
      const size_t lines = static_cast<size_t>(m.n_groups()) * static_cast<size_t>(m.groups.bits);
      return 2 * (static_cast<size_t>(m.n_blocks()) * static_cast<size_t>(m.groups.header_bytes()) + 64 * lines);
    }
  }
}

// Rows of input in the forms that matrices want, `stride` apart; 0 from the matrix's last column on, up to a whole
// block.
struct Input {
  float* floats = nullptr;
  uint16_t* bfloats = nullptr;
  int8_t* codes = nullptr;
  float* scales = nullptr;       // [rows][stride / 32]
  float* scaled_sums = nullptr;  // scale times the sum of the codes
  int32_t* offsets = nullptr;    // -128 times that sum, for weights stored as code + 128
  float* half_sums = nullptr;    // [rows][stride / 16], scale times the sum of the codes of 16 columns
  int stride = 0;

  Input from(int row) const {
    size_t at = static_cast<size_t>(row) * stride, group = at / GROUP;
    Input rest = *this;
    if (floats) rest.floats += at;
    if (bfloats) rest.bfloats += at;
    if (codes) rest.codes += at, rest.scales += group, rest.scaled_sums += group, rest.offsets += group;
    if (codes) rest.half_sums += 2 * group;
    return rest;
  }
};

// The form of input that a matrix of a format wants: `narrow` allows forms of fewer bits, where the machine has them.
inline InputFormat input_format_of(Format format, bool narrow) {
#if defined(GF_BF16)
  if (narrow && format == BF16) return BFLOAT;
#endif
#if defined(GF_DOTS)
  if (narrow && (format == INT8 || format == INT4 || format == GROUPED)) return CODES;
#endif
  (void)format, (void)narrow;
  return FLOAT;
}
