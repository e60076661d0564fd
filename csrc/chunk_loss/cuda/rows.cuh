// chunk_loss, one row at a time: loss, statistics and gradient.
//
//   e_j = exp(z_j - m), m = max z;  S' = sum e, Q' = sum e^2, H' = sum e (z - m), all over j != y
//   g_j = e_j / S - [j = y]
//
// finish_row (contract.h) makes nll, entropy, ||g||^2 ... of the sums.
//
// Who: a block takes rows from the work list, one after another (persistent grid). A thread takes
// every blockDim-th pack of 16 bytes, two or four loads in flight, and keeps the five sums relative to its
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

#include "online_sums.cuh"
#include "plan.cuh"
#include "row_span.cuh"

namespace cwt {

// kLoss reads once; kGradient reads once and writes; kGeneral knows every option, and reads twice
// if there is a gradient or statistics: ||g||^2 has no closed form then.
enum class RowMode { kLoss, kGradient, kGeneral };

// 64 registers a thread for the modes that decide the speed, 128 for kGeneral.
constexpr int max_row_threads(RowMode mode) { return mode == RowMode::kGeneral ? 512 : 1024; }
constexpr int kBackwardThreads = 512;
constexpr int loads_in_flight(RowMode mode) {
#if __CUDA_ARCH__ >= 1000
  return mode == RowMode::kLoss ? 4 : 2;  // ptxas needs more registers there
#else
  return mode == RowMode::kGeneral ? 2 : 4;
#endif
}

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

// Returns whether `sum`, S of a row, is a number; if not (NaN, +Inf, or nothing but -Inf in the row),
// makes NaN of the row's results.
template <typename acc_t>
__device__ __forceinline__ bool spoil_unless_finite(RowResult<acc_t>& r, acc_t sum) {
  if (sum > 0 && sum < acc_t(INFINITY)) return true;
  r.nll = r.logsumexp = r.entropy = r.grad_norm_sq = r.row_loss = NAN;
  r.p_scale = r.g_y = NAN;
  return false;
}

// Row t's results, by one thread. p_scale and g_y are relative to the logit `shift`.
template <typename acc_t>
__device__ __forceinline__ void write_row(const ChunkLossArgs& a, int64_t t,
                                          const RowResult<acc_t>& r, acc_t shift, acc_t weight,
                                          bool finite) {
  if (!finite && a.error_counts != nullptr)
    count(&a.error_counts[kNumErrorCounts + chunk_at(a, t)], 1);
  const bool stats = a.options.stats != kStatsOff;
  acc_t* out = static_cast<acc_t*>(a.row_stats) + t;  // (5, N)
  const int64_t rows = a.layout.rows;
  out[kNll * rows] = r.nll;
  out[kLogsumexp * rows] = r.logsumexp;
  out[kGradNorm * rows] = stats ? sqrt(r.grad_norm_sq) : acc_t(0);
  out[kEntropy * rows] = stats ? r.entropy : acc_t(0);
  out[kCorrect * rows] = finite ? acc_t(r.correct) : acc_t(NAN);
  static_cast<acc_t*>(a.row_loss)[t] = weight == 0 ? acc_t(0) : weight * r.row_loss;
  if (!a.options.mean_grad_norm) return;
  acc_t* sums = static_cast<acc_t*>(a.row_sums) + t;  // (3, N)
  sums[0] = shift;
  sums[rows] = r.p_scale;
  sums[2 * rows] = r.g_y;
}

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
    const bool stats = a_.options.stats != kStatsOff;
    const RowSums<acc_t> sums = first_pass();
    const double smoothing = kGeneral ? a_.options.label_smoothing : 0;
    const double z_loss = kGeneral ? a_.options.z_loss : 0;
    RowResult<acc_t> r = finish_row(sums, a_.layout.vocab, smoothing, z_loss);
    const bool finite = spoil_unless_finite(r, sums.s + exp(sums.z_y - sums.shift));
    const acc_t weight = static_cast<const acc_t*>(a_.row_weight)[t_];
    GradientOf<acc_t> g{sums.shift, r.p_scale, r.g_y, 1, 0, softcap_, label_};
    if (kGeneral) g.apply(a_, r.logsumexp);
    if (kGeneral && (stats || span_.grad != nullptr))
      r.grad_norm_sq = second_pass_general(g, weight);
    if (threadIdx.x == 0) write_row(a_, t_, r, sums.shift, weight, finite);
    if (kMode == RowMode::kGradient && span_.grad != nullptr) second_pass_plain(g, weight);
  }

 private:
  __device__ __forceinline__ acc_t logit(int j) const { return widen(span_.x[j * span_.x_stride]); }

  __device__ __forceinline__ RowSums<acc_t> first_pass() {
    const acc_t z_y = softcap_(logit(label_));
    OnlineSums<acc_t> sums(z_y);
    span_.for_single_elements([&](int j) {
      acc_t x[1] = {softcap_(logit(j))};
      add(sums, x, x[0], static_cast<unsigned>(label_ - j));
    });
    const bool again = kMode == RowMode::kGradient || (kGeneral && span_.grad != nullptr);
    const Bits128* const packs = span_.x_packs();
    Bits128* const mine = cache_ + threadIdx.x;
    span_.template for_packs<kInFlight>(
        [&](int i, int slot) {
          return again && slot >= cached_ ? load_keep(packs + i) : load_stream(packs + i);
        },
        [&](int i, int slot, const Bits128& bits) {
          if (again && slot < cached_) mine[slot * blockDim.x] = bits;
          acc_t x[kSize];
          widen_pack<scalar_t>(bits, x);
          LargestOf<scalar_t> top;
          top.add(bits);
          acc_t largest = top.value();
          if (kGeneral) {
#pragma unroll
            for (int k = 0; k < kSize; ++k) x[k] = softcap_(x[k]);
            largest = softcap_(largest);
          }
          add(sums, x, largest, static_cast<unsigned>(label_ - span_.head - i * kSize));
        });
    const acc_t max = reduce_.max(sums.top);
    sums.settle(max);
    acc_t total[4] = {sums.s, sums.q, sums.h, sums.z};
    reduce_.sum(total);
    return {max, total[0], total[1], total[2] * Exponent<acc_t>::kLog, total[3], z_y, max};
  }

  // Adds z_j of a batch; the one at `label`, if any, only to their plain sum.
  template <int kCount>
  __device__ __forceinline__ void add(OnlineSums<acc_t>& sums, acc_t (&x)[kCount], acc_t largest,
                                      unsigned label) {
    if (kGeneral) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) sums.z += x[k];
    }
    if (label < kCount) {
#pragma unroll
      for (int k = 0; k < kCount; ++k)
        if (k == static_cast<int>(label)) x[k] = -INFINITY;
    }
    sums.add(x, largest);
  }

  // Calls write(x, first) for the logits of this thread, a batch from position `first` on at a time,
  // and stores what it leaves in x, if there is where.
  template <typename write_t>
  __device__ __forceinline__ void second_pass(const write_t& write) {
    span_.for_single_elements([&](int j) {
      acc_t x[1] = {logit(j)};
      write(x, j);
      if (span_.grad != nullptr) narrow(x[0], span_.grad[j * span_.grad_stride]);
    });
    const Bits128* const from = span_.x_packs();
    const Bits128* const mine = cache_ + threadIdx.x;
    Bits128* const to = span_.grad_packs();
    span_.template for_packs<kInFlight>(
        [&](int i, int slot) {
          return slot < cached_ ? mine[slot * blockDim.x] : load_stream(from + i);
        },
        [&](int i, int, const Bits128& bits) {
          acc_t x[kSize];
          widen_pack<scalar_t>(bits, x);
          write(x, span_.head + i * kSize);
          if (span_.grad != nullptr) store_stream(to + i, narrow_pack<scalar_t>(x));
        });
  }

  __device__ __forceinline__ void second_pass_plain(const GradientOf<acc_t>& g, acc_t weight) {
    if (weight == 0) return zero_row(span_);
    using Exp = Exponent<acc_t>;
    const Scale<acc_t> t(g.shift);
    const acc_t at_label = weight * g.g_y;
    const acc_t factor = weight * (g.p_scale * Exp::power(-t(g.shift)));
    second_pass([&](auto& x, int first) {
      const unsigned label = static_cast<unsigned>(label_ - first);
      constexpr int kCount = sizeof(x) / sizeof(acc_t);
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = factor * Exp::power(t(x[k]));
      if (label < kCount) {
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          if (k == static_cast<int>(label)) x[k] = at_label;
      }
    });
  }

  // Returns ||g||^2.
  __device__ __forceinline__ acc_t second_pass_general(const GradientOf<acc_t>& g, acc_t weight) {
    acc_t square[1] = {0};
    second_pass([&](auto& x, int first) {
#pragma unroll
      for (int k = 0; k < static_cast<int>(sizeof(x) / sizeof(acc_t)); ++k) {
        const acc_t value = g.general(x[k], first + k);
        square[0] += value * value;
        x[k] = weight == 0 ? acc_t(0) : weight * value;
      }
    });
    reduce_.sum(square);
    return square[0];
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
