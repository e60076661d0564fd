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
};
template <>
struct VectorTypes<4> {
  typedef double Vec __attribute__((vector_size(32)));
  typedef double LooseVec __attribute__((vector_size(32), aligned(8), may_alias));
  typedef float LooseFloats __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t LooseInts __attribute__((vector_size(16), aligned(4), may_alias));
};

template <int kWidth>
struct Simd {
  using Vec = typename VectorTypes<kWidth>::Vec;
  using LooseVec = typename VectorTypes<kWidth>::LooseVec;
  using LooseFloats = typename VectorTypes<kWidth>::LooseFloats;
  using LooseInts = typename VectorTypes<kWidth>::LooseInts;
  using Lanes = std::make_index_sequence<kWidth>;

  static Vec splat(double v) { return v - Vec{}; }
  static Vec load(const double* p) { return *reinterpret_cast<const LooseVec*>(p); }
  static Vec load(const float* p) {
    return __builtin_convertvector(*reinterpret_cast<const LooseFloats*>(p), Vec);
  }
  static void store(double* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

  // Swaps the off-diagonal kStep x kStep squares of each 2 kStep x 2 kStep square.
  template <int kStep, size_t... kLane>
  static void swap_squares(Vec* v, std::index_sequence<kLane...>) {
    for (int i = 0; i < kWidth; ++i) {
      if (i & kStep) continue;
      const Vec a = v[i], b = v[i + kStep];
      v[i] = __builtin_shufflevector(a, b, ((kLane & kStep) ? kWidth + kLane - kStep : kLane)...);
      v[i + kStep] =
          __builtin_shufflevector(a, b, ((kLane & kStep) ? kWidth + kLane : kLane + kStep)...);
    }
  }
  static void transpose(Vec* v) {
    swap_squares<1>(v, Lanes{});
    if constexpr (kWidth > 2) swap_squares<2>(v, Lanes{});
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
double squares(const scalar_t* x, int64_t d) {
  using V = Simd<kWidth>;
  constexpr int kLanes = 16, kVecs = kLanes / kWidth;
  typename V::Vec acc[kVecs] = {};
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes)
    for (int i = 0; i < kVecs; ++i) {
      const auto v = V::load(x + j + i * kWidth);
      acc[i] += v * v;
    }
  double sum = 0;
  for (int i = 0; i < kVecs; ++i)
    for (int lane = 0; lane < kWidth; ++lane) sum += acc[i][lane];
  for (; j < d; ++j) sum += static_cast<double>(x[j]) * x[j];
  return sum;
}

template <int kWidth, typename scalar_t>
void add(const scalar_t* x, double scale, int64_t d, double* sum) {
  using V = Simd<kWidth>;
  int64_t j = 0;
  for (; j + kWidth <= d; j += kWidth) V::store(sum + j, V::load(sum + j) + scale * V::load(x + j));
  for (; j < d; ++j) sum[j] += scale * x[j];
}

template <int kWidth, typename scalar_t>
void pack(const scalar_t* x, int64_t rows, int64_t d, const double* scale, double* out) {
  using V = Simd<kWidth>;
  const scalar_t* row[kWidth];
  double factor[kWidth];
  for (int i = 0; i < kWidth; ++i) {  // a missing row is 0 times the first one
    row[i] = i < rows ? x + i * d : x;
    factor[i] = i < rows ? scale[i] : 0;
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

template <int kWidth, int kPanels>
void gram_tile(const double* a, const double* const* b, int64_t d, double* out, int64_t ld,
               bool more) {
  using V = Simd<kWidth>;
  typename V::Vec acc[kWidth][kPanels] = {};
  if (more)
    for (int i = 0; i < kWidth; ++i)
      for (int g = 0; g < kPanels; ++g) acc[i][g] = V::load(out + i * ld + g * kWidth);
  const double* cols[kPanels];
  for (int g = 0; g < kPanels; ++g) cols[g] = b[g];
  for (int64_t j = 0; j < d * kWidth; j += kWidth) {
    typename V::Vec v[kPanels];
    for (int g = 0; g < kPanels; ++g) v[g] = V::load(cols[g] + j);
    for (int i = 0; i < kWidth; ++i) {
      const auto u = V::splat(a[j + i]);
      for (int g = 0; g < kPanels; ++g) acc[i][g] += u * v[g];
    }
  }
  for (int i = 0; i < kWidth; ++i)
    for (int g = 0; g < kPanels; ++g) V::store(out + i * ld + g * kWidth, acc[i][g]);
}

template <int kWidth, int kTile>
void gram(const double* a, const double* const* b, int64_t panels, int64_t d, double* out,
          int64_t ld, bool more) {
  if constexpr (kTile > 1)
    if (panels < kTile) return gram<kWidth, kTile - 1>(a, b, panels, d, out, ld, more);
  gram_tile<kWidth, kTile>(a, b, d, out, ld, more);
}

template <int kWidth, bool kNorm>
void costs(double* g, double* window, const double* trace, int64_t lo, int64_t t) {
  using V = Simd<kWidth>;
  const double diagonal = g[t - 1];
  double below = 0;  // G(t-1, s) + ... + G(t-1, t-1)
  int64_t s = t;
  for (; s - kWidth >= lo; s -= kWidth) {
    const int64_t p = s - kWidth;
    const auto sums = V::suffix_sums(V::load(g + p)) + below;
    below = sums[0];
    const auto w = V::load(window + p) + (2 * sums - diagonal);
    V::store(window + p, w);
    typename V::Vec c;
    for (int i = 0; i < kWidth; ++i)
      if constexpr (kNorm)
        c[i] = -__builtin_sqrt(w[i] > 0 ? w[i] : 0);
      else
        c[i] = trace[t] - trace[p + i] - w[i] / static_cast<double>(t - p - i);
    V::store(g + p, c);
  }
  for (--s; s >= lo; --s) {
    below += g[s];
    window[s] += 2 * below - diagonal;
    if constexpr (kNorm)
      g[s] = -__builtin_sqrt(window[s] > 0 ? window[s] : 0);
    else
      g[s] = trace[t] - trace[s] - window[s] / static_cast<double>(t - s);
  }
}

template <int kWidth, int kVecs>
void relax_vecs(const double* f, int64_t ld, const double* c, int64_t s0, int64_t s1, double* best,
                int32_t* from) {
  using V = Simd<kWidth>;
  typename V::Vec least[kVecs], arg[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    least[i] = V::load(best + i * kWidth);
    arg[i] = __builtin_convertvector(
        *reinterpret_cast<const typename V::LooseInts*>(from + i * kWidth), typename V::Vec);
  }
  auto here = V::splat(static_cast<double>(s0));
  for (int64_t s = s0; s < s1; ++s, here += 1.0)
    for (int i = 0; i < kVecs; ++i) {
      const auto v = V::load(f + s * ld + i * kWidth) + c[s];
      const auto better = v < least[i];
      least[i] = better ? v : least[i];
      arg[i] = better ? here : arg[i];
    }
  for (int i = 0; i < kVecs; ++i) {
    V::store(best + i * kWidth, least[i]);
    *reinterpret_cast<typename V::LooseInts*>(from + i * kWidth) =
        __builtin_convertvector(arg[i], typename V::LooseInts);
  }
}

template <int kWidth, int kVecs>
void relax(const double* f, int64_t ld, const double* c, int64_t s0, int64_t s1, int64_t layers,
           double* best, int32_t* from) {
  constexpr int64_t kStep = kWidth * kVecs;
  int64_t j = 0;
  for (; j + kStep <= layers; j += kStep)
    relax_vecs<kWidth, kVecs>(f + j, ld, c, s0, s1, best + j, from + j);
  if constexpr (kVecs > 1)
    if (j < layers) relax<kWidth, kVecs - 1>(f + j, ld, c, s0, s1, layers - j, best + j, from + j);
  if constexpr (kVecs == 1)
    if (j < layers) relax_vecs<kWidth, 1>(f + j, ld, c, s0, s1, best + j, from + j);
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

template <int kWidth, int kTile, int kVecs>
constexpr Kernels make_kernels(const char* name) {
  return {name,
          kWidth,
          squares<kWidth, float>,
          squares<kWidth, double>,
          add<kWidth, float>,
          add<kWidth, double>,
          pack<kWidth, float>,
          pack<kWidth, double>,
          gram<kWidth, kTile>,
          kTile,
          costs<kWidth, true>,
          costs<kWidth, false>,
          relax<kWidth, kVecs>,
          least<kWidth>};
}

}  // namespace
}  // namespace cwt
