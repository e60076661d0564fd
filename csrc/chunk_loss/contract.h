// chunk_loss: the contract between the Python call and every backend. Knows no torch: the kernels
// include it.
//
// One row t has logits x_j (0 <= j < V), a label y and a chunk c. Options: eps = label_smoothing,
// zeta = z_loss, and z_j = softcap * tanh(x_j / softcap), or x_j where there is no softcap.
//
//   lse     = log sum_j exp(z_j)
//   p_j     = exp(z_j - lse)
//   nll     = lse - z_y
//   l       = (1 - eps) nll + eps (lse - mean_j z_j) + zeta lse^2
//   g_j     = dl/dx_j = ((1 + 2 zeta lse) p_j - eps / V - (1 - eps) [j = y]) z'_j
//   z'_j    = 1 - (z_j / softcap)^2, or 1 where there is no softcap
//   loss    = sum_t row_weight_t l_t           (reduction none: loss_t = row_weight_t l_t)
//   grad_tj = row_weight_t g_tj
//
// Rows. A row is *valid* when its label is in [0, V) and its chunk in [0, C). It *counts* when in
// addition its chunk is active and its token weight is not 0. A row of chunk -1 or with label
// ignore_index is skipped. Rows of weight 0 that need no statistics are never read.
//
// Row weights. With w_t the token weight and a_c the chunk weight (`active`; bool true = 1),
// row_weight_t of a counting row is w_t chunk_factor_c / denominator:
//
//   reduction    chunk_factor_c    denominator, unless `normalizer` replaces it
//   sum, none    a_c               1
//   token_mean   a_c               sum over counting rows of a_c w_t
//   chunk_mean   a_c / W_c         sum of a_c over the chunks that have a counting row
//
//   W_c = sum over the counting rows of chunk c of w_t
//
// Arguments.
//
//   logits         (N, V) or (B, T, V)   float16, bfloat16, float32 or float64, any strides
//   labels         (N)                   int64, contiguous
//   chunk_ids      (N)                   int32 or int64, contiguous
//   active         (C)                   bool, float32 or float64
//   token_weight   (N)                   float32 or float64
//   normalizer     ()                    float32 or float64
//
// Results; acc is float32, or float64 for float64 logits.
//
//   loss           ()       acc      (N) for reduction none
//   row_stats      (5, N)   acc      rows of RowStat; 0 for rows that are not evaluated; grad_norm
//                                    and entropy are 0 without stats
//   chunk_stats    (7, C)   acc      rows of ChunkStat over the rows that count, or (kStatsAll)
//                                    over every valid row; unweighted; summed in float64 and in
//                                    row order; 0 without stats; kMeanGradNorm 0 unless asked for
//   errors         (2 + C)  int64    bad labels, bad chunk ids, then per chunk the rows read whose
//                                    logits hold NaN or +Inf, or nothing but -Inf
//   row_weight     (N)      acc      as above; 0 for rows that do not count; NaN for a bad row
//   grad           logits' shape and dtype; contiguous, except beside logits[:, :-1], whose strides
//                  it takes (fresh_like in entry.h); (0) without need_grad
//
// Results of chunk_loss_plan, which looks at no logits.
//
//   row_weight     (N)      float64  as above
//   state          (N)      int8     RowState; not 0: the row must be read, or is bad
//
// Errors. With `validate` a bad label (outside [0, V), not ignore_index) or a bad chunk id (outside
// [-1, C)), in whatever row, raises IndexError before anything is written. Without it such a row is
// *bad*: its logits are not read, its row_stats and its loss are NaN (so is the reduced loss), its
// gradient is 0, and `errors` counts it. If its chunk is known and would be evaluated, the chunk's
// statistics count its token and are NaN. A row whose logits hold NaN or +Inf: loss, row_stats and
// gradient of that row are NaN; `errors` counts it.
//
// Determinism: per-row results first, then sums in row order. Nothing depends on the number of
// threads.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CWT_HOST_DEVICE __host__ __device__
#else
#define CWT_HOST_DEVICE
#endif

namespace cwt {

enum Reduction : int64_t { kSum = 0, kTokenMean = 1, kChunkMean = 2, kNone = 3 };
enum StatsMode : int64_t { kStatsOff = 0, kStatsCounted = 1, kStatsAll = 2 };

enum RowStat { kNll, kLogsumexp, kGradNorm, kEntropy, kCorrect, kNumRowStats };
enum ChunkStat {
  kTokens,
  kNllSum,
  kCorrectSum,
  kEntropySum,
  kGradNormSum,
  kGradSqSum,
  kMeanGradNorm,
  kNumChunkStats
};
enum ErrorCount { kBadLabels, kBadChunks, kNumErrorCounts };  // then one count per chunk

struct ChunkLossOptions {
  int64_t num_chunks;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;  // in [0, 1)
  double z_loss;           // >= 0
  double softcap;          // > 0, or 0 for none
  StatsMode stats;
  bool mean_grad_norm;  // needs stats
  bool need_grad;
  bool validate;
};

// Where row t of the logits begins:
//
//   row(t) = (t / inner) * outer_stride + (t % inner) * inner_stride
//
// Strides in elements, 64-bit: N * V passes 2^31. A (N, V) tensor has inner = N, outer_stride = 0.
struct RowLayout {
  int64_t rows, vocab;
  int64_t inner;
  int64_t outer_stride, inner_stride, vocab_stride;

