// The sums of a part of a row, of logits that arrive in any number of batches (online softmax:
// Milakov and Gimelshein, arXiv 1805.02867).
//
//   s = sum base^t_j,  q = sum base^(2 t_j),  h = sum base^t_j t_j,   t_j = unit x_j - c
//
// c stands for a logit, `shift`, that is not far below the largest one: it moves only when a logit
// is more than kSlack above it. With c = unit shift, rounded, t_j costs one fused multiply-add, and
// what the rounding of c does is undone exactly by settle().
#pragma once

#include "platform.cuh"

namespace cwt {

// t_j of the logits near `shift`. Far from 0, where c would be rounded by more than a power of two
// can undo, logits that are not equal differ by 32 and more; then any unit tells them apart, and one
// that is a power of two is exact.
template <typename acc_t>
struct Scale {
  using Exp = Exponent<acc_t>;
  acc_t unit, c;

  __device__ __forceinline__ explicit Scale(acc_t shift)
      : unit(Exp::unit_near(shift)), c(unit * shift) {}
  __device__ __forceinline__ acc_t operator()(acc_t x) const { return Exp::fused(x, unit, -c); }
};

template <typename acc_t>
struct OnlineSums {
  using Exp = Exponent<acc_t>;
  // A larger one costs digits of the entropy, a smaller one more moves.
  static constexpr acc_t kSlack = 4;

  acc_t top, limit;  // the largest logit so far; shift + kSlack
  Scale<acc_t> scale;
  acc_t s = 0, q = 0, h = 0, z = 0;  // h in units of Exp::kLog

  // z_y is the label's logit: no more than the first shift, which it often spares every move.
  __device__ __forceinline__ explicit OnlineSums(acc_t z_y)
      : top(larger(z_y, Exp::kLowest)), limit(top + kSlack), scale(top) {}

  // Adds kCount values, of which `largest` is the largest.
  template <int kCount>
  __device__ __forceinline__ void add(const acc_t (&x)[kCount], acc_t largest) {
    top = larger(top, largest);
    if (top > limit) {
      const Scale<acc_t> to(top);
      multiply(to.unit == scale.unit ? scale.c - to.c : Exp::kFloor);
      scale = to;
      limit = top + kSlack;
    }
    add(x);
  }

  // The same of values that are no larger than `top`.
  template <int kCount>
  __device__ __forceinline__ void add(const acc_t (&x)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const acc_t t = scale(x[k]), e = Exp::power(t);
      s += e;
      q += e * e;
      h += e * larger(t, Exp::kFloor);
    }
  }

  // Makes the sums those relative to the logit `to`, which is at least `top`. Ends the adding.
  __device__ __forceinline__ void settle(acc_t to) { multiply(-scale(to)); }

 private:
  // Every t_j becomes t_j + d.
  __device__ __forceinline__ void multiply(acc_t d) {
    d = larger(d, Exp::kFloor);
    const acc_t f = Exp::power(d);
    h = f * (h + d * s);
    s *= f;
    q *= f * f;
  }
};

}  // namespace cwt
