// Central moments up to the fourth: float32 sums within a tile around its own means, merged in float64.
#pragma once
#include "errors.h"

namespace qbench {

// Mean and sums of the powers 2, 3, 4 of deviations: four arrays, one entry for each channel or token.
struct Moments { double *mean, *m2, *m3, *m4; };
struct Powers { alignas(64) float centre[COLUMNS], s1[COLUMNS], s2[COLUMNS], s3[COLUMNS], s4[COLUMNS]; };

// Add groups of `n` values, as sums of powers about their centres, to groups of `before` values.
// P. Pebay, Sandia report SAND2008-6212 (2008): nothing cancels.
inline void merge(const Powers& p, int entries, double n, double before, Moments m) {
  const double total = before + n, a = before / total, b = n / total, one_over = 1 / n;
  double *__restrict mean = m.mean, *__restrict to2 = m.m2, *__restrict to3 = m.m3, *__restrict to4 = m.m4;
  for (int i = 0; i < entries; ++i) {
    const double shift = p.s1[i] * one_over, s2 = p.s2[i], s3 = p.s3[i];
    const double spread = s2 - n * shift * shift;
    // What float32 leaves of equal values is not a spread, and has no third and fourth power.
    const double real = spread > 1e-5 * s2 ? 1.0 : 0.0;
    const double m2 = real * spread;
    const double m3 = real * (s3 - 3 * shift * s2 + 2 * n * shift * shift * shift);
    const double m4 = real * (p.s4[i] - 4 * shift * s3 + 6 * shift * shift * s2 - 3 * n * shift * shift * shift * shift);
    const double d = p.centre[i] + shift - mean[i], dd = d * d, ab = a * b * total;
    to4[i] += m4 + ab * dd * dd * (a * a - a * b + b * b) + 6 * dd * (a * a * m2 + b * b * to2[i]) +
               4 * d * (a * m3 - b * to3[i]);
    to3[i] += m3 + ab * dd * d * (a - b) + 3 * d * (a * m2 - b * to2[i]);
    to2[i] += m2 + ab * dd;
    mean[i] += b * d;
  }
}

struct Sums {
  F s1 = F{}, s2 = F{}, s3 = F{}, s4 = F{};
  void add(F d) {
    F square = d * d;
    s1 = s1 + d;
    s2 = s2 + square;
    s3 = fused(square, d, s3);
    s4 = fused(square, square, s4);
  }
  void keep(Powers& p, int at) const {
    store(p.s1 + at, s1);
    store(p.s2 + at, s2);
    store(p.s3 + at, s3);
    store(p.s4 + at, s4);
  }
};

__attribute__((noinline)) inline void moments_by_column(const Tile& t, double before, Moments m) {
  Powers p;
  const F share = all(1.0f / t.rows);
  for (int strip = 0; strip < t.strips(); ++strip) {
    const int at = strip * LANES;
    F even = F{}, odd = F{};
    for (int r = 0; r < t.rows; r += 2) { even = even + load(&t.x[r][at]); odd = odd + load(&t.x[r + 1][at]); }
    const F centre = (even + odd) * share;
    Sums s;
    for (int r = 0; r < t.rows; ++r) s.add(load(&t.x[r][at]) - centre);
    store(p.centre + at, centre);
    s.keep(p, at);
  }
  merge(p, t.columns, t.rows, before, m);
}

__attribute__((noinline)) inline void moments_by_row(const Tile& t, double before, Moments m) {
  Powers p;
  const int whole = t.columns / LANES, rest = t.columns % LANES;
  for (int half = 0; half < t.rows; half += LANES) {
    F sums[LANES] = {}, s1[LANES] = {}, s2[LANES] = {}, s3[LANES] = {}, s4[LANES] = {};
    for (int r = 0; r < LANES; ++r)
      for (int strip = 0; strip < t.strips(); ++strip) sums[r] = sums[r] + load(&t.x[half + r][strip * LANES]);
    store(p.centre + half, reduce_each(sums, Add()) * all(1.0f / t.columns));
    for (int r = 0; r < LANES; ++r) {
      const F centre = all(p.centre[half + r]);
      Sums s;
      for (int strip = 0; strip < whole; ++strip) s.add(load(&t.x[half + r][strip * LANES]) - centre);
      if (rest) s.add(first_lanes(load(&t.x[half + r][whole * LANES]) - centre, rest));
      s1[r] = s.s1; s2[r] = s.s2; s3[r] = s.s3; s4[r] = s.s4;
    }
    const Sums each{reduce_each(s1, Add()), reduce_each(s2, Add()), reduce_each(s3, Add()), reduce_each(s4, Add())};
    each.keep(p, half);
  }
  merge(p, t.rows, t.columns, before, m);
}

}  // namespace qbench
