// chunk_loss, one row at a time: loss, statistics and gradient.
//
//   e_j = exp(z_j - m), m = max z;  S' = sum e, Q' = sum e^2, H' = sum e (z - m), all over j != y
//   g_j = e_j / S - [j = y]
//
// finish_row (contract.h) makes nll, entropy, ||g||^2 ... of the sums.
//
// Who: a block takes rows from the work list, one after another (persistent grid). A thread takes
// every blockDim-th pack of 16 bytes, four loads in flight, and keeps the five sums relative to its
// own running maximum (online softmax: Milakov and Gimelshein, arXiv 1805.02867); the block then
// reduces the maximum, rescales, and reduces the sums.
//
// Bytes per row, b bytes a logit: b V read for loss and statistics; b V more written with the
// gradient. The second pass finds the row where the first left it: in shared memory as far as that
// goes (a thread reads back what it wrote itself, so no barrier is needed), the rest in the L2
// cache, where the first pass asked for it to stay. Rows that do not count cost no read; where a
// gradient is due their zeros are written. What the bytes allow on an H100 (3.35 TB/s), bfloat16:
//   8192 x 128256   0.63 ms loss and statistics, 1.26 ms with the gradient
//   8192 x  32000   0.16 ms,                     0.31 ms
//
// Finite: m is the largest logit, so every exponent is <= 0, and m is never below the lowest finite
// number, so -inf - m stays -inf. The label's own term never enters S', Q', H' (1 - p_y would
// cancel otherwise). NaN and +Inf make S NaN, which is how such a row is found.
#pragma once

#include "plan.cuh"
#include "row_span.cuh"

namespace cwt {

// kLoss reads once; kGradient reads once and writes; kGeneral knows every option, and reads twice
// if there is a gradient or statistics: ||g||^2 has no closed form then.
enum class RowMode { kLoss, kGradient, kGeneral };

// 64 registers a thread for the modes that decide the speed, 128 for kGeneral.
constexpr int max_row_threads(RowMode mode) { return mode == RowMode::kGeneral ? 512 : 1024; }
constexpr int kBackwardThreads = 512;
constexpr int loads_in_flight(RowMode mode) { return mode == RowMode::kGeneral ? 2 : 4; }

// z of the contract; the derivative is taken where z is known.
template <typename acc_t>
struct Softcap {
  acc_t cap, inverse;  // 0 and 0: none
  __device__ __forceinline__ acc_t operator()(acc_t x) const {
    return cap > 0 ? cap * tanh(x * inverse) : x;
  }
  __device__ __forceinline__ acc_t slope(acc_t z) const {
    return 1 - (z * inverse) * (z * inverse);
  }
};

template <typename acc_t>
__device__ __forceinline__ Softcap<acc_t> softcap_of(const ChunkLossArgs& a) {
  return {static_cast<acc_t>(a.options.softcap), static_cast<acc_t>(a.inverse_softcap)};
}

// Running sums relative to the largest value seen, `max`.
template <typename acc_t>
struct OnlineSums {
  using Exp = Exponent<acc_t>;
  acc_t max, s = 0, q = 0, h = 0, z = 0;  // h in units of Exp::kLog

  __device__ __forceinline__ explicit OnlineSums(acc_t z_y) : max(larger(z_y, Exp::kLowest)) {}

  __device__ __forceinline__ void rescale(acc_t to) {
    const acc_t d = larger(Exp::step(max - to), Exp::kFloor), f = Exp::power(d);
    h = f * (h + d * s);
    s *= f;
    q *= f * f;
    max = to;
  }

  // Adds kCount values; the one at `label`, if any, only to the sum of z.
  template <int kCount, bool kSumZ>
  __device__ __forceinline__ void add(acc_t (&x)[kCount], unsigned label) {
    acc_t top = x[0];
#pragma unroll
    for (int k = 1; k < kCount; ++k) top = larger(top, x[k]);
    if (kSumZ) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) z += x[k];
    }
    if (top > max) rescale(top);
    if (label < kCount) {
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        if (k == static_cast<int>(label)) x[k] = -INFINITY;
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const acc_t t = Exp::step(x[k] - max), e = Exp::power(t);
      s += e;
      q += e * e;
      h += e * larger(t, Exp::kFloor);
    }
  }
};

