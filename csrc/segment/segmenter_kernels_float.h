// The kernels on float32 that bounds of costs are made from (segmenter_proof.h); the rules of
// segmenter_kernels_impl.h, which includes this file, hold here too.
//
// A panel has twice as many units as one of doubles.
#pragma once

namespace cwt {
namespace {

// Vectors of 2 kWidth floats, and their halves as doubles.
template <int kWidth>
struct FloatTypes;
template <>
struct FloatTypes<2> {
  typedef float Vec __attribute__((vector_size(16)));
  typedef float LooseVec __attribute__((vector_size(16), aligned(4), may_alias));
  typedef float Half __attribute__((vector_size(8)));
  typedef double Doubles __attribute__((vector_size(16)));

  static Doubles low(Vec v) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1), Doubles);
  }
  static Doubles high(Vec v) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, 2, 3), Doubles);
  }
  static Vec join(Doubles a, Doubles b) {
    return __builtin_shufflevector(__builtin_convertvector(a, Half),
                                   __builtin_convertvector(b, Half), 0, 1, 2, 3);
  }
};
#if defined(__AVX2__)
template <>
struct FloatTypes<4> {
  typedef float Vec __attribute__((vector_size(32)));
  typedef float LooseVec __attribute__((vector_size(32), aligned(4), may_alias));
  typedef double Doubles __attribute__((vector_size(32)));

  static Doubles low(Vec v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
  static Doubles high(Vec v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
  static Vec join(Doubles a, Doubles b) {
    return _mm256_set_m128(_mm256_cvtpd_ps(b), _mm256_cvtpd_ps(a));
  }
};
#endif

template <int kWidth>
struct FloatSimd : FloatTypes<kWidth> {
  using Types = FloatTypes<kWidth>;
  using Vec = typename Types::Vec;
  using LooseVec = typename Types::LooseVec;
  static constexpr int kLanes = 2 * kWidth;

  static Vec splat(float v) { return v - Vec{}; }
  static Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
  static void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
  static void transpose(Vec* v) {
    using Lanes = std::make_index_sequence<kLanes>;
    swap_squares<1, kLanes>(v, Lanes{});
    swap_squares<2, kLanes>(v, Lanes{});
    if constexpr (kLanes > 4) swap_squares<4, kLanes>(v, Lanes{});
  }
};

template <int kWidth, typename scalar_t>
void pack_units(const scalar_t* x, int64_t stride, const double* scale, int64_t rows, int64_t d,
                float* out) {
  using V = Simd<kWidth>;
  using F = FloatSimd<kWidth>;
  const scalar_t* row[F::kLanes];
  double factor[F::kLanes];
  for (int i = 0; i < F::kLanes; ++i) {  // a missing row is 0 times the first one
    row[i] = i < rows ? x + i * stride : x;
    factor[i] = i < rows ? scale[i] : 0;
  }
  int64_t j = 0;
  for (; j + F::kLanes <= d; j += F::kLanes) {
    typename F::Vec v[F::kLanes];
    for (int i = 0; i < F::kLanes; ++i)
      v[i] = F::join(V::load(row[i] + j) * factor[i], V::load(row[i] + j + kWidth) * factor[i]);
    F::transpose(v);
    for (int i = 0; i < F::kLanes; ++i) F::store(out + (j + i) * F::kLanes, v[i]);
  }
  for (; j < d; ++j)
    for (int i = 0; i < F::kLanes; ++i)
      out[j * F::kLanes + i] = static_cast<float>(row[i][j] * factor[i]);
}

// Two rounds of kWidth rows, so that the sums fit the registers; a single panel needs one.
template <int kWidth, int kPanels>
void gram32_tile(const float* a, const float* const* b, int64_t d, int64_t chain, double first,
                 double* out, int64_t ld, bool more) {
  using V = Simd<kWidth>;
  using F = FloatSimd<kWidth>;
  constexpr int kRows = kPanels == 1 ? F::kLanes : kWidth;
  const float* cols[kPanels];
  for (int g = 0; g < kPanels; ++g) cols[g] = b[g];
  for (int row = 0; row < F::kLanes; row += kRows)
    for (int64_t begin = 0; begin < d; begin += chain) {
      const int64_t end = begin + chain < d ? begin + chain : d;
      typename F::Vec acc[kRows][kPanels] = {};
      for (int64_t j = begin * F::kLanes; j < end * F::kLanes; j += F::kLanes) {
        typename F::Vec v[kPanels];
        for (int g = 0; g < kPanels; ++g) v[g] = F::load(cols[g] + j);
        for (int i = 0; i < kRows; ++i) {
          const auto u = F::splat(a[j + row + i]);
          for (int g = 0; g < kPanels; ++g) acc[i][g] += u * v[g];
        }
      }
      const bool add = more || begin > 0;
      for (int i = 0; i < kRows; ++i)
        for (int g = 0; g < kPanels; ++g) {
          double* at = out + (row + i) * ld + g * F::kLanes;
          const auto start = V::splat(first);
          V::store(at, F::low(acc[i][g]) + (add ? V::load(at) : start));
          V::store(at + kWidth, F::high(acc[i][g]) + (add ? V::load(at + kWidth) : start));
        }
    }
}

template <int kWidth, int kTile>
void gram32(const float* a, const float* const* b, int64_t panels, int64_t d, int64_t chain,
            double first, double* out, int64_t ld, bool more) {
  if constexpr (kTile > 1)
    if (panels < kTile)
      return gram32<kWidth, kTile - 1>(a, b, panels, d, chain, first, out, ld, more);
  gram32_tile<kWidth, kTile>(a, b, d, chain, first, out, ld, more);
}

template <int kWidth>
void narrow(const double* from, int64_t size, float* to) {
  using V = Simd<kWidth>;
  using F = FloatSimd<kWidth>;
  int64_t i = 0;
  for (; i + F::kLanes <= size; i += F::kLanes)
    F::store(to + i, F::join(V::load(from + i), V::load(from + i + kWidth)));
  for (; i < size; ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace
}  // namespace cwt
