// What each format loses on one tile: scales of its groups, then sums over the values, sixteen at a time.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include "lanes.h"

namespace qbench {

constexpr int ROWS = 32;      // of a tile: partial sums in float32 run over this many values
constexpr int COLUMNS = 256;  // 32 KiB of float32 in all
constexpr int STRIPS = COLUMNS / LANES;

enum Granularity : int32_t { TENSOR, TOKEN, COLUMN, BLOCK };
enum GridKind : int32_t { INTEGER, SHIFTED, HALVES, MINIFLOAT, FEW, MANY };
enum Rule : int32_t { ABSMAX, RMS, FLOOR, CEIL, RCEIL, EVEN };
enum Storage : int32_t { FP32, BF16, FP16, E8M0, E4M3, NVIDIA };

// One format and what it loses; the layout is known to native.py.
struct Format {
  int32_t granularity, block, grid, rule, storage;
  int32_t clamps;            // values may lie beyond the outermost levels
  int32_t mantissa, lowest;  // of a minifloat: its bits, and the exponent of its smallest normal number
  int32_t peak_exponent, codes;
  float peak, unit, low, high, low_limit, high_limit;
  const float *boundary, *levels;  // 256 each: the largest value of each level, padded with infinity
  double* error;             // of each channel
  int64_t nonzero;           // results; for grids without a sure zero, values that became zero though they are not
  int64_t saturated, underflowed;
  float largest;             // squared error
  uint32_t seen[8];          // one bit for each code
};

// Ranges of groups, and the scales that follow: arrays of `n`.
struct Ranges { const float *low, *high, *peak; const double* power; float tensor_peak; };
struct Scales { float *factor, *inverse, *zero; };

struct Tile {
  alignas(64) float x[ROWS][COLUMNS];  // zeros beyond the edge
  int rows, columns;
  int strips() const { return (columns + LANES - 1) / LANES; }
};

template <class T> inline T as(float x) { T y; std::memcpy(&y, &x, sizeof y); return y; }
inline float as_float(int32_t x) { float y; std::memcpy(&y, &x, sizeof y); return y; }

inline float stored_as_bf16(float s) {
  s = std::min(s, 3.3895313892515355e38f);
  uint32_t b = as<uint32_t>(s);
  return as_float((b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000u);
}
inline float stored_as_fp16(float s) {
  s = std::min(s, 65504.0f);
  uint32_t b = as<uint32_t>(s);
  return s < 0x1p-14f ? (s + 0.75f) - 0.75f : as_float((b + 0xfff + ((b >> 13) & 1)) & ~0x1fffu);
}
inline float stored_as_e4m3(float s) {
  s = std::min(s, 448.0f);
  uint32_t b = as<uint32_t>(s);
  return s < 0x1p-6f ? (s + 24576.0f) - 24576.0f : as_float((b + 0x7ffff + ((b >> 20) & 1)) & ~0xfffffu);
}

// x = mantissa * 2^exponent with the mantissa in [0.5, 1), for subnormal numbers too.
inline int32_t exponent_of(float x, float& mantissa) {
  const bool small = x < 0x1p-126f;
  const uint32_t b = as<uint32_t>(small ? x * 0x1p24f : x);
  mantissa = as_float((b & 0x7fffff) | 0x3f000000);
  return (int32_t)(b >> 23) - 126 - (small ? 24 : 0);
}

inline float power_of_two(const Format& f, float peak) {
  float mantissa;
  int32_t exponent;
  if (f.rule == RCEIL) {
    exponent = exponent_of(peak / f.peak, mantissa);
    exponent -= mantissa == 0.5f;
  } else {
    exponent = exponent_of(peak, mantissa) - f.peak_exponent;
    exponent += f.rule == CEIL ? mantissa > 0.5f : f.rule == EVEN ? mantissa >= f.unit : 0;
  }
  exponent = peak == 0 ? -127 : std::max(-127, std::min(127, exponent));
  return exponent == -127 ? 0x1p-127f : as_float((exponent + 127) << 23);
}

// Separate loops without branches, so that the compiler vectorizes each; arrays do not overlap.
__attribute__((noinline)) inline void scales_of(const Format& f, const Ranges& r, int64_t n, double count, Scales s) {
  float* __restrict factor = s.factor;
  float* __restrict inverse = s.inverse;
  float* __restrict zero = s.zero;
  const float *__restrict peak = r.peak, *__restrict low = r.low, *__restrict high = r.high;
  const float top = f.peak, unit = f.unit, half = f.high / 2, last = f.high;
  if (f.grid == SHIFTED) for (int64_t i = 0; i < n; ++i) factor[i] = (high[i] / 2 - low[i] / 2) / half;
  else if (f.rule == RMS) for (int64_t i = 0; i < n; ++i) factor[i] = (float)std::sqrt(r.power[i] / count) * unit;
  else if (f.rule >= FLOOR) for (int64_t i = 0; i < n; ++i) factor[i] = power_of_two(f, peak[i]);
  else for (int64_t i = 0; i < n; ++i) factor[i] = peak[i] / top;
  if (f.storage == BF16) for (int64_t i = 0; i < n; ++i) factor[i] = stored_as_bf16(factor[i]);
  if (f.storage == FP16) for (int64_t i = 0; i < n; ++i) factor[i] = stored_as_fp16(factor[i]);
  if (f.storage == E4M3) for (int64_t i = 0; i < n; ++i) factor[i] = stored_as_e4m3(factor[i]);
  if (f.storage == NVIDIA) {  // e4m3 under one scale for the tensor, see scale.py
    const float outer = r.tensor_peak / (448.0f * top), one_over = 1.0f / outer;
    for (int64_t i = 0; i < n; ++i) {
      const float stored = outer > 0 ? stored_as_e4m3(factor[i] / outer) : 0.0f, used = stored * outer;
      factor[i] = used < 0x1p-127f ? 0.0f : used;
      inverse[i] = factor[i] == 0 ? 0.0f : one_over / stored;
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float used = factor[i] < 0x1p-127f ? 0.0f : factor[i], one_over = 1.0f / used;
    factor[i] = used;
    inverse[i] = used == 0 ? 0.0f : one_over;
  }
  if (f.grid == SHIFTED)
    for (int64_t i = 0; i < n; ++i) {
      const float at = std::nearbyint(-low[i] * inverse[i]);
      zero[i] = at < 0 ? 0.0f : at > last ? last : at;
    }
}

inline int64_t underflows(const Ranges& r, const Scales& s, int64_t n) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) found += (s.factor[i] == 0) & (r.peak[i] > 0);
  return found;
}

// Grids: the level of each value, in units of the grid.

struct Within {  // integers whose scale keeps every value between the outermost levels
  static constexpr bool zero = true, saturates = false, shifted = false;
  explicit Within(const Format&) {}
  F snap(F u) const { return round_even(u); }
};
struct Clamped {
  static constexpr bool zero = true, saturates = true, shifted = false;
  F low, high;
  explicit Clamped(const Format& f) : low(all(f.low)), high(all(f.high)) {}
  F snap(F u) const { return round_even(larger(smaller(u, high), low)); }
};
struct Shifted {
  static constexpr bool zero = true, saturates = true, shifted = true;
  F low, high;
  explicit Shifted(const Format& f) : low(all(f.low)), high(all(f.high)) {}
  F snap(F u) const { return larger(smaller(round_even(u), high), low); }  // before the zero point is added
};
struct Minifloat {
  static constexpr bool zero = true, saturates = true, shifted = false;
  F low, high; I lowest, shift;
  explicit Minifloat(const Format& f)
      : low(all(f.low)), high(all(f.high)), lowest(all((f.lowest + 127) << 23)),
        shift(all(((23 - f.mantissa) << 23) | 0x400000)) {}
  F snap(F u) const {
    u = larger(smaller(u, high), low);
    I exponent = bits(u) & 0x7f800000;
    // Adding 1.5 * 2^(e + 23 - m) leaves room for m bits after the point of a number of exponent e.
    F lift = number((exponent > lowest ? exponent : lowest) + shift);
    return (u + lift) - lift;
  }
};
struct Halves {  // odd multiples of a half
  static constexpr bool zero = false, saturates = true, shifted = false;
  F low, high, half = all(0.5f);
  explicit Halves(const Format& f) : low(all(f.low)), high(all(f.high)) {}
  F snap(F u) const { return larger(smaller(round_even(larger(smaller(u, high), low) - half) + half, high), low); }
};
struct Few {  // any levels, sixteen at most: four halvings in registers
  static constexpr bool zero = false, saturates = true, shifted = false;
  F boundary, levels;
  explicit Few(const Format& f) : boundary(load(f.boundary)), levels(load(f.levels)) {}
  I code(F u) const {
    I code = I{};
    for (int step = 8; step; step >>= 1) code = code - above(u, pick(boundary, code + (step - 1))) * step;
    return code;
  }
  F snap(F u) const { return pick(levels, code(u)); }
};
struct Many {  // 256 at most
  static constexpr bool zero = false, saturates = true, shifted = false;
  const float *boundary, *levels;
  int first;
  explicit Many(const Format& f) : boundary(f.boundary), levels(f.levels), first(f.codes > 64 ? 128 : 32) {}
  I code(F u) const {
    I code = I{};
    for (int step = first; step; step >>= 1) code = code - above(u, gather(boundary, code + (step - 1))) * step;
    return code;
  }
  F snap(F u) const { return gather(levels, code(u)); }
};

// Sums that a format collects over a tile, and over tiles.
struct Counts { F largest; int64_t nonzero = 0, saturated = 0; };

template <class Grid, bool BY_COLUMN> struct Channel {
  F inverse, factor, zero;
  Channel(const Scales& s, int64_t at) {
    if constexpr (BY_COLUMN) { inverse = load(s.inverse + at); factor = load(s.factor + at); }
    else { inverse = all(s.inverse[at]); factor = all(s.factor[at]); }
    if constexpr (Grid::shifted) zero = BY_COLUMN ? load(s.zero + at) : all(s.zero[at]);
  }
};

// The squared errors of sixteen values.
template <class Stored, bool WHOLE, class Grid, bool BY_COLUMN>
inline F squares(F x, const Grid& grid, const Format& f, const Channel<Grid, BY_COLUMN>& s, int lanes, Counts& c) {
  F u = x * s.inverse, level;
  if constexpr (Grid::shifted) {
    F shifted = u + s.zero;
    c.saturated += count_greater(shifted, all(f.high_limit)) + count_greater(all(f.low_limit), shifted);
    level = larger(smaller(round_even(u) + s.zero, grid.high), grid.low) - s.zero;
  } else {
    if constexpr (Grid::saturates) c.saturated += count_greater(u, all(f.high_limit)) + count_greater(all(f.low_limit), u);
    level = grid.snap(u);
  }
  F y = Stored::rounded(level * s.factor);
  if constexpr (!WHOLE) y = first_lanes(y, lanes);
  // Where zero is a level, zeros stay zero and counting what is left is enough.
  if constexpr (Grid::zero) c.nonzero += count_nonzero(y);
  else c.nonzero += count_lost(x, y);
  F e = y - x, square = e * e;
  c.largest = larger(c.largest, square);
  return square;
}

inline void keep(Format& f, const Counts& c) {
  float largest[LANES];
  store(largest, c.largest);
  f.nonzero += c.nonzero;
  f.saturated += c.saturated;
  for (float one : largest) f.largest = std::max(f.largest, one);
}

// One strip of a tile, row by row; fewer than sixteen lanes where the tile ends.
template <class Stored, bool BY_COLUMN, bool WHOLE, class Grid>
inline F errors_of_strip(const Tile& t, int strip, const Scales& s, const int* block_of, const Format& f, const Grid& grid, Counts& c) {
  const int lanes = WHOLE ? LANES : t.columns - strip * LANES;
  const int64_t at = BY_COLUMN ? strip * LANES : block_of[strip] * ROWS;
  F even = F{}, odd = F{};  // two chains of additions, so that none waits for the last
  Counts a{c.largest}, b{c.largest};
  auto add = [&](int r, F& sum, Counts& counts) __attribute__((always_inline)) {
    const Channel<Grid, BY_COLUMN> scale(s, BY_COLUMN ? at : at + r);
    sum = sum + squares<Stored, WHOLE>(held(load(&t.x[r][strip * LANES])), grid, f, scale, lanes, counts);
  };
  int r = 0;
  for (; r + 1 < t.rows; r += 2) { add(r, even, a); add(r + 1, odd, b); }
  if (r < t.rows) add(r, even, a);
  c.largest = larger(a.largest, b.largest);
  c.nonzero += a.nonzero + b.nonzero;
  c.saturated += a.saturated + b.saturated;
  return even + odd;
}

template <class Grid, class Stored, bool BY_COLUMN>
__attribute__((noinline)) void errors_by_column(const Tile& t, const Scales& s, const int* block_of, Format& f, double* out) {
  const Grid grid(f);
  Counts c{all(f.largest)};
  const int whole = t.columns / LANES;
  for (int strip = 0; strip < whole; ++strip)
    add_to(out + strip * LANES, errors_of_strip<Stored, BY_COLUMN, true>(t, strip, s, block_of, f, grid, c));
  if (whole < t.strips())
    add_to(out + whole * LANES, errors_of_strip<Stored, BY_COLUMN, false>(t, whole, s, block_of, f, grid, c));
  keep(f, c);
}

template <class Grid, class Stored, bool BY_COLUMN>
__attribute__((noinline)) void errors_by_row(const Tile& t, const Scales& s, const int* block_of, Format& f, double* out) {
  const Grid grid(f);
  Counts c{all(f.largest)};
  F sums[ROWS] = {};
  const int whole = t.columns / LANES;
  for (int r = 0; r < t.rows; ++r) {
    F sum = F{};
    auto at = [&](int strip) { return Channel<Grid, BY_COLUMN>(s, BY_COLUMN ? strip * LANES : block_of[strip] * ROWS + r); };
    for (int strip = 0; strip < whole; ++strip)
      sum = sum + squares<Stored, true>(held(load(&t.x[r][strip * LANES])), grid, f, at(strip), LANES, c);
    if (whole < t.strips())
      sum = sum + squares<Stored, false>(load(&t.x[r][whole * LANES]), grid, f, at(whole), t.columns - whole * LANES, c);
    sums[r] = sum;
  }
  float each[ROWS];
  for (int half = 0; half < ROWS; half += LANES) store(each + half, reduce_each(sums + half, Add()));
  for (int r = 0; r < t.rows; ++r) out[r] += each[r];
  keep(f, c);
}

// Which codes occur: a bit for each, lane by lane.
template <class Grid, bool BY_COLUMN>
__attribute__((noinline)) void codes_seen(const Tile& t, int rows, const Scales& s, const int* block_of, Format& f) {
  Grid grid(f);
  const Many table(f);
  U seen[8] = {};
  for (int strip = 0; strip < t.strips(); ++strip) {
    int lanes = std::min(LANES, t.columns - strip * LANES);
    for (int r = 0; r < rows; ++r) {
      Channel<Grid, BY_COLUMN> scale(s, BY_COLUMN ? strip * LANES : block_of[strip] * ROWS + r);
      F u = load(&t.x[r][strip * LANES]) * scale.inverse;
      I code;
      if constexpr (std::is_same_v<Grid, Few> || std::is_same_v<Grid, Many> || std::is_same_v<Grid, Minifloat> || std::is_same_v<Grid, Halves>) code = table.code(u);
      else if constexpr (Grid::shifted) code = truncate(larger(smaller(round_even(u) + scale.zero, grid.high), grid.low));
      else code = truncate(larger(smaller(round_even(u), all(f.high)), all(f.low)) - all(f.low));
      if (lanes < LANES)  // lanes beyond the edge repeat the first
        for (int i = lanes; i < LANES; ++i) code[i] = code[0];
      U bit = (U)((I{} + 1) << (code & 31)), word = (U)(code >> 5);
      for (int k = 0; k <= (f.codes - 1) >> 5; ++k) seen[k] |= bit & (U)(word == (uint32_t)k);
    }
  }
  for (int k = 0; k < 8; ++k)
    for (int i = 0; i < LANES; ++i) f.seen[k] |= seen[k][i];
}

}  // namespace qbench