  CWT_HOST_DEVICE int64_t row(int64_t t) const {
    if (t < inner) return t * inner_stride;  // a 64-bit division takes 70 instructions of a GPU
    return (t / inner) * outer_stride + (t % inner) * inner_stride;
  }
};

enum class RowState : int8_t {
  kSkipped,    // nothing of it is read
  kStatsOnly,  // valid, does not count: read for kStatsAll, gradient 0
  kCounts,
  kBadLabel,
  kBadChunk,
};

// The state of a row. chunk_weight is active[chunk] (or 1); it is only looked at for a chunk in
// [0, C).
template <typename chunk_weight_fn>
CWT_HOST_DEVICE inline RowState row_state(int64_t label, int64_t chunk, double token_weight,
                                          int64_t vocab, const ChunkLossOptions& o,
                                          const chunk_weight_fn& chunk_weight) {
  if (chunk < -1 || chunk >= o.num_chunks) return RowState::kBadChunk;
  if (label != o.ignore_index && (label < 0 || label >= vocab)) return RowState::kBadLabel;
  if (chunk == -1 || label == o.ignore_index) return RowState::kSkipped;
  if (token_weight != 0 && chunk_weight(chunk) != 0) return RowState::kCounts;
  return o.stats == kStatsAll ? RowState::kStatsOnly : RowState::kSkipped;
}

// chunk_factor_c of the table above; weight_sum is W_c.
CWT_HOST_DEVICE inline double chunk_factor(Reduction reduction, double chunk_weight,
                                           double weight_sum) {
  return reduction == kChunkMean ? chunk_weight / weight_sum : chunk_weight;
}

// Whether the denominator is a sum over the batch where no normalizer is given; otherwise it is 1.
CWT_HOST_DEVICE inline bool has_own_denominator(Reduction reduction) {
  return reduction == kTokenMean || reduction == kChunkMean;
}

// The weight of a counting row.
CWT_HOST_DEVICE inline double row_weight(double token_weight, double factor, double denominator) {
  return token_weight * factor / denominator;
}

// What one pass over a row leaves behind: sums over j != y relative to a shift (any number near the
// largest z_j; sums that include y lose every digit once 1 - p_y is small).
template <typename acc_t>
struct RowSums {
  acc_t shift;
  acc_t s;      // sum exp(z_j - shift)
  acc_t q;      // sum exp(z_j - shift)^2
  acc_t h;      // sum exp(z_j - shift) (z_j - shift)
  acc_t z_sum;  // sum z_j; read for label smoothing only
  acc_t z_y;    // the label's logit
  acc_t z_max;  // max z_j
};

template <typename acc_t>
struct RowResult {
  acc_t nll, logsumexp, entropy, grad_norm_sq, row_loss;
  acc_t p_scale;  // p_j = p_scale * exp(z_j - shift)
  acc_t q;        // 1 - p_y, exact when it is tiny
  acc_t g_y;      // g at the label, before the softcap factor
  bool correct;   // no other logit is larger; against an equal one the label wins
};

// The numbers of a row from its sums. grad_norm_sq holds for the plain loss only (no smoothing,
// z-loss, softcap); with options the squares of g_j are added up while g_j is formed, because
// closed forms cancel there.
template <typename acc_t>
CWT_HOST_DEVICE inline RowResult<acc_t> finish_row(const RowSums<acc_t>& r, int64_t vocab,
                                                   double label_smoothing, double z_loss) {
  using std::exp;
  using std::log;
  using std::log1p;
  const acc_t eps = acc_t(label_smoothing), zeta = acc_t(z_loss);
  const acc_t d_y = r.z_y - r.shift, e_y = exp(d_y), s = r.s + e_y;
  RowResult<acc_t> out;
  out.p_scale = acc_t(1) / s;
  out.q = r.s * out.p_scale;
  // log S - d_y cancels for a confident row; log1p of an infinite ratio loses an underflowed e_y.
  const bool confident = r.s < e_y;
  out.nll = confident ? log1p(r.s / e_y) : log(s) - d_y;
  out.logsumexp = confident ? r.z_y + out.nll : r.shift + log(s);
  out.entropy = confident ? out.nll + out.q * d_y - r.h * out.p_scale
                          : log(s) - (r.h + (e_y > 0 ? e_y * d_y : acc_t(0))) * out.p_scale;
  out.grad_norm_sq = out.q * out.q + r.q * out.p_scale * out.p_scale;
  const acc_t two_zl = acc_t(2) * zeta * out.logsumexp;
  out.g_y = two_zl * (acc_t(1) - out.q) - out.q;
  if (eps > 0) out.g_y += eps * (acc_t(1) - acc_t(1) / acc_t(vocab));
  out.row_loss = out.nll;
  if (eps > 0) out.row_loss += eps * (r.z_y - r.z_sum / acc_t(vocab));
  if (zeta > 0) out.row_loss += zeta * out.logsumexp * out.logsumexp;
  out.correct = r.z_y >= r.z_max;
  return out;
}

}  // namespace cwt
