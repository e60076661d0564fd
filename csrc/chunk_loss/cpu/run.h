// Which rows run on which thread, and in which order their results are added up. Where there are
// fewer rows than threads, all threads work on one row after another, block by block.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels.h"
#include "memory.h"
#include "plan.h"

namespace cwt {

// Gradients above this size do not stay in a cache anyway, and are stored past it.
constexpr size_t kStreamBytes = 8'388'608;
constexpr int64_t kSplitVocab = 65'536;  // logits from which a row repays several threads
constexpr int64_t kSplitBlocks = 8;      // blocks of a row that a thread should have
constexpr int64_t kTileRows = 32;        // rows whose gradients are added up in one vector

inline int64_t size_of(ScalarType type) {
  if (type == ScalarType::Double) return 8;
  return type == ScalarType::Float ? 4 : 2;
}

// Grow-only workspace of one thread: a fresh one would cost its page faults at every call. Left
// uninitialised, so that the parts that only softcap, rebasing or gathering use take no memory
// otherwise.
inline RowScratch thread_scratch(int64_t vocab, int64_t acc_bytes) {
  thread_local std::unique_ptr<double[]> values;
  thread_local std::unique_ptr<int32_t[]> exponents;
  thread_local int64_t capacity = 0;
  const int64_t bytes = vocab * acc_bytes, part = (bytes + 7) / 8;
  if (capacity < bytes) {
    capacity = 0;  // in case the next lines throw
    values.reset(new double[3 * part]);
    exponents.reset(new int32_t[bytes / 4 / kRowBlock + 1]());
    capacity = bytes;
  }
  return {values.get(), values.get() + part, values.get() + 2 * part, exponents.get(), 0};
}

struct RowNumbers {
  double loss = 0;
  double stat[kNumRowStats] = {};
  double grad_sq = 0;
  bool finite = true;
};

// One call: what every row needs, and what the rows found.
class Run {
 public:
  Run(const ChunkLossCall& call, const Plan& plan, const MaybeTensor& grad,
      const RowKernels& kernels)
      : layout_(row_layout(call.logits)),
        kernels_(kernels),
        element_(size_of(call.logits.scalar_type())),
        wide_(call.logits.scalar_type() == ScalarType::Double),
        x_(static_cast<const char*>(call.logits.const_data_ptr())),
        labels_(call.rows.labels.const_data_ptr<int64_t>()),
        plan_(plan),
        o_(call.options),
        rows(layout_.rows) {
    if (!grad) return;
    grad_ = static_cast<char*>(grad->mutable_data_ptr());
    grad_layout_ = row_layout(*grad);
    stream_ = grad_ != x_ && size_t(layout_.rows * layout_.vocab * element_) >= kStreamBytes;
  }

  // Evaluates every row that counts or has statistics; then zeroes the gradient of all others,
  // except in `zero`.
  void all_rows(const ZeroRange& zero, std::vector<double>& mean_norm) {
    std::vector<int64_t> order, silent;
    for (int64_t t = 0; t < layout_.rows; ++t) {
      const RowState state = plan_.state[t];
      if (state == RowState::kCounts || state == RowState::kStatsOnly) order.push_back(t);
      if (state != RowState::kCounts) silent.push_back(t);
    }
    if (o_.mean_grad_norm) {
      by_chunk(order, mean_norm);
    } else if (splits_rows(order.size())) {
      RowScratch scratch = thread_scratch(layout_.vocab, 4);
      for (const int64_t t : order) one_row(t, scratch, nullptr, true);
    } else {
      torch::stable::parallel_for(0, order.size(), 1, [&](int64_t begin, int64_t end) {
        RowScratch scratch = thread_scratch(layout_.vocab, wide_ ? 8 : 4);
        for (int64_t i = begin; i < end; ++i) one_row(order[i], scratch, nullptr, false);
      });
    }
    if (!grad_) return;
    // A parallel region costs a wake-up of every thread: only for memory that has to be written.
    std::vector<int64_t> dirty;
    for (const int64_t t : silent)
      if (!zero.covers(grad_row(t), row_bytes())) dirty.push_back(t);
    torch::stable::parallel_for(0, dirty.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::memset(grad_row(dirty[i]), 0, row_bytes());
    });
  }

