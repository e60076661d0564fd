// Pass 2 of a row: from the exponentials that pass 1 kept to the gradient. The rules of
// rows.h (anonymous namespace, nothing of the standard library) hold here too.
#pragma once

#include "rows.h"

namespace cwt {
namespace {

// Elements before the first whose address takes an aligned vector store.
template <class V, class scalar_t>
inline int64_t unaligned_head(const scalar_t* p, int64_t size) {
  constexpr uintptr_t kAlign = V::kLanes * sizeof(scalar_t);
  const uintptr_t past = reinterpret_cast<uintptr_t>(p) % kAlign;
  const int64_t head = past ? int64_t((kAlign - past) / sizeof(scalar_t)) : 0;
  return head < size ? head : size;
}

// grad = scale * e, the whole of pass 2 for the plain loss.
template <class V, bool kStream, class scalar_t>
inline void scale_span(const float* e, int64_t size, float scale, scalar_t* grad) {
  constexpr int64_t kLanes = V::kLanes;
  int64_t i = 0;
  for (const int64_t head = kStream ? unaligned_head<V>(grad, size) : 0; i < head; ++i)
    put<V>(grad + i, scale * e[i]);
  const auto factor = V::set1(scale);
  for (; i + kLanes <= size; i += kLanes) {
    const auto g = V::mul(V::load(e + i), factor);
    if constexpr (kStream)
      V::stream(grad + i, g);
    else
      V::store(grad + i, g);
  }
  for (; i < size; ++i) put<V>(grad + i, scale * e[i]);
}

// The same, and mean += g.
template <class V, bool kStream, class scalar_t>
inline void scale_span_add(const float* e, int64_t size, float scale, float weight, scalar_t* grad,
                           float* mean) {
  constexpr int64_t kLanes = V::kLanes;
  const auto one = [&](int64_t i) {
    const float g = scale * e[i];
    mean[i] += g;
    put<V>(grad + i, weight * g);
  };
  int64_t i = 0;
  for (const int64_t head = kStream ? unaligned_head<V>(grad, size) : 0; i < head; ++i) one(i);
  const auto factor = V::set1(scale), factor_of_grad = V::set1(weight);
  for (; i + kLanes <= size; i += kLanes) {
    const auto g = V::mul(V::load(e + i), factor);
    V::store(mean + i, V::add(V::load(mean + i), g));
    if constexpr (kStream)
      V::stream(grad + i, V::mul(g, factor_of_grad));
    else
      V::store(grad + i, V::mul(g, factor_of_grad));
  }
  for (; i < size; ++i) one(i);
}

// g = (p_factor p - bias) slope with everything that may be asked of it; returns the sum of g^2.
template <class V, class scalar_t>
inline double write_span(const float* e, const float* slope, int64_t size, float scale,
                         const RowOutput& out, scalar_t* grad, float* mean) {
  constexpr int64_t kLanes = V::kLanes;
  const auto factor = V::set1(scale * float(out.p_factor)), minus_bias = V::set1(-float(out.bias));
  const auto weight = V::set1(float(out.weight));
  auto square = V::set1(0);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    auto g = V::fma(V::load(e + i), factor, minus_bias);
    if (slope) g = V::mul(g, V::load(slope + i));
    square = V::fma(g, g, square);
    if (mean) V::store(mean + i, V::add(V::load(mean + i), g));
    if (grad) V::store(grad + i, V::mul(g, weight));
  }
  double total = sum_of<V>(square);
  for (; i < size; ++i) {
    float g = e[i] * scale * float(out.p_factor) - float(out.bias);
    if (slope) g *= slope[i];
    total += double(g) * g;
    if (mean) mean[i] += g;
    if (grad) put<V>(grad + i, g * float(out.weight));
  }
  return total;
}

template <class V, bool kStream, class scalar_t>
inline void plain_span(const float* e, int64_t size, double scale, const RowOutput& out,
                       scalar_t* grad, float* mean) {
  if (mean)
    scale_span_add<V, kStream>(e, size, float(scale), float(out.weight), grad, mean);
  else
    scale_span<V, kStream>(e, size, float(scale * out.weight), grad);
}

template <class V, class scalar_t>
double row_write(const RowInput& in, const RowScratch& scratch, const RowOutput& out, int64_t first,
                 int64_t last) {
  const float* e = static_cast<const float*>(scratch.e);
  const float* slope = in.softcap > 0 ? static_cast<const float*>(scratch.slope) : nullptr;
  scalar_t* grad = static_cast<scalar_t*>(out.grad);
  float* mean = static_cast<float*>(out.mean);
  double square = 0;
  for (int64_t begin = first; begin < last; begin += kRowBlock) {
    const int64_t end = block_end(begin, last);
    const double power =
        __builtin_ldexp(1.0, scratch.exponents[begin / kRowBlock] - scratch.exponent);
    const double scale = out.p_scale * power;
    around(begin, end, in.label, [&](int64_t from, int64_t to) {
      float* mean_from = mean ? mean + from : nullptr;
      if (!out.plain || !grad)
        square += write_span<V>(e + from, slope ? slope + from : nullptr, to - from, float(scale),
                                out, grad ? grad + from : nullptr, mean_from);
      else if (out.stream)
        plain_span<V, true>(e + from, to - from, scale, out, grad + from, mean_from);
      else
        plain_span<V, false>(e + from, to - from, scale, out, grad + from, mean_from);
    });
  }
  if (in.label < first || in.label >= last) return square;
  const double g_y = slope ? out.g_y * slope[in.label] : out.g_y;
  if (mean) mean[in.label] += float(g_y);
  if (grad) put<V>(grad + in.label, float(out.weight * g_y));
  return square + g_y * g_y;
}

// out = factor * in; the two may be the same memory.
template <class V, class scalar_t>
void row_scale(const void* in, void* out, int64_t size, double factor) {
  const scalar_t* from = static_cast<const scalar_t*>(in);
  scalar_t* to = static_cast<scalar_t*>(out);
  int64_t i = 0;
  for (; i + V::kLanes <= size; i += V::kLanes)
    V::store(to + i, V::mul(V::load(from + i), V::set1(float(factor))));
  for (; i < size; ++i) put<V>(to + i, get<V>(from + i) * float(factor));
}

template <class V, class scalar_t>
constexpr RowKernels row_kernels() {
  return {&row_sums<V, scalar_t>,
          &row_write<V, scalar_t>,
          &row_scale<V, scalar_t>,
          {&block_top<V, scalar_t>, &choose_exponents<V, scalar_t>, &sums_of_block<V, scalar_t>,
           &join_blocks<V, scalar_t>}};
}

template <class V>
constexpr RowKernelSet row_kernel_set(const char* name) {
  return {name, row_kernels<V, Half>(), row_kernels<V, BFloat16>(), row_kernels<V, float>()};
}

}  // namespace
}  // namespace cwt