// The gradient of one row's own loss, from what its first pass found.
template <typename acc_t>
struct GradientOf {
  acc_t shift, p_scale, g_y, p_factor, p_offset;  // g_j = p_factor p_j - p_offset for j != y
  Softcap<acc_t> softcap;
  int label;

  __device__ __forceinline__ void apply(const ChunkLossArgs& a, acc_t logsumexp) {
    if (a.options.z_loss > 0) p_factor = 1 + 2 * static_cast<acc_t>(a.options.z_loss) * logsumexp;
    p_offset = static_cast<acc_t>(a.smoothing_per_logit);
  }

  __device__ __forceinline__ acc_t p(acc_t z) const {
    return p_scale * Exponent<acc_t>::power(Exponent<acc_t>::step(z - shift));
  }
  // g of the contract at position j with logit x.
  __device__ __forceinline__ acc_t general(acc_t x, int j) const {
    const acc_t z = softcap(x);
    const acc_t g = j == label ? g_y : p_factor * p(z) - p_offset;
    return g * softcap.slope(z);
  }
};

// One block's work on one row.
template <typename scalar_t, RowMode kMode>
class RowTask {
  using acc_t = typename AccOf<scalar_t>::type;
  static constexpr bool kGeneral = kMode == RowMode::kGeneral;
  static constexpr int kSize = Pack<scalar_t>::kSize;
  static constexpr int kInFlight = loads_in_flight(kMode);

 public:
  using Reduce = BlockReduce<acc_t, 4>;

  // cache: `cached` packs of every thread
  __device__ RowTask(const ChunkLossArgs& a, Reduce& reduce, Bits128* cache, int cached, int64_t t,
                     const RowSpan<scalar_t>& span)
      : a_(a),
        reduce_(reduce),
        cache_(cache),
        cached_(cached),
        t_(t),
        span_(span),
        label_(static_cast<int>(a.labels[t])),
        softcap_(kGeneral ? softcap_of<acc_t>(a) : Softcap<acc_t>{0, 0}) {}

  __device__ void run() {
    const int64_t chunk = chunk_at(a_, t_);
    const bool stats = a_.options.stats != kStatsOff;
    const RowSums<acc_t> sums = first_pass();
    const double smoothing = kGeneral ? a_.options.label_smoothing : 0;
    const double z_loss = kGeneral ? a_.options.z_loss : 0;
    RowResult<acc_t> r = finish_row(sums, a_.layout.vocab, smoothing, z_loss);
    const acc_t total = sums.s + exp(sums.z_y - sums.shift);
    const bool finite = total > 0 && total < acc_t(INFINITY);
    if (!finite) {
      r.nll = r.logsumexp = r.entropy = r.grad_norm_sq = r.row_loss = NAN;
      r.p_scale = r.g_y = NAN;
    }
    const acc_t weight = static_cast<const acc_t*>(a_.row_weight)[t_];
    GradientOf<acc_t> g{sums.shift, r.p_scale, r.g_y, 1, 0, softcap_, label_};
    if (kGeneral) g.apply(a_, r.logsumexp);
    if (kMode == RowMode::kGradient) second_pass_plain(g, weight);
    if (kGeneral && (stats || span_.grad != nullptr))
      r.grad_norm_sq = second_pass_general(g, weight);
    if (threadIdx.x != 0) return;
    if (!finite && a_.errors != nullptr) count(&a_.errors[kNumErrorCounts + chunk], 1);
    write(r, weight, finite, stats);
    if (a_.options.mean_grad_norm) {
      acc_t* out = static_cast<acc_t*>(a_.row_sums) + t_;  // (3, N)
      out[0] = g.shift;
      out[a_.layout.rows] = g.p_scale;
      out[2 * a_.layout.rows] = g.g_y;
    }
  }

