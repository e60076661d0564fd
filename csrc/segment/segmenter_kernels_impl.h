// The kernels, written once on the compilers' vector types and compiled per instruction set.
//
// Everything sits in an anonymous namespace and calls no inline function of another header: a
// shared std::min compiled here for AVX2 could be the copy that the linker keeps for everyone.
//
// Gram: a tile is kWidth rows x (kTile * kWidth) columns, one register per row and panel of
// columns; each step of d reads kTile vectors and kWidth scalars for kWidth * kTile fused
// multiply-adds. Relax: a vector holds kWidth layers k, so that no sum over lanes is needed and the
// arg-min is a blend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "segment/segmenter_kernels.h"

namespace cwt {
namespace {

// The Loose types may sit at any multiple of their element.
template <int kWidth>
struct VectorTypes;
template <>
struct VectorTypes<2> {
  typedef double Vec __attribute__((vector_size(16)));
  typedef double LooseVec __attribute__((vector_size(16), aligned(8), may_alias));
  typedef float LooseFloats __attribute__((vector_size(8), aligned(4), may_alias));
  typedef int32_t LooseInts __attribute__((vector_size(8), aligned(4), may_alias));
  typedef int64_t Mask __attribute__((vector_size(16)));

  static Vec widen(const float* p) {
    return __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(p), Vec);
  }
  static Vec plus(Vec a, Vec b) { return a + b; }
  static bool any(Mask m) { return (m[0] | m[1]) != 0; }
};
#if defined(__AVX2__)
template <>
struct VectorTypes<4> {  // gcc 12 makes six instructions of what two intrinsics do

  typedef double Vec __attribute__((vector_size(32)));
  typedef double LooseVec __attribute__((vector_size(32), aligned(8), may_alias));
  typedef int32_t LooseInts __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int64_t Mask __attribute__((vector_size(32)));

  static Vec widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  // As a multiply-add by an unseen 1: minima keep the two adders busy, the multipliers are idle.
  static Vec plus(Vec a, Vec b) {
    __m256d one = _mm256_set1_pd(1);
    asm("" : "+x"(one));
    return _mm256_fmadd_pd(a, one, b);
  }
  static bool any(Mask m) { return _mm256_movemask_pd(reinterpret_cast<__m256d>(m)) != 0; }
};
#endif

// Swaps the off-diagonal kStep x kStep squares of each 2 kStep x 2 kStep square of a matrix whose
// rows are v[0] .. v[kCount - 1].
template <int kStep, int kCount, typename vec_t, size_t... kLane>
void swap_squares(vec_t* v, std::index_sequence<kLane...>) {
  for (int i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const vec_t a = v[i], b = v[i + kStep];
    v[i] = __builtin_shufflevector(a, b, ((kLane & kStep) ? kCount + kLane - kStep : kLane)...);
    v[i + kStep] =
        __builtin_shufflevector(a, b, ((kLane & kStep) ? kCount + kLane : kLane + kStep)...);
  }
}

template <int kWidth>
struct Simd : VectorTypes<kWidth> {
  using Vec = typename VectorTypes<kWidth>::Vec;
  using LooseVec = typename VectorTypes<kWidth>::LooseVec;
  using Lanes = std::make_index_sequence<kWidth>;

