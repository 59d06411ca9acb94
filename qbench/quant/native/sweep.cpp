// Many formats and all moments of a matrix, tile by tile: one read of memory, everything else in the first-level cache.
#include <vector>
#include "moments.h"

namespace qbench {

enum DType : int32_t { FLOAT32, BFLOAT16, FLOAT16 };

// A matrix of `rows` x `width`, a run of the rows of a tensor; the layout is known to native.py.
struct Job {
  const void* x;
  int64_t rows, width, before;       // rows of the tensor that came before
  int64_t samples;                   // first rows of the tensor, in which codes are counted
  int64_t count;                     // rows of the whole tensor
  int32_t dtype, channels_are_rows, formats, measures_moments;
  float low, high;                   // of the whole tensor
  double power;                      // sum of its squares
  const float *column_low, *column_high, *column_peak;
  Format* format;
  double* signal;                    // sum of squares of each channel
  int64_t nonzero;
  Moments channel, token;            // of each column of the tensor, of each row of this job
  float* token_peak;
};

template <class Stored> void fetch(const typename Stored::Stored* x, int64_t width, Tile& t) {
  const int whole = t.columns / LANES, rest = t.columns % LANES;
  for (int r = 0; r < t.rows; ++r) {
    for (int strip = 0; strip < whole; ++strip) store(&t.x[r][strip * LANES], Stored::widen(x + r * width + strip * LANES));
    if (rest) {
      typename Stored::Stored padded[LANES] = {};
      std::memcpy(padded, x + r * width + whole * LANES, rest * sizeof padded[0]);
      store(&t.x[r][whole * LANES], Stored::widen(padded));
    }
  }
  // Strips beyond the edge are read where runs of values end there; rows beyond it where sixteen are reduced at once.
  if (t.columns < COLUMNS)
    for (int r = 0; r < t.rows; ++r)
      for (int strip = t.strips(); strip < STRIPS; ++strip) store(&t.x[r][strip * LANES], F{});
  for (int r = t.rows; r < ROWS; ++r) std::memset(t.x[r], 0, sizeof t.x[r]);
}

// Sum of squares in float64 of `n` values, padding included.
inline double power_of(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += (double)x[i] * x[i];
  return sum;
}

// What groups of one size are asked for.
struct Wanted { bool range = false, power = false; };
inline Wanted wanted(const Job& job, int32_t granularity, int32_t block) {
  Wanted w;
  for (int k = 0; k < job.formats; ++k) {
    const Format& f = job.format[k];
    if (f.granularity != granularity || (granularity == BLOCK && f.block != block)) continue;
    w.range |= f.grid == SHIFTED;
    w.power |= f.rule == RMS;
  }
  return w;
}

struct Group { std::vector<float> low, high, peak; std::vector<double> power;
  explicit Group(size_t n) : low(n), high(n), peak(n), power(n) {}
  Ranges ranges(float tensor_peak) const { return {low.data(), high.data(), peak.data(), power.data(), tensor_peak}; } };

struct ScaleArrays { std::vector<float> factor, inverse, zero;
  explicit ScaleArrays(size_t n) : factor(n), inverse(n), zero(n) {}
  Scales at(size_t i = 0) { return {factor.data() + i, inverse.data() + i, zero.data() + i}; } };

// Ranges of the runs of `block` values in each row of a tile, stored run by run: entry [run * ROWS + row].
template <int BLOCK_STRIPS, bool RANGE> __attribute__((noinline)) void ranges_of_runs(const Tile& t, Group& g) {
  for (int run = 0; run * BLOCK_STRIPS < t.strips(); ++run)
    for (int half = 0; half < ROWS; half += LANES) {  // rows beyond the end are zeros: whoever counts runs counts those
      F peak[LANES], low[LANES], high[LANES];
      for (int r = 0; r < LANES; ++r) {
        const float* x = &t.x[half + r][run * BLOCK_STRIPS * LANES];
        F top = F{}, least = F{}, most = F{};
        for (int strip = 0; strip < BLOCK_STRIPS; ++strip) {
          const F next = load(x + strip * LANES);
          top = larger(top, magnitude(next));
          if constexpr (RANGE) { least = smaller(least, next); most = larger(most, next); }
        }
        peak[r] = top;
        if constexpr (RANGE) { low[r] = least; high[r] = most; }
      }
      const int at = run * ROWS + half;
      store(&g.peak[at], reduce_each(peak, Max()));
      if constexpr (RANGE) { store(&g.low[at], reduce_each(low, Min())); store(&g.high[at], reduce_each(high, Max())); }
    }
}

template <int BLOCK_STRIPS> void ranges_of_runs(const Tile& t, Wanted w, Group& g) {
  if (w.range) ranges_of_runs<BLOCK_STRIPS, true>(t, g);
  else ranges_of_runs<BLOCK_STRIPS, false>(t, g);
  if (!w.power) return;
  constexpr int block = BLOCK_STRIPS * LANES;
  for (int run = 0; run * BLOCK_STRIPS < t.strips(); ++run)
    for (int r = 0; r < t.rows; ++r) g.power[run * ROWS + r] = power_of(&t.x[r][run * block], block);
}

void ranges_of_blocks(const Tile& t, int block, Wanted w, Group& g) {
  switch (block / LANES) {
    case 1: return ranges_of_runs<1>(t, w, g);
    case 2: return ranges_of_runs<2>(t, w, g);
    case 4: return ranges_of_runs<4>(t, w, g);
    case 8: return ranges_of_runs<8>(t, w, g);
    default: return ranges_of_runs<STRIPS>(t, w, g);
  }
}

template <class Stored> void ranges_of_rows(const typename Stored::Stored* x, int rows, int64_t width, Wanted w, Group& g) {
  for (int r = 0; r < rows; ++r) {
    F top = F{}, least = F{}, most = F{};
    double power = 0;
    int64_t i = 0;
    auto take = [&](F next) {
      top = larger(top, magnitude(next));
      if (w.range) { least = smaller(least, next); most = larger(most, next); }
      if (w.power) { float each[LANES]; store(each, next); power += power_of(each, LANES); }
    };
    for (; i + LANES <= width; i += LANES) take(Stored::widen(x + r * width + i));
    if (i < width) {
      typename Stored::Stored padded[LANES] = {};
      std::memcpy(padded, x + r * width + i, (width - i) * sizeof padded[0]);
      take(Stored::widen(padded));
    }
    float each[LANES];
    store(each, top); g.peak[r] = *std::max_element(each, each + LANES);
    store(each, least); g.low[r] = *std::min_element(each, each + LANES);
    store(each, most); g.high[r] = *std::max_element(each, each + LANES);
    g.power[r] = power;
  }
}

template <class Stored, bool BY_COLUMN>
void measure(const Tile& t, const Scales& s, const int* block_of, Format& f, bool by_row, int sample, double* out) {
  const auto with = [&](auto grid) {
    using Grid = decltype(grid);
    if (by_row) errors_by_row<Grid, Stored, BY_COLUMN>(t, s, block_of, f, out);
    else errors_by_column<Grid, Stored, BY_COLUMN>(t, s, block_of, f, out);
    if (sample) codes_seen<Grid, BY_COLUMN>(t, sample, s, block_of, f);
  };
  switch (f.grid) {
    case SHIFTED: return with(Shifted(f));
    case HALVES: return with(Halves(f));
    case MINIFLOAT: return with(Minifloat(f));
    case FEW: return with(Few(f));
    case MANY: return with(Many(f));
    default: return f.clamps ? with(Clamped(f)) : with(Within(f));
  }
}

void signal_of(const Tile& t, bool by_row, double* out, int64_t& nonzero) {
  for (int r = 0; r < t.rows && by_row; ++r) out[r] += power_of(t.x[r], t.strips() * LANES);
  for (int strip = 0; strip < t.strips(); ++strip) {
    F even = F{}, odd = F{};
    auto add = [&](int r, F& sum) {
      const F x = held(load(&t.x[r][strip * LANES]));
      nonzero += count_nonzero(x);
      sum = fused(x, x, sum);
    };
    int r = 0;
    for (; r + 1 < t.rows; r += 2) { add(r, even); add(r + 1, odd); }
    if (r < t.rows) add(r, even);
    if (!by_row) add_to(out + strip * LANES, even + odd);
  }
}

template <class Stored> void run(Job& job) {
  const auto* x = static_cast<const typename Stored::Stored*>(job.x);
  const int64_t width = job.width;
  static thread_local Tile tile;
  Group row(ROWS), block(ROWS * STRIPS);
  std::vector<ScaleArrays> scales;
  const Wanted of_rows = wanted(job, TOKEN, 0);
  bool any_rows = job.token_peak != nullptr;
  // Scales of the whole tensor and of its columns do not change on the way.
  const float peak = std::max(-job.low, job.high), low = std::min(job.low, 0.0f), high = std::max(job.high, 0.0f);
  for (int k = 0; k < job.formats; ++k) {
    Format& f = job.format[k];
    const bool column = f.granularity == COLUMN;
    scales.emplace_back(column ? (width + LANES) : ROWS * STRIPS);
    any_rows |= f.granularity == TOKEN;
    if (f.granularity != TENSOR && !column) continue;
    const Ranges r = column ? Ranges{job.column_low, job.column_high, job.column_peak, nullptr, peak}
                            : Ranges{&low, &high, &peak, &job.power, peak};
    const int64_t n = column ? width : 1;
    scales_of(f, r, n, column ? job.count : (double)job.count * width, scales[k].at());
    if (!job.before) f.underflowed += underflows(r, scales[k].at(), n);
    if (!column)
      for (auto* part : {&scales[k].factor, &scales[k].inverse, &scales[k].zero}) std::fill(part->begin(), part->begin() + ROWS, (*part)[0]);
  }
  int one_block[STRIPS] = {}, block_of[STRIPS];
  for (int64_t r0 = 0; r0 < job.rows; r0 += ROWS) {
    tile.rows = (int)std::min<int64_t>(ROWS, job.rows - r0);
    const int sample = (int)std::max<int64_t>(0, std::min<int64_t>(tile.rows, job.samples - job.before - r0));
    if (any_rows) ranges_of_rows<Stored>(x + r0 * width, tile.rows, width, of_rows, row);
    if (job.token_peak) std::copy_n(row.peak.data(), tile.rows, job.token_peak + r0);
    for (int k = 0; k < job.formats; ++k) {
      Format& f = job.format[k];
      if (f.granularity != TOKEN) continue;
      scales_of(f, row.ranges(peak), tile.rows, width, scales[k].at());
      f.underflowed += underflows(row.ranges(peak), scales[k].at(), tile.rows);
    }
    for (int64_t c0 = 0; c0 < width; c0 += COLUMNS) {
      tile.columns = (int)std::min<int64_t>(COLUMNS, width - c0);
      fetch<Stored>(x + r0 * width + c0, width, tile);
      if (r0 + 2 * ROWS <= job.rows)  // while this tile is measured, the one below it comes nearer
        for (int r = 0; r < ROWS; ++r)
          for (int c = 0; c < tile.columns; c += 64 / (int)sizeof(*x)) __builtin_prefetch(x + (r0 + ROWS + r) * width + c0 + c, 0, 2);
      if (job.formats) signal_of(tile, job.channels_are_rows, job.signal + (job.channels_are_rows ? job.before + r0 : c0), job.nonzero);
      if (job.measures_moments) {
        const Moments c = job.channel, t = job.token;
        moments_by_column(tile, (double)(job.before + r0), {c.mean + c0, c.m2 + c0, c.m3 + c0, c.m4 + c0});
        moments_by_row(tile, (double)c0, {t.mean + r0, t.m2 + r0, t.m3 + r0, t.m4 + r0});
      }
      int seen = 0;
      for (int k = 0; k < job.formats; ++k) {
        Format& f = job.format[k];
        Scales s = scales[k].at(f.granularity == COLUMN ? c0 : 0);
        if (f.granularity == BLOCK) {
          if (f.block != seen) ranges_of_blocks(tile, f.block, wanted(job, BLOCK, f.block), block);
          seen = f.block;
          for (int i = 0; i < STRIPS; ++i) block_of[i] = i * LANES / f.block;
          const int runs = (tile.columns + f.block - 1) / f.block, rest = tile.columns % f.block;
          const int n = runs * ROWS, last = rest ? (runs - 1) * ROWS : n;
          scales_of(f, block.ranges(peak), last, f.block, s);
          if (rest) {
            Ranges b = block.ranges(peak);
            scales_of(f, {b.low + last, b.high + last, b.peak + last, b.power + last, peak}, ROWS, rest, scales[k].at(last));
          }
          f.underflowed += underflows(block.ranges(peak), s, n);
        }
        const int* groups = f.granularity == BLOCK ? block_of : one_block;
        double* out = f.error + (job.channels_are_rows ? job.before + r0 : c0);
        if (f.granularity == COLUMN) measure<Stored, true>(tile, s, groups, f, job.channels_are_rows, sample, out);
        else measure<Stored, false>(tile, s, groups, f, job.channels_are_rows, sample, out);
      }
    }
  }
}

// The smallest and largest value, with zero among them, and the sum of squares; no range where a value is not finite.
struct Scan { float low, high; double power; int32_t finite; };

template <class Stored> Scan scan(const typename Stored::Stored* x, int64_t n, bool power) {
  F low[4] = {}, high[4] = {};
  I top[4] = {};  // NaN and infinity have the largest bits, and no comparison of numbers loses them
  double sum = 0;
  auto take = [&](F v, int k) {
    const I size = bits(v) & 0x7fffffff;
    top[k] = size > top[k] ? size : top[k];
    low[k] = smaller(v, low[k]);
    high[k] = larger(v, high[k]);
    if (power) { float each[LANES]; store(each, v); sum += power_of(each, LANES); }
  };
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int k = 0; k < 4; ++k) take(Stored::widen(x + i + k * LANES), k);
  for (; i < n; i += LANES) {
    typename Stored::Stored padded[LANES] = {};
    std::memcpy(padded, x + i, std::min<int64_t>(LANES, n - i) * sizeof padded[0]);
    take(Stored::widen(padded), 0);
  }
  Scan s{0, 0, sum, 1};
  for (int k = 0; k < 4; ++k)
    for (int j = 0; j < LANES; ++j) {
      s.low = std::min(s.low, (float)low[k][j]);
      s.high = std::max(s.high, (float)high[k][j]);
      s.finite &= top[k][j] < 0x7f800000;
    }
  return s;
}

}  // namespace qbench

using namespace qbench;

extern "C" {

void qbench_run(Job* job) {
  if (job->dtype == BFLOAT16) run<BFloat16>(*job);
  else if (job->dtype == FLOAT16) run<Float16>(*job);
  else run<Float32>(*job);
}

void qbench_scan(const void* x, int64_t n, int32_t dtype, int32_t power, Scan* out) {
  if (dtype == BFLOAT16) *out = scan<BFloat16>((const uint16_t*)x, n, power);
  else if (dtype == FLOAT16) *out = scan<Float16>((const uint16_t*)x, n, power);
  else *out = scan<Float32>((const float*)x, n, power);
}

int64_t qbench_size(int32_t what) { return what == 0 ? sizeof(Job) : what == 1 ? sizeof(Format) : sizeof(Scan); }

}