 private:
  __device__ __forceinline__ acc_t logit(int j) const { return widen(span_.x[j * span_.x_stride]); }

  __device__ __forceinline__ RowSums<acc_t> first_pass() {
    const acc_t z_y = softcap_(logit(label_));
    OnlineSums<acc_t> sums(z_y);
    span_.for_single_elements([&](int j) {
      acc_t x[1] = {softcap_(logit(j))};
      sums.template add<1, kGeneral>(x, static_cast<unsigned>(label_ - j));
    });
    const bool again = kMode == RowMode::kGradient || (kGeneral && span_.grad != nullptr);
    span_.template for_packs<kInFlight>(
        [&](int i, int slot) {
          const Bits128* from = span_.x_packs() + i;
          return again && slot >= cached_ ? load_keep(from) : load_stream(from);
        },
        [&](int i, int slot, const Bits128& bits) {
          if (again && slot < cached_) cache_[slot * blockDim.x + threadIdx.x] = bits;
          const Pack<scalar_t> pack = unpack<scalar_t>(bits);
          acc_t x[kSize];
#pragma unroll
          for (int k = 0; k < kSize; ++k) x[k] = softcap_(widen(pack.value[k]));
          sums.template add<kSize, kGeneral>(
              x, static_cast<unsigned>(label_ - span_.head - i * kSize));
        });
    const acc_t max = reduce_.max(sums.max);
    sums.rescale(max);
    acc_t total[4] = {sums.s, sums.q, sums.h, sums.z};
    reduce_.sum(total);
    return {max, total[0], total[1], total[2] * Exponent<acc_t>::kLog, total[3], z_y, max};
  }

  // Calls write(j, x) for every logit of this thread and stores what it returns, if there is where.
  template <typename write_t>
  __device__ __forceinline__ void second_pass(const write_t& write) {
    span_.for_single_elements([&](int j) {
      const acc_t out = write(j, logit(j));
      if (span_.grad != nullptr) narrow(out, span_.grad[j * span_.grad_stride]);
    });
    span_.template for_packs<kInFlight>(
        [&](int i, int slot) {
          return slot < cached_ ? cache_[slot * blockDim.x + threadIdx.x]
                                : load_stream(span_.x_packs() + i);
        },
        [&](int i, int, const Bits128& bits) {
          Pack<scalar_t> pack = unpack<scalar_t>(bits);
#pragma unroll
          for (int k = 0; k < kSize; ++k)
            narrow(write(span_.head + i * kSize + k, widen(pack.value[k])), pack.value[k]);
          if (span_.grad != nullptr) store_stream(span_.grad_packs() + i, bits_of(pack));
        });
  }

  __device__ __forceinline__ void second_pass_plain(GradientOf<acc_t> g, acc_t weight) {
    if (weight == 0) return zero_row(span_);
    const acc_t at_label = weight * g.g_y;
    g.p_scale *= weight;
    second_pass([&](int j, acc_t x) { return j == label_ ? at_label : g.p(x); });
  }

  // Returns ||g||^2.
  __device__ __forceinline__ acc_t second_pass_general(const GradientOf<acc_t>& g, acc_t weight) {
    acc_t square[1] = {0};
    second_pass([&](int j, acc_t x) {
      const acc_t value = g.general(x, j);
      square[0] += value * value;
      return weight == 0 ? acc_t(0) : weight * value;
    });
    reduce_.sum(square);
    return square[0];
  }

