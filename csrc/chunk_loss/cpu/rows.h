// The arithmetic of one row, for a vector type that the including file chooses.
//
// Pass 1 (exp_span) reads the logits once and keeps e_j in a scratch row (in the second-level
// cache); pass 2 (write.h) scales it into the gradient. Memory per row: V logits read, V gradients
// written, both once.
//
//   e_j = exp(z_j) / 2^N = exp(r) 2^(n - N)      with z_j = n ln2 + r, N an integer
//
// N is an integer so that nothing is subtracted from z before the exponential: n and r are exact
// enough at any distance from the maximum. (z - max in float32 loses 1e-6 of e once z is 16 below
// the maximum.) Each block of kRowBlock elements has its own N. The first guess is the label's
// logit; a block whose maximum is more than 2^6 above its N is done again while it is still in the
// first-level cache. Blocks are put on one scale in float64, exactly.
//
// Finite because: n - N >= -127 by clamping (-Inf gives exactly 0), e <= 2^7, e^2 <= 2^14. Rows
// whose maximum lies outside +-kMaxMagnitude are first rebased to a scratch copy x - max.
//
// Everything here is in an anonymous namespace and uses no inline function of the standard library:
// a function shared between files built for different instruction sets would be merged by the
// linker, and could trap on an older CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace cwt {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();
constexpr float kMaxMagnitude = 1e4f;
constexpr int kRedoExponent = 6;
constexpr double kLn2 = 0.693147180559945309;
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact without an FMA
constexpr float kLn2Low = -2.12194440e-4f;
// 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits.
constexpr float kMagic = 12582912.f;

inline float minus_infinity(const float*) { return -kInfinity; }
inline BFloat16 minus_infinity(const BFloat16*) { return {0xFF80}; }
inline Half minus_infinity(const Half*) { return {0xFC00}; }

// One element through the vector conversions, so that there is one rounding to get right.
template <class V, class scalar_t>
inline float get(const scalar_t* p) {
  scalar_t in[V::kLanes] = {*p};
  float out[V::kLanes];
  V::store(out, V::load(in));
  return out[0];
}

template <class V, class scalar_t>
inline void put(scalar_t* p, float value) {
  scalar_t out[V::kLanes];
  V::store(out, V::set1(value));
  *p = out[0];
}

template <class V>
inline double sum_of(typename V::reg v) {
  float lanes[V::kLanes];
  V::store(lanes, v);
  double total = 0;
  for (float lane : lanes) total += lane;
  return total;
}

template <class V>
inline float max_of(typename V::reg v) {
  float lanes[V::kLanes];
  V::store(lanes, v);
  float top = lanes[0];
  for (float lane : lanes) top = lane > top ? lane : top;
  return top;
}

inline int exponent_near(float z) { return int(__builtin_rintf(z * kLog2e)); }

// The constants of exp(z) / 2^N.
template <class V>
struct Shift {
  explicit Shift(int n)
      : lowest(V::set1(float((n - 126.9) * kLn2))),
        offset(V::set1(float(n * kLn2))),
        bias(127 - n) {}
  typename V::reg lowest;  // rounds to n = N - 127, whose power of two is 0
  typename V::reg offset;
  int bias;
};

// exp(z) / 2^N for lowest <= z; NaN and +Inf give NaN. Relative error below 1.1e-7: degree 6 on
// +-ln2/2.
template <class V>
inline typename V::reg exp_shifted(typename V::reg z, int bias) {
  const auto t = V::fma(z, V::set1(kLog2e), V::set1(kMagic));
  const auto n = V::sub(t, V::set1(kMagic));
  auto r = V::fma(n, V::set1(-kLn2High), z);
  r = V::fma(n, V::set1(-kLn2Low), r);
  auto p = V::fma(r, V::set1(0.0013814539415761828f), V::set1(0.00836874544620514f));
  p = V::fma(p, r, V::set1(0.04166838899254799f));
  p = V::fma(p, r, V::set1(0.1666652113199234f));
  p = V::fma(p, r, V::set1(0.4999999403953552f));
  p = V::fma(p, r, V::set1(1.f));
  p = V::fma(p, r, V::set1(1.f));
  return V::scale_by_power(p, t, bias);
}

template <class V>
struct SpanSums {
  typename V::reg s = V::set1(0), q = V::set1(0), h = V::set1(0), top = V::set1(-kInfinity);
};

