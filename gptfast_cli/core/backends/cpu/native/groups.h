// Matrices in the grouped scheme: from the parts in which they are stored to the units in which kernels read them, and
// the params of a block as floats.
#pragma once

#include <algorithm>
#include <vector>

#include "matrix.h"

// The codes of a stored group, a byte each, from planes whose field f of byte j is that of element j + f n, n bytes.
inline void unpack_codes(const uint8_t* planes, int bits, int size, uint8_t* codes) {
  std::fill_n(codes, size, uint8_t{0});
  for (int shift = 0; shift < bits;) {
    const int width = bits - shift >= 8 ? 8 : bits - shift >= 4 ? 4 : bits - shift >= 2 ? 2 : 1, n = size * width / 8;
    for (int field = 0; field < 8 / width; field++)
      for (int j = 0; j < n; j++)
        codes[field * n + j] |= static_cast<uint8_t>(((planes[j] >> (field * width)) & ((1 << width) - 1)) << shift);
    planes += n, shift += width;
  }
}

inline GroupFormat group_format(const Groups& s) {
  GroupFormat f;
  f.bits = s.bits, f.values = s.values, f.first = s.first, f.multiplier = s.multiplier;
  f.columns = BLOCK;
  while (s.size % f.columns) f.columns /= 2;
  f.scale_form = s.scale_form, f.offset_form = s.offset_form, f.has_zeros = s.zeros != nullptr;
  f.has_super_scales = s.super_scales != nullptr, f.has_super_offsets = s.super_offsets != nullptr;
  if (s.values == CodeValues::FLOATS) std::copy_n(s.floats, 16, f.floats);
  if (s.values == CodeValues::INTEGERS)
    for (int i = 0; i < 16; i++) f.integers[i] = s.integers[i], f.floats[i] = s.integers[i];
  return f;
}

// The words of a row's 32 columns, one for each line; `codes` are a byte each.
inline void code_words(const uint8_t* codes, int bits, uint32_t* words) {
  std::fill_n(words, bits, 0u);
  for (int shift = 0; shift < bits;) {
    const int width = bits - shift >= 8 ? 8 : bits - shift >= 4 ? 4 : bits - shift >= 2 ? 2 : 1, fields = 8 / width;
    for (int column = 0; column < GROUP; column++) {
      const int quad = column / 4, byte = column % 4;
      const uint32_t field = (static_cast<uint32_t>(codes[column]) >> shift) & ((1u << width) - 1);
      words[quad / fields] |= field << (8 * byte + width * (quad % fields));
    }
    words += width, shift += width;
  }
}

inline void pack_grouped(const WeightView& s, const Matrix& m, int unit, uint8_t* to,
                         int (*stored_row)(const WeightView&, int, int)) {
  const Groups& g = *s.groups;
  const GroupFormat& f = m.groups;
  const int scale_bytes = GroupFormat::bytes_of(f.scale_form), offset_bytes = GroupFormat::bytes_of(f.offset_form);
  const int code_bytes = g.bits * g.size / 8;
  std::vector<uint8_t> codes(static_cast<size_t>(std::max(g.n_groups * g.size, m.n_padded())));
  memset(to, 0, m.unit_bytes);  // a row that is not there has scales of 0: it counts for nothing
  for (int lane = 0; lane < UNIT; lane++) {
    const int row = stored_row(s, unit, lane), half = lane / LANES, at = lane % LANES;
    if (row < 0) continue;
    const size_t first = static_cast<size_t>(row) * static_cast<size_t>(g.n_groups);
    const size_t first_super = static_cast<size_t>(row) * static_cast<size_t>(g.n_super);
    for (int group = 0; group < g.n_groups; group++)
      unpack_codes(static_cast<const uint8_t*>(s.values) + (first + static_cast<size_t>(group)) * code_bytes, g.bits,
                   g.size, codes.data() + group * g.size);
    std::fill(codes.begin() + s.n_columns, codes.end(), uint8_t{0});
    uint8_t* block = to + static_cast<size_t>(half) * (m.unit_bytes / 2);
    for (int b = 0; b < m.n_blocks(); b++) {
      for (int p = 0; p < f.n_params() && b * BLOCK + p * f.columns < s.n_columns; p++) {
        const int group = (b * BLOCK + p * f.columns) / g.size, place = LANES * p + at;
        const size_t from = first + static_cast<size_t>(group);
        memcpy(block + place * scale_bytes, g.scales + from * scale_bytes, static_cast<size_t>(scale_bytes));
        memcpy(block + f.offsets_at() + place * offset_bytes, g.offsets + from * offset_bytes,
               static_cast<size_t>(offset_bytes));
        if (g.zeros) block[f.zeros_at() + place] = g.zeros[from];
      }
      const size_t super = first_super + static_cast<size_t>(b * BLOCK / g.size / g.per_super);
      if (g.super_scales) memcpy(block + f.super_scales_at() + 2 * at, g.super_scales + super, 2);
      if (g.super_offsets) memcpy(block + f.super_offsets_at() + 2 * at, g.super_offsets + super, 2);
      block += f.header_bytes();
      for (int column = b * BLOCK; column < std::min((b + 1) * BLOCK, m.n_groups() * GROUP); column += GROUP) {
        uint32_t words[8];
        code_words(codes.data() + column, g.bits, words);
        for (int line = 0; line < g.bits; line++, block += 64) memcpy(block + 4 * at, &words[line], 4);
      }
    }
  }
}

// Scales, zero points and offsets of the groups of a block, [groups][16 rows].
struct BlockParams {
  alignas(64) float scales[BLOCK / 16 * LANES], zeros[BLOCK / 16 * LANES], offsets[BLOCK / 16 * LANES];
};