  __device__ __forceinline__ void write(const RowResult<acc_t>& r, acc_t weight, bool finite,
                                        bool stats) const {
    acc_t* out = static_cast<acc_t*>(a_.row_stats) + t_;  // (5, N)
    const int64_t rows = a_.layout.rows;
    out[kNll * rows] = r.nll;
    out[kLogsumexp * rows] = r.logsumexp;
    out[kGradNorm * rows] = stats ? sqrt(r.grad_norm_sq) : acc_t(0);
    out[kEntropy * rows] = stats ? r.entropy : acc_t(0);
    out[kCorrect * rows] = finite ? acc_t(r.correct) : acc_t(NAN);
    static_cast<acc_t*>(a_.row_loss)[t_] = weight == 0 ? acc_t(0) : weight * r.row_loss;
  }

  const ChunkLossArgs& a_;
  Reduce& reduce_;
  Bits128* cache_;
  int cached_;
  int64_t t_;
  const RowSpan<scalar_t>& span_;
  int label_;
  Softcap<acc_t> softcap_;
};

template <typename scalar_t, RowMode kMode>
__global__ void __launch_bounds__(max_row_threads(kMode), 1)
    chunk_loss_rows_kernel(const ChunkLossArgs a, const int cached) {
  using Task = RowTask<scalar_t, kMode>;
  using Reduce = typename Task::Reduce;
  using acc_t = typename AccOf<scalar_t>::type;
  CWT_SHARED(acc_t, shared, 2 * Reduce::kBuffer);
  CWT_SHARED_DYNAMIC(Bits128, cache);
  Reduce reduce(shared);
  const int64_t work = a.counters[kWorkRows];
  const int64_t end = kMode != RowMode::kLoss && a.grad != nullptr ? a.layout.rows : work;
  for (int64_t i = blockIdx.x; i < end; i += gridDim.x) {
    const int64_t t = a.rows[i];
    const scalar_t* x = static_cast<const scalar_t*>(a.logits) + a.layout.row(t);
    scalar_t* grad = nullptr;
    if (kMode != RowMode::kLoss && a.grad != nullptr)
      grad = static_cast<scalar_t*>(a.grad) + a.grad_layout.row(t);
    if (i < work) {
      const RowSpan<scalar_t> span(x, a.layout.vocab_stride, grad, 1, a.layout.vocab);
      Task(a, reduce, cache, cached, t, span).run();
    } else {
      zero_row(RowSpan<scalar_t>(grad, 1, grad, 1, a.layout.vocab));
    }
  }
}

// to = from * grad_output, row by row. Rows of weight 0 are not read: they are 0. In place rows
// whose factor is 1 are left alone.
template <typename scalar_t>
__global__ void __launch_bounds__(kBackwardThreads)
    chunk_loss_backward_kernel(const ChunkLossBackwardArgs a) {
  using acc_t = typename AccOf<scalar_t>::type;
  const bool in_place = a.from == a.to;
  for (int64_t t = blockIdx.x; t < a.from_layout.rows; t += gridDim.x) {
    const acc_t factor = static_cast<const acc_t*>(a.grad_output)[a.per_row ? t : 0];
    const bool empty = static_cast<const acc_t*>(a.row_weight)[t] == 0;
    if (in_place && (empty || factor == 1)) continue;
    const RowSpan<scalar_t> span(static_cast<const scalar_t*>(a.from) + a.from_layout.row(t),
                                 a.from_layout.vocab_stride,
                                 static_cast<scalar_t*>(a.to) + a.to_layout.row(t),
                                 a.to_layout.vocab_stride, a.from_layout.vocab);
    if (empty) {
      zero_row(span);
      continue;
    }
    span.for_single_elements([&](int j) {
      narrow(widen(span.x[j * span.x_stride]) * factor, span.grad[j * span.grad_stride]);
    });
    span.template for_packs<4>([&](int i, int) { return load_stream(span.x_packs() + i); },
                               [&](int i, int, const Bits128& bits) {
                                 Pack<scalar_t> pack = unpack<scalar_t>(bits);
#pragma unroll
                                 for (int k = 0; k < Pack<scalar_t>::kSize; ++k)
                                   narrow(widen(pack.value[k]) * factor, pack.value[k]);
                                 store_stream(span.grad_packs() + i, bits_of(pack));
                               });
  }
}

}  // namespace cwt