 private:
  bool plain() const { return o_.label_smoothing == 0 && o_.z_loss == 0 && o_.softcap == 0; }

  // Results are the same, bit by bit: this may ask for the number of threads. The blocks' maxima
  // take an eighth of the time more.
  bool splits_rows(int64_t rows) const {
    return plain() && !wide_ && layout_.vocab_stride == 1 && layout_.vocab >= kSplitVocab &&
           rows * 8 <= torch::stable::get_num_threads() * 7;
  }

  // Calls work(b) for each block b of a row, on all threads.
  template <typename work_t>
  void for_blocks(const work_t& work) const {
    const int64_t blocks = (layout_.vocab + kRowBlock - 1) / kRowBlock;
    torch::stable::parallel_for(0, blocks, kSplitBlocks, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) work(b);
    });
  }

  bool split_sums(const RowInput& in, RowScratch& scratch, RowSums<double>& sums) const {
    const BlockKernels& kernels = kernels_.blocks;
    std::vector<BlockSums> blocks((layout_.vocab + kRowBlock - 1) / kRowBlock);
    for_blocks([&](int64_t b) { blocks[b].top = kernels.top(in, b * kRowBlock); });
    if (!kernels.choose_exponents(in, blocks.data(), scratch))
      return kernels_.sums(in, scratch, sums);
    for_blocks([&](int64_t b) { kernels.sums(in, scratch, b * kRowBlock, blocks[b]); });
    return kernels.join(in, blocks.data(), scratch, sums);
  }

  double write(const RowInput& in, const RowScratch& scratch, const RowOutput& out,
               bool split) const {
    if (!split) return kernels_.write(in, scratch, out, 0, in.vocab);
    for_blocks([&](int64_t b) {
      const int64_t begin = b * kRowBlock;
      kernels_.write(in, scratch, out, begin, std::min(begin + kRowBlock, in.vocab));
    });
    return 0;  // the row is plain: nobody asks
  }

  // split: all threads at once, else this one alone.
  void one_row(int64_t t, RowScratch& scratch, void* mean, bool split) {
    const bool counts = plan_.state[t] == RowState::kCounts, plain = this->plain();
    const bool stats = o_.stats != kStatsOff;
    void* grad = grad_ && counts ? grad_row(t) : nullptr;
    const bool second_pass = grad || mean || (stats && !plain);
    const RowInput in{x_ + layout_.row(t) * element_,
                      layout_.vocab_stride,
                      layout_.vocab,
                      labels_[t],
                      o_.softcap,
                      stats,
                      o_.label_smoothing > 0,
                      second_pass};
    RowSums<double> sums{};
    RowNumbers& out = rows[t];
    out.finite = split ? split_sums(in, scratch, sums) : kernels_.sums(in, scratch, sums);
    RowResult<double> r = finish_row(sums, layout_.vocab, o_.label_smoothing, o_.z_loss);
    if (!out.finite) {
      r.p_scale = r.g_y = r.nll = r.logsumexp = r.entropy = r.grad_norm_sq = r.row_loss = kNan;
      r.correct = false;
    }
    if (second_pass) {
      const RowOutput output{r.p_scale,
                             1 + (o_.z_loss > 0 ? 2 * o_.z_loss * r.logsumexp : 0),
                             o_.label_smoothing / double(layout_.vocab),
                             r.g_y,
                             plan_.weight[t],
                             grad,
                             mean,
                             plain,
                             stream_};
      const double square = write(in, scratch, output, split);
      if (!plain) r.grad_norm_sq = square;
    }
    out.loss = r.row_loss;
    out.stat[kNll] = r.nll;
    out.stat[kLogsumexp] = r.logsumexp;
    out.stat[kCorrect] = out.finite ? double(r.correct) : kNan;
    if (!stats) return;
    out.grad_sq = r.grad_norm_sq;
    out.stat[kGradNorm] = std::sqrt(r.grad_norm_sq);
    out.stat[kEntropy] = r.entropy;
  }

  char* grad_row(int64_t t) const { return grad_ + grad_layout_.row(t) * element_; }
  size_t row_bytes() const { return size_t(layout_.vocab * element_); }

  struct Tile {
    int64_t begin, end, chunk;
    bool last;  // of its chunk
  };

  std::vector<Tile> tiles_of(std::vector<int64_t>& order) const {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return plan_.chunk[a] < plan_.chunk[b]; });
    std::vector<Tile> tiles;
    for (int64_t i = 0, n = order.size(); i < n;) {
      const int64_t chunk = plan_.chunk[order[i]];
      int64_t end = i;
      while (end < n && end < i + kTileRows && plan_.chunk[order[end]] == chunk) ++end;
      tiles.push_back({i, end, chunk, end == n || plan_.chunk[order[end]] != chunk});
      i = end;
    }
    return tiles;
  }

  // Rows of one chunk after another, in tiles of a fixed size; each tile adds up its rows'
  // gradients in one vector, and the vectors of a chunk are added in tile order. Memory: one vector
  // per tile at work, and one more.
  void by_chunk(std::vector<int64_t>& order, std::vector<double>& mean_norm) {
    const std::vector<Tile> tiles = tiles_of(order);
    const int64_t wave = std::max<int64_t>(8, 2 * torch::stable::get_num_threads());
    const int64_t count = tiles.size(), vocab = layout_.vocab, acc = wide_ ? 8 : 4;
    std::vector<double> carry(vocab);
    std::vector<char> vectors(std::min(wave, count) * vocab * acc);
    for (int64_t first = 0; first < count; first += wave) {
      const int64_t size = std::min(wave, count - first);
      torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
        RowScratch scratch = thread_scratch(vocab, acc);
        for (int64_t k = begin; k < end; ++k) {
          char* vector = vectors.data() + k * vocab * acc;
          std::memset(vector, 0, size_t(vocab * acc));
          const Tile& tile = tiles[first + k];
          for (int64_t i = tile.begin; i < tile.end; ++i) one_row(order[i], scratch, vector, false);
        }
      });
      if (wide_)
        add_tiles(&tiles[first], size, reinterpret_cast<double*>(vectors.data()), carry, mean_norm);
      else
        add_tiles(&tiles[first], size, reinterpret_cast<float*>(vectors.data()), carry, mean_norm);
    }
  }

  // Adds the tiles' vectors to carry; where a chunk ends, adds carry's square to mean_norm[chunk]
  // and clears it.
  template <typename acc_t>
  void add_tiles(const Tile* tiles, int64_t size, const acc_t* vectors, std::vector<double>& carry,
                 std::vector<double>& mean_norm) const {
    const int64_t vocab = layout_.vocab, blocks = (vocab + kRowBlock - 1) / kRowBlock;
    std::vector<double> squares(size * blocks);
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kRowBlock, end = std::min(begin + kRowBlock, vocab);
        for (int64_t k = 0; k < size; ++k) {
          for (int64_t j = begin; j < end; ++j) carry[j] += double(vectors[k * vocab + j]);
          if (!tiles[k].last) continue;
          double square = 0;
          for (int64_t j = begin; j < end; ++j) square += carry[j] * carry[j];
          squares[k * blocks + b] = square;
          std::fill(carry.begin() + begin, carry.begin() + end, 0.0);
        }
      }
    });
    for (int64_t k = 0; k < size; ++k)
      for (int64_t b = 0; b < blocks; ++b) mean_norm[tiles[k].chunk] += squares[k * blocks + b];
  }

  const RowLayout layout_;
  const RowKernels& kernels_;
  const int64_t element_;
  const bool wide_;
  const char* x_;
  const int64_t* labels_;
  const Plan& plan_;
  const ChunkLossOptions& o_;
  char* grad_ = nullptr;
  RowLayout grad_layout_{};
  bool stream_ = false;

 public:
  std::vector<RowNumbers> rows;
};

}  // namespace cwt