GF_INLINE Floats load_scales(ScaleForm form, const uint8_t* p) {
  switch (form) {
    case ScaleForm::HALF: return load_half(p);
    case ScaleForm::BF16: return load_bf16(reinterpret_cast<const uint16_t*>(p));
    case ScaleForm::FLOAT: return load(reinterpret_cast<const float*>(p));
    case ScaleForm::SIGNED: return to_floats(load_i8(p));
    case ScaleForm::UNSIGNED: return to_floats(load_u8(p));
    case ScaleForm::E4M3: return e4m3(load_u8(p));
    case ScaleForm::E8M0: return as_floats(shift_left(load_u8(p), 23));
    default: return splat(0);
  }
}

inline void load_params(const GroupFormat& f, const uint8_t* block, BlockParams& to) {
  const Floats multiplier = splat(f.multiplier);
  const Floats super = f.has_super_scales ? load_half(block + f.super_scales_at()) : splat(1);
  const int n = f.n_params(), scale_bytes = LANES * GroupFormat::bytes_of(f.scale_form);
  for (int p = 0; p < n; p++)
    store(to.scales + LANES * p, load_scales(f.scale_form, block + p * scale_bytes) * super * multiplier);
  if (f.offset_form != ScaleForm::NONE) {
    const Floats super_offset = f.has_super_offsets ? load_half(block + f.super_offsets_at()) : splat(1);
    const int offset_bytes = LANES * GroupFormat::bytes_of(f.offset_form);
    for (int p = 0; p < n; p++)
      store(to.offsets + LANES * p,
            load_scales(f.offset_form, block + f.offsets_at() + p * offset_bytes) * super_offset);
  }
  if (f.has_zeros)
    for (int p = 0; p < n; p++) store(to.zeros + LANES * p, to_floats(load_u8(block + f.zeros_at() + LANES * p)));
}

// The codes of columns 4 q to 4 q + 3 of 32, of 16 rows.
template <int BITS>
GF_INLINE Ints code_quad(const uint8_t* lines, int q) {
  auto field = [lines](int line, int shift, uint32_t mask) __attribute__((always_inline)) {
    return shift_right(load(reinterpret_cast<const uint32_t*>(lines + 64 * line)), shift) & mask;
  };
  if constexpr (BITS == 8) return load(reinterpret_cast<const uint32_t*>(lines + 64 * q));
  if constexpr (BITS == 2) return field(q / 4, 2 * (q % 4), 0x03030303u);
  if constexpr (BITS == 3) return field(q / 4, 2 * (q % 4), 0x03030303u) + shift_left(field(2, q, 0x01010101u), 2);
  Ints low = field(q / 2, 4 * (q % 2), 0x0f0f0f0fu);
  if constexpr (BITS == 4) return low;
  if constexpr (BITS == 5) return low + shift_left(field(4, q, 0x01010101u), 4);
  return low + shift_left(field(4 + q / 4, 2 * (q % 4), 0x03030303u), 4);  // 6 bits
}

GF_INLINE Ints code_quad_of(int bits, const uint8_t* lines, int q) {
  switch (bits) {
    case 2: return code_quad<2>(lines, q);
    case 3: return code_quad<3>(lines, q);
    case 4: return code_quad<4>(lines, q);
    case 5: return code_quad<5>(lines, q);
    case 6: return code_quad<6>(lines, q);
    default: return code_quad<8>(lines, q);
  }
}

// A row of a stored matrix as floats: an embedding.
inline void read_grouped_row(const WeightView& s, int row, float* to) {
  const Groups& g = *s.groups;
  std::vector<uint8_t> codes(static_cast<size_t>(g.size));
  auto at = [](const uint8_t* from, ScaleForm form, size_t n) {
    alignas(64) uint8_t lanes[4 * LANES] = {};
    alignas(64) float value[LANES];
    const size_t n_bytes = static_cast<size_t>(GroupFormat::bytes_of(form));
    memcpy(lanes, from + n * n_bytes, n_bytes);
    store(value, load_scales(form, lanes));
    return value[0];
  };
  for (int group = 0; group < g.n_groups; group++) {
    const size_t n = static_cast<size_t>(row) * static_cast<size_t>(g.n_groups) + static_cast<size_t>(group);
    const size_t super =
        static_cast<size_t>(row) * static_cast<size_t>(g.n_super) + static_cast<size_t>(group / g.per_super);
    float scale = at(g.scales, g.scale_form, n), offset = 0;
    if (g.super_scales) scale *= half_to_float(g.super_scales[super]);
    scale *= g.multiplier;
    if (g.offsets) offset = at(g.offsets, g.offset_form, n);
    if (g.super_offsets) offset *= half_to_float(g.super_offsets[super]);
    const float zero = g.zeros ? g.zeros[n] : 0;
    unpack_codes(static_cast<const uint8_t*>(s.values) + n * static_cast<size_t>(g.bits * g.size / 8), g.bits, g.size,
                 codes.data());
    for (int k = 0; k < g.size && group * g.size + k < s.n_columns; k++) {
      const uint8_t code = codes[static_cast<size_t>(k)];
      float value = g.first + static_cast<float>(code);
      if (g.values == CodeValues::FLOATS) value = g.floats[code];
      if (g.values == CodeValues::INTEGERS) value = g.integers[code];
      if (g.values == CodeValues::E4M3)
        value = 256 * half_to_float(static_cast<uint16_t>((code & 128) << 8 | (code & 127) << 7));
      const float product = scale * (value - zero);
      to[s.order ? s.order[group * g.size + k] : group * g.size + k] = g.offsets ? product + offset : product;
    }
  }
}