template <class V, bool kStats>
inline typename V::reg exp_step(typename V::reg z, const Shift<V>& shift, SpanSums<V>& a) {
  a.top = V::max(z, a.top);                // a NaN keeps top
  const auto x = V::max(shift.lowest, z);  // a NaN stays
  const auto e = exp_shifted<V>(x, shift.bias);
  a.s = V::add(a.s, e);
  if constexpr (kStats) {
    a.q = V::fma(e, e, a.q);
    a.h = V::fma(e, V::sub(x, shift.offset), a.h);
  }
  return e;
}

template <class V, class scalar_t, bool kStats, bool kKeep>
inline void exp_span(const scalar_t* x, int64_t size, float* e, const Shift<V>& shift,
                     SpanSums<V>& a) {
  constexpr int64_t kLanes = V::kLanes;
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const auto e0 = exp_step<V, kStats>(V::load(x + i), shift, a);
    const auto e1 = exp_step<V, kStats>(V::load(x + i + kLanes), shift, a);
    if constexpr (kKeep) {
      V::store(e + i, e0);
      V::store(e + i + kLanes, e1);
    }
  }
  for (; i < size; i += kLanes) {
    const int64_t left = size - i < kLanes ? size - i : kLanes;
    scalar_t in[kLanes];
    float out[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) in[k] = k < left ? x[i + k] : minus_infinity(x);
    V::store(out, exp_step<V, kStats>(V::load(in), shift, a));
    if constexpr (kKeep) std::memcpy(e + i, out, left * sizeof(float));
  }
}

// Calls piece(begin, end) for the parts of [begin, end) that do not hold the label.
template <typename piece_fn>
inline void around(int64_t begin, int64_t end, int64_t label, const piece_fn& piece) {
  if (label < begin || label >= end) return piece(begin, end);
  if (label > begin) piece(begin, label);
  if (label + 1 < end) piece(label + 1, end);
}

// Sums of a row in units of 2^n (q: 2^2n), around n ln2.
struct RowTotals {
  int n;
  double s = 0, q = 0, h = 0;

  void move_to(int to) {
    if (to == n) return;
    const double scale = __builtin_ldexp(1.0, n - to);
    h = scale * (h + s * (n - to) * kLn2);
    s *= scale;
    q *= scale * scale;
    n = to;
  }

  template <bool kStats>
  void add(const BlockSums& block, int exponent) {
    move_to(exponent);
    s += block.s;
    if constexpr (kStats) {
      q += block.q;
      h += block.h + block.s * (double(float(n * kLn2)) - n * kLn2);
    }
  }
};

// The exponent that a row begins with: never far above its maximum.
inline int first_exponent(float z_y) {
  const bool usable = z_y >= -kMaxMagnitude && z_y <= kMaxMagnitude;
  return exponent_near(usable ? z_y : -kMaxMagnitude);
}

// Whether a block of maximum `top` has to be done again, with exponent_near(top).
inline bool passes(float top, int n) { return top > (n + kRedoExponent) * float(kLn2); }

inline int64_t block_end(int64_t begin, int64_t vocab) {
  return begin + kRowBlock < vocab ? begin + kRowBlock : vocab;
}

template <class V, class scalar_t, bool kStats, bool kKeep>
inline BlockSums block_sums(const scalar_t* x, const RowInput& in, float* e, int64_t begin, int n) {
  const Shift<V> shift(n);
  SpanSums<V> a;
  around(begin, block_end(begin, in.vocab), in.label, [&](int64_t from, int64_t to) {
    exp_span<V, scalar_t, kStats, kKeep>(x + from, to - from, e + from, shift, a);
  });
  BlockSums block{max_of<V>(a.top), sum_of<V>(a.s), 0, 0};
  if constexpr (kStats) {
    block.q = sum_of<V>(a.q);
    block.h = sum_of<V>(a.h);
  }
  return block;
}

enum class RowPass { kDone, kRebase };

template <class V, class scalar_t, bool kStats, bool kKeep>
RowPass sums_pass(const scalar_t* x, const RowInput& in, RowScratch& scratch,
                  RowSums<double>& sums) {
  float* e = static_cast<float*>(scratch.e);
  const float z_y = get<V>(x + in.label);
  int n = first_exponent(z_y);
  RowTotals totals{n};
  float z_max = z_y;
  for (int64_t begin = 0; begin < in.vocab; begin += kRowBlock) {
    BlockSums block;
    for (;;) {
      block = block_sums<V, scalar_t, kStats, kKeep>(x, in, e, begin, n);
      if (block.top > kMaxMagnitude) return RowPass::kRebase;
      if (!passes(block.top, n)) break;
      n = exponent_near(block.top);
    }
    z_max = block.top > z_max ? block.top : z_max;
    scratch.exponents[begin / kRowBlock] = n;
    totals.add<kStats>(block, n);
  }
  // A NaN in s passes this test and is found by the caller.
  if (z_max < -kMaxMagnitude || z_max > kMaxMagnitude) return RowPass::kRebase;
  scratch.exponent = n;
  sums = {n * kLn2, totals.s, totals.q, totals.h, 0, z_y, z_max};
  return RowPass::kDone;
}

