// Sixteen numbers at a time: what the compiler's vector types cannot say by themselves.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace qbench {

constexpr int LANES = 16;

#if defined(__AVX512F__)
using F = __m512;
#else
typedef float F __attribute__((vector_size(64), may_alias));
#endif
typedef int32_t I __attribute__((vector_size(64), may_alias));
typedef uint32_t U __attribute__((vector_size(64), may_alias));
typedef uint16_t H __attribute__((vector_size(32)));

inline F load(const float* p) { F v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline F all(float x) { return x - F{}; }  // not plus: -0.0 + 0.0 is not -0.0, so that nothing would be left out
inline I all(int32_t x) { return x - I{}; }

#if defined(__AVX512F__)
inline F round_even(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F larger(F a, F b) { return _mm512_max_ps(a, b); }
inline F smaller(F a, F b) { return _mm512_min_ps(a, b); }
inline F fused(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// Masks are counted on the scalar ports, which have nothing else to do.
inline int64_t count_nonzero(F x) { return __builtin_popcount(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ)); }
inline int64_t count_greater(F a, F b) { return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)); }
inline int64_t count_lost(F x, F y) {
  return __builtin_popcount(_mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ), y, _mm512_setzero_ps(), _CMP_EQ_OQ));
}
inline F gather(const float* table, I at) { return _mm512_i32gather_ps((__m512i)at, table, 4); }
inline F pick(F table, I at) { return _mm512_permutexvar_ps((__m512i)at, table); }
inline I truncate(F x) { return (I)_mm512_cvttps_epi32(x); }
// Once loaded, stays in its register: the compiler would load it again for its second use.
inline F held(F x) { __asm__("" : "+v"(x)); return x; }
#else
inline F held(F x) { return x; }
// Exact for magnitudes below 2^22: whatever is rounded has been clamped, or is within the grid by its scale.
inline F round_even(F x) { F shift = all(12582912.0f); return (x + shift) - shift; }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F smaller(F a, F b) { return a < b ? a : b; }
inline F fused(F a, F b, F c) { return a * b + c; }
inline int64_t count(I truth) { int64_t n = 0; for (int i = 0; i < LANES; ++i) n -= truth[i]; return n; }
inline int64_t count_nonzero(F x) { return count(x != F{}); }
inline int64_t count_greater(F a, F b) { return count(a > b); }
inline int64_t count_lost(F x, F y) { return count((x != F{}) & (y == F{})); }
inline F gather(const float* table, I at) { F v; for (int i = 0; i < LANES; ++i) v[i] = table[at[i]]; return v; }
inline F pick(F table, I at) { F v; for (int i = 0; i < LANES; ++i) v[i] = table[at[i]]; return v; }
inline I truncate(F x) { return __builtin_convertvector(x, I); }
#endif

typedef float Half __attribute__((vector_size(32)));
typedef double D __attribute__((vector_size(64)));

// Add sixteen partial sums to sixteen sums in float64.
inline void add_to(double* sums, F partial) {
  alignas(64) float parts[LANES];
  store(parts, partial);
  for (int half = 0; half < 2; ++half) {
    Half h; D d;
    std::memcpy(&h, parts + 8 * half, sizeof h);
    std::memcpy(&d, sums + 8 * half, sizeof d);
    d = d + __builtin_convertvector(h, D);
    std::memcpy(sums + 8 * half, &d, sizeof d);
  }
}

inline I bits(F x) { return (I)x; }
inline F number(I x) { return (F)x; }
inline I above(F a, F b) { return (I)(a > b); }  // -1 where it is
inline F magnitude(F x) { return number(bits(x) & all(0x7fffffff)); }
inline F first_lanes(F x, int n) {
  static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  I mask; std::memcpy(&mask, ones + LANES - n, sizeof mask);
  return number(bits(x) & mask);
}

// One number for each of sixteen vectors, in one vector: fifteen steps of two shuffles in place of sixteen reductions.
#define QB_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
template <class Op> inline F reduce_each(const F* v, Op op) {
  F w[8];
  for (int i = 0; i < 8; ++i)
    w[i] = op(QB_PICK(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
              QB_PICK(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
  for (int i = 0; i < 4; ++i)
    w[i] = op(QB_PICK(w[i], w[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
              QB_PICK(w[i], w[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31));
  for (int i = 0; i < 2; ++i)
    w[i] = op(QB_PICK(w[i], w[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
              QB_PICK(w[i], w[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31));
  return op(QB_PICK(w[0], w[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
            QB_PICK(w[0], w[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31));
}
struct Add { F operator()(F a, F b) const { return a + b; } };
struct Max { F operator()(F a, F b) const { return larger(a, b); } };
struct Min { F operator()(F a, F b) const { return smaller(a, b); } };

// Storage of the tensor: how sixteen values are widened, and how a result is rounded on its way back.
struct Float32 {
  using Stored = float;
  static F widen(const float* p) { return load(p); }
  static F rounded(F y) { return y; }
};
struct BFloat16 {
  using Stored = uint16_t;
  static F widen(const uint16_t* p) {
    H h; std::memcpy(&h, p, sizeof h);
    return number(__builtin_convertvector(h, I) << 16);
  }
  static F rounded(F y) {
    I b = bits(y);
    return number((b + 0x7fff + ((b >> 16) & 1)) & all((int32_t)0xffff0000));
  }
};
struct Float16 {
  using Stored = uint16_t;
  static F widen(const uint16_t* p) {
    H h; std::memcpy(&h, p, sizeof h);
    I w = __builtin_convertvector(h, I);
    F size = number((w & 0x7fff) << 13) * 0x1p112f;  // exact, for subnormal numbers too
    I top = (w & 0x7c00) == 0x7c00;                  // infinity and NaN stay what they are
    return number(bits(size) | (top & 0x7f800000) | ((w & 0x8000) << 16));
  }
  static F rounded(F y) {  // magnitudes that round to infinity do not come here
    I b = bits(y), normal = bits(magnitude(y)) >= 0x38800000;
    I usual = (b + 0xfff + ((b >> 13) & 1)) & ~0x1fff;
    F shift = all(0.75f);  // whose last bit is worth 2^-24, as that of subnormal halves
    return number((usual & normal) | (bits((y + shift) - shift) & ~normal));
  }
};

}  // namespace qbench