  static Vec splat(double v) { return v - Vec{}; }
  static Vec load(const double* p) { return *reinterpret_cast<const LooseVec*>(p); }
  static Vec load(const float* p) { return VectorTypes<kWidth>::widen(p); }
  static void store(double* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

  static Vec root(Vec v) {
    const Vec positive = v > 0 ? v : Vec{};
    Vec r;
    for (int i = 0; i < kWidth; ++i) r[i] = __builtin_sqrt(positive[i]);
    return r;
  }
  static void transpose(Vec* v) {
    swap_squares<1, kWidth>(v, Lanes{});
    if constexpr (kWidth > 2) swap_squares<2, kWidth>(v, Lanes{});
  }

  template <int kStep, size_t... kLane>
  static Vec shift_down(Vec v, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(v, Vec{}, (kLane + kStep)...);
  }
  // Returns u with u[i] = v[i] + ... + v[kWidth-1].
  static Vec suffix_sums(Vec v) {
    v += shift_down<1>(v, Lanes{});
    if constexpr (kWidth > 2) v += shift_down<2>(v, Lanes{});
    return v;
  }
};

template <int kWidth, typename scalar_t>
void add(const scalar_t* x, double scale, int64_t d, double* sum) {
  using V = Simd<kWidth>;
  int64_t j = 0;
  for (; j + kWidth <= d; j += kWidth) V::store(sum + j, V::load(sum + j) + scale * V::load(x + j));
  for (; j < d; ++j) sum[j] += scale * x[j];
}

template <int kWidth, typename scalar_t>
void pack(const scalar_t* x, int64_t stride, int64_t rows, int64_t d, double* out) {
  using V = Simd<kWidth>;
  const scalar_t* row[kWidth];
  double factor[kWidth];
  for (int i = 0; i < kWidth; ++i) {  // a missing row is 0 times the first one
    row[i] = i < rows ? x + i * stride : x;
    factor[i] = i < rows ? 1 : 0;
  }
  int64_t j = 0;
  for (; j + kWidth <= d; j += kWidth) {
    typename V::Vec v[kWidth];
    for (int i = 0; i < kWidth; ++i) v[i] = V::load(row[i] + j) * factor[i];
    V::transpose(v);
    for (int i = 0; i < kWidth; ++i) V::store(out + (j + i) * kWidth, v[i]);
  }
  for (; j < d; ++j)
    for (int i = 0; i < kWidth; ++i) out[j * kWidth + i] = row[i][j] * factor[i];
}

// A single panel is summed in two halves: its kWidth chains of multiply-adds alone would leave
// units idle.
template <int kWidth, int kPanels>
void gram_tile(const double* a, const double* const* b, int64_t d, double* out, int64_t ld,
               bool more) {
  using V = Simd<kWidth>;
  constexpr int kParts = kPanels == 1 ? 2 : 1;
  const int64_t part = d / kParts * kWidth;  // elements of a panel
  typename V::Vec acc[kParts][kWidth][kPanels] = {};
  if (more)
    for (int i = 0; i < kWidth; ++i)
      for (int g = 0; g < kPanels; ++g) acc[0][i][g] = V::load(out + i * ld + g * kWidth);
  const double* cols[kPanels];
  for (int g = 0; g < kPanels; ++g) cols[g] = b[g];
  const auto step = [&](int p, int64_t j) {
    typename V::Vec v[kPanels];
    for (int g = 0; g < kPanels; ++g) v[g] = V::load(cols[g] + j);
    for (int i = 0; i < kWidth; ++i) {
      const auto u = V::splat(a[j + i]);
      for (int g = 0; g < kPanels; ++g) acc[p][i][g] += u * v[g];
    }
  };
  for (int64_t j = 0; j < part; j += kWidth)
    for (int p = 0; p < kParts; ++p) step(p, p * part + j);
  for (int64_t j = kParts * part; j < d * kWidth; j += kWidth) step(0, j);
  for (int i = 0; i < kWidth; ++i)
    for (int g = 0; g < kPanels; ++g) {
      for (int p = 1; p < kParts; ++p) acc[0][i][g] += acc[p][i][g];
      V::store(out + i * ld + g * kWidth, acc[0][i][g]);
    }
}

template <int kWidth, int kTile>
void gram(const double* a, const double* const* b, int64_t panels, int64_t d, double* out,
          int64_t ld, bool more) {
  if constexpr (kTile > 1)
    if (panels < kTile) return gram<kWidth, kTile - 1>(a, b, panels, d, out, ld, more);
  gram_tile<kWidth, kTile>(a, b, d, out, ld, more);
}

template <int kWidth, bool kNorm>
void costs(double* g, const double* scale, double* window, const double* trace, int64_t lo,
           int64_t t) {
  using V = Simd<kWidth>;
  const double own = scale[t - 1], diagonal = g[t - 1] * own * own;
  int64_t s = t;
  typename V::Vec after{};  // G(t-1, s) + ... + G(t-1, t-1), in every lane
  auto length = V::splat(static_cast<double>(kWidth));  // of the chunks [s, t) in each lane
  for (int i = 0; i < kWidth; ++i) length[i] -= i;
  for (; s - kWidth >= lo; length += kWidth) {
    s -= kWidth;
    const auto sums = V::suffix_sums(V::load(g + s) * (V::load(scale + s) * own));
    const auto w = V::load(window + s) + (2 * (sums + after) - diagonal);
    after += V::splat(sums[0]);
    V::store(window + s, w);
    if constexpr (kNorm)
      V::store(g + s, -V::root(w));
    else
      V::store(g + s, trace[t] - V::load(trace + s) - w / length);
  }
  double below = after[0];
  for (--s; s >= lo; --s) {
    below += g[s] * (scale[s] * own);
    window[s] += 2 * below - diagonal;
    if constexpr (kNorm)
      g[s] = -__builtin_sqrt(window[s] > 0 ? window[s] : 0);
    else
      g[s] = trace[t] - trace[s] - window[s] / static_cast<double>(t - s);
  }
}

template <int kWidth, int kVecs>
void relax_vecs(const double* f, int64_t ld, const double* c, int64_t s0, int64_t s1, bool older,
                double* best, int32_t* from) {
  using V = Simd<kWidth>;
  typename V::Vec least[kVecs];
  for (int i = 0; i < kVecs; ++i) least[i] = V::splat(__builtin_inf());
  for (int64_t s = s0; s < s1; ++s)
    for (int i = 0; i < kVecs; ++i) {
      const auto v = V::plus(V::load(f + s * ld + i * kWidth), V::splat(c[s]));
      least[i] = v < least[i] ? v : least[i];
    }
  for (int i = 0; i < kVecs; ++i) {
    const auto known = V::load(best + i * kWidth);
    const auto better =
        older ? (least[i] <= known) & (least[i] < __builtin_inf()) : least[i] < known;
    if (!V::any(better)) continue;
    V::store(best + i * kWidth, better ? least[i] : known);
    const auto sought = better ? least[i] : V::splat(__builtin_nan(""));
    auto* ints = reinterpret_cast<typename V::LooseInts*>(from + i * kWidth);
    auto arg = __builtin_convertvector(*ints, typename V::Vec);
    auto here = V::splat(static_cast<double>(s1));
    for (int64_t s = s1 - 1; s >= s0; --s) {
      here -= 1.0;
      arg = V::load(f + s * ld + i * kWidth) + c[s] == sought ? here : arg;
    }
    *ints = __builtin_convertvector(arg, typename V::LooseInts);
  }
}

template <int kWidth, int kVecs>
void relax(const double* f, int64_t ld, const double* c, int64_t s0, int64_t s1, int64_t layers,
           bool older, double* best, int32_t* from) {
  constexpr int64_t kStep = kWidth * kVecs;
  int64_t j = 0;
  for (; j + kStep <= layers; j += kStep)
    relax_vecs<kWidth, kVecs>(f + j, ld, c, s0, s1, older, best + j, from + j);
  if constexpr (kVecs > 1)
    if (j < layers)
      relax<kWidth, kVecs - 1>(f + j, ld, c, s0, s1, layers - j, older, best + j, from + j);
  if constexpr (kVecs == 1)
    if (j < layers) relax_vecs<kWidth, 1>(f + j, ld, c, s0, s1, older, best + j, from + j);
}

template <int kWidth>
int64_t least(const double* f, const double* c, int64_t s0, int64_t s1, double* best) {
  using V = Simd<kWidth>;
  auto low = V::splat(__builtin_inf()), arg = V::splat(-1.0);
  typename V::Vec here;
  for (int i = 0; i < kWidth; ++i) here[i] = static_cast<double>(s0 + i);
  int64_t s = s0;
  for (; s + kWidth <= s1; s += kWidth, here += kWidth) {
    const auto v = V::load(f + s) + V::load(c + s);
    const auto better = v < low;
    low = better ? v : low;
    arg = better ? here : arg;
  }
  *best = __builtin_inf();
  int64_t first = -1;
  for (int i = 0; i < kWidth; ++i)
    if (low[i] < *best || (low[i] == *best && arg[i] < static_cast<double>(first))) {
      *best = low[i];
      first = static_cast<int64_t>(arg[i]);
    }
  for (; s < s1; ++s)
    if (f[s] + c[s] < *best) {
      *best = f[s] + c[s];
      first = s;
    }
  return first;
}

}  // namespace
}  // namespace cwt

#include "segment/segmenter_kernels_float.h"

namespace cwt {
namespace {

template <int kWidth, int kTile, int kVecs>
constexpr Kernels make_kernels(const char* name) {
  return {name,
          kWidth,
          2 * kWidth,
          add<kWidth, float>,
          add<kWidth, double>,
          pack<kWidth, float>,
          pack<kWidth, double>,
          gram<kWidth, kTile>,
          kTile,
          pack_units<kWidth, float>,
          pack_units<kWidth, double>,
          gram32<kWidth, kTile>,
          narrow<kWidth>,
          costs<kWidth, true>,
          costs<kWidth, false>,
          relax<kWidth, kVecs>,
          least<kWidth>};
}

}  // namespace
}  // namespace cwt