template <class V, class scalar_t>
RowPass sums_dispatch(const scalar_t* x, const RowInput& in, RowScratch& scratch,
                      RowSums<double>& sums) {
  if (in.want_stats)
    return in.keep ? sums_pass<V, scalar_t, true, true>(x, in, scratch, sums)
                   : sums_pass<V, scalar_t, true, false>(x, in, scratch, sums);
  return in.keep ? sums_pass<V, scalar_t, false, true>(x, in, scratch, sums)
                 : sums_pass<V, scalar_t, false, false>(x, in, scratch, sums);
}

// z and its slope dz/dx, which keeps its digits where tanh saturates:
//
//   u = x / cap,  E = exp(-2 |u|)
//   z     = cap tanh(u) = cap (1 - E) / (1 + E)      (|u| < 0.25, where 1 - E cancels: a series)
//   slope = 1 - tanh(u)^2 = 4 E / (1 + E)^2
template <class V>
inline void softcap_step(float* z, float* slope, float cap) {
  const auto one = V::set1(1), shift = V::set1(-87.f);
  const auto u = V::mul(V::load(z), V::set1(1 / cap));
  const auto magnitude = V::max(u, V::sub(V::set1(0), u));
  const auto energy = exp_shifted<V>(V::max(shift, V::mul(V::set1(-2), magnitude)), 127);
  const auto inverse = V::div(one, V::add(one, energy));
  const auto u2 = V::mul(u, u);
  auto series = V::fma(u2, V::set1(-0.00886323552f), V::set1(0.0218694885f));
  series = V::fma(series, u2, V::set1(-0.0539682540f));
  series = V::fma(series, u2, V::set1(0.133333333f));
  series = V::fma(series, u2, V::set1(-0.333333333f));
  const auto small = V::fma(V::mul(series, u2), u, u);
  const auto large = V::copy_sign(V::mul(V::sub(one, energy), inverse), u);
  V::store(z, V::mul(V::set1(cap), V::select_below(magnitude, 0.25f, small, large)));
  V::store(slope, V::mul(V::mul(V::set1(4), energy), V::mul(inverse, inverse)));
}

// Copies the row to scratch.z as floats, softcapped where asked.
template <class V, class scalar_t>
void prepare(const RowInput& in, RowScratch& scratch) {
  constexpr int64_t kLanes = V::kLanes;
  const scalar_t* x = static_cast<const scalar_t*>(in.x);
  float* z = static_cast<float*>(scratch.z);
  for (int64_t i = 0; i < in.vocab; i += kLanes) {
    const int64_t left = in.vocab - i < kLanes ? in.vocab - i : kLanes;
    scalar_t raw[kLanes];
    float value[kLanes], slope[kLanes];
    for (int64_t k = 0; k < kLanes; ++k)
      raw[k] = k < left ? x[(i + k) * in.stride] : minus_infinity(x);
    V::store(value, V::load(raw));
    if (in.softcap > 0) {
      softcap_step<V>(value, slope, float(in.softcap));
      std::memcpy(static_cast<float*>(scratch.slope) + i, slope, left * sizeof(float));
      float original[kLanes];
      V::store(original, V::load(raw));
      for (int64_t k = 0; k < left; ++k)  // tanh would hide these
        if (original[k] != original[k] || original[k] == kInfinity) value[k] = original[k];
    }
    std::memcpy(z + i, value, left * sizeof(float));
  }
}

// Subtracts the row's maximum in place; false where there is none.
inline bool rebase(float* z, int64_t vocab, float& top) {
  top = -kInfinity;
  for (int64_t j = 0; j < vocab; ++j) top = z[j] > top ? z[j] : top;
  if (top == kInfinity || top == -kInfinity) return false;
  for (int64_t j = 0; j < vocab; ++j) z[j] -= top;
  return true;
}

template <class V, class scalar_t>
double sum_row(const scalar_t* x, int64_t vocab) {
  constexpr int64_t kLanes = V::kLanes;
  double total = 0;
  for (int64_t begin = 0; begin < vocab; begin += kRowBlock) {
    const int64_t end = begin + kRowBlock < vocab ? begin + kRowBlock : vocab;
    auto lanes = V::set1(0);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) lanes = V::add(lanes, V::load(x + i));
    total += sum_of<V>(lanes);
    for (; i < end; ++i) total += get<V>(x + i);
  }
  return total;
}

template <class V, class scalar_t>
bool row_sums(const RowInput& in, RowScratch& scratch, RowSums<double>& sums) {
  float* z = static_cast<float*>(scratch.z);
  bool copied = in.stride != 1 || in.softcap > 0;
  if (copied) prepare<V, scalar_t>(in, scratch);
  const scalar_t* x = static_cast<const scalar_t*>(in.x);
  RowPass pass =
      copied ? sums_dispatch<V>(z, in, scratch, sums) : sums_dispatch<V>(x, in, scratch, sums);
  float top = 0;
  if (pass == RowPass::kRebase) {
    if (!copied) prepare<V, scalar_t>(in, scratch);
    copied = true;
    if (!rebase(z, in.vocab, top)) return false;
    if (sums_dispatch<V>(z, in, scratch, sums) == RowPass::kRebase) return false;
  }
  if (sums.s != sums.s || sums.z_y != sums.z_y) return false;
  if (in.want_z_sum) sums.z_sum = copied ? sum_row<V>(z, in.vocab) : sum_row<V>(x, in.vocab);
  sums.z_sum += double(top) * in.vocab;
  sums.shift += top;
  sums.z_y += top;
  sums.z_max += top;
  return true;
}

// The same in steps (BlockKernels).

template <class V, class scalar_t>
float block_top(const RowInput& in, int64_t begin) {
  constexpr int64_t kLanes = V::kLanes;
  const scalar_t* x = static_cast<const scalar_t*>(in.x);
  auto top = V::set1(-kInfinity);
  float last = -kInfinity;
  around(begin, block_end(begin, in.vocab), in.label, [&](int64_t from, int64_t to) {
    for (; from + kLanes <= to; from += kLanes) top = V::max(V::load(x + from), top);
    for (; from < to; ++from) {
      const float z = get<V>(x + from);
      last = z > last ? z : last;
    }
  });
  const float most = max_of<V>(top);
  return last > most ? last : most;
}

template <class V, class scalar_t>
bool choose_exponents(const RowInput& in, const BlockSums* blocks, RowScratch& scratch) {
  const float z_y = get<V>(static_cast<const scalar_t*>(in.x) + in.label);
  int n = first_exponent(z_y);
  float z_max = z_y;
  for (int64_t b = 0; b * kRowBlock < in.vocab; ++b) {
    const float top = blocks[b].top;
    if (passes(top, n)) n = exponent_near(top);
    if (top > z_max) z_max = top;
    scratch.exponents[b] = n;
  }
  scratch.exponent = n;
  return !(z_max < -kMaxMagnitude || z_max > kMaxMagnitude);
}

template <class V, class scalar_t>
void sums_of_block(const RowInput& in, const RowScratch& scratch, int64_t begin, BlockSums& block) {
  const scalar_t* x = static_cast<const scalar_t*>(in.x);
  float* e = static_cast<float*>(scratch.e);
  const int n = scratch.exponents[begin / kRowBlock];
  if (in.want_stats)
    block = in.keep ? block_sums<V, scalar_t, true, true>(x, in, e, begin, n)
                    : block_sums<V, scalar_t, true, false>(x, in, e, begin, n);
  else
    block = in.keep ? block_sums<V, scalar_t, false, true>(x, in, e, begin, n)
                    : block_sums<V, scalar_t, false, false>(x, in, e, begin, n);
}

template <class V, class scalar_t>
bool join_blocks(const RowInput& in, const BlockSums* blocks, RowScratch& scratch,
                 RowSums<double>& sums) {
  const float z_y = get<V>(static_cast<const scalar_t*>(in.x) + in.label);
  RowTotals totals{first_exponent(z_y)};
  float z_max = z_y;
  for (int64_t b = 0; b * kRowBlock < in.vocab; ++b) {
    z_max = blocks[b].top > z_max ? blocks[b].top : z_max;
    if (in.want_stats)
      totals.add<true>(blocks[b], scratch.exponents[b]);
    else
      totals.add<false>(blocks[b], scratch.exponents[b]);
  }
  sums = {totals.n * kLn2, totals.s, totals.q, totals.h, 0, z_y, z_max};
  return sums.s == sums.s && sums.z_y == sums.z_y;
}

}  // namespace
}  // namespace cwt
