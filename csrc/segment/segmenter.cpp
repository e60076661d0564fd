// The dynamic programme: allowed chunks, their costs block by block, the best predecessors.
//
// Ends t are taken in blocks of kBlock. A block first fills its rows of costs c(., t), from a Gram
// matrix that is never held whole, then relaxes them against the layers k of all earlier ends, a
// tile of starts at a time so that the tile stays in the first-level cache. A rationale of up to
// kBlock units is a single block.
//
// Long inputs are tried on products in float32 first, in half the time: every product is raised by
// more than it can be wrong, which makes every cost a lower bound, and segmenter_proof.h proves the
// optimum from these. What it leaves open is solved again in double.

#include "segment/segmenter.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "segment/segmenter_checks.h"
#include "segment/segmenter_kernels.h"
#include "segment/segmenter_proof.h"

namespace cwt {
namespace {

constexpr int64_t kBlock = 48;          // ends per block; a multiple of every panel width
constexpr int64_t kSlab = 256;          // elements of a dot product at a time: panels stay in cache
constexpr int64_t kShortSlab = 128;     // the same where all units fit one block
constexpr int64_t kTileDoubles = 2048;  // of earlier layers per tile, 16 KiB
constexpr int64_t kPruneAbove = 4 * kBlock;  // units from which pruning repays its test
constexpr int64_t kBoundAbove = 128;         // units from which bounds repay their proof
constexpr int64_t kBoundFrom = 64;           // elements of a row, the same
constexpr int64_t kMostBounds = 16'777'216;  // chunks, 64 MiB
constexpr int64_t kMostProvenChunks = 512;   // a proof recurses once a chunk
constexpr int64_t kChains[] = {64, 32};      // products added up in float32, by preference
constexpr double kLoosest = 0.017;           // how far bounds may lie from costs that differ by 1
constexpr double kInf = std::numeric_limits<double>::infinity();

// CWT_SEGMENT_GENERIC in the environment chooses the plain kernels, for tests.
const Kernels& kernels() {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           !std::getenv("CWT_SEGMENT_GENERIC");
  if (avx2) return avx2_kernels();
#endif
  return generic_kernels();
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::atomic<int64_t> tried = 0, proven = 0;

// More than a product of unit vectors can be wrong, as |x| . |y| <= 1: a rounding for each of the
// sum's terms, one for each factor, and one for all that is lost in double.
double product_error(int64_t chain) { return static_cast<double>(chain + 3) / 16'777'216; }

// One problem on its way; fields are views into the workspace.
class Solver {
 public:
  Solver(const Problem& problem, Workspace& workspace)
      : p_(problem), ws_(workspace), kernels_(kernels()), n_(problem.n()), d_(problem.cols) {}

  std::vector<Segmentation> solve() {
    check_arguments(p_);
    find_limits();
    if (bounds_pay())
      if (auto found = solve_by_bounds()) return {*std::move(found)};
    bounds_ = false;
    run();
    return collect();
  }

 private:
  void run() {
    allocate();
    for (int64_t t0 = 0; t0 < n_; t0 += kBlock) {
      const int64_t t1 = std::min(n_, t0 + kBlock);
      if (t0 > 0 && ws_.poll) ws_.poll();
      if (prunes_) drop_starts(t0, t1);
      fill_costs(t0, t1);
      p_.k ? relax_layers(t0, t1) : relax_penalised(t0, t1);
    }
  }

  bool bounds_pay() {
    if (p_.kind != Kind::kEmbeddings || p_.path || n_ <= kBoundAbove || d_ < kBoundFrom)
      return false;
    if (p_.k < 2 || p_.k > kMostProvenChunks) return false;
    chunks_ = 0;
    for (int64_t t = 1; t <= n_; ++t) chunks_ += t - lo_[t];
    return chunks_ <= kMostBounds;
  }

  // Chooses how exact the products are. A segmentation's bound lies up to n errors below its cost,
  // and costs differ the less the more alike all units are.
  bool choose_chain() {
    const double alike = mean_cosine();
    for (const int64_t chain : kChains) {
      chain_ = chain;
      if (static_cast<double>(n_) * product_error(chain) <= kLoosest * (1 - alike)) return true;
    }
    return false;
  }

  // Over 64 units at most.
  double mean_cosine() {
    double *sum = ws_.sum.at_least(d_), total = 0, count = 0;
    std::fill_n(sum, d_, 0.0);
    for (int64_t i = 0; i < n_; i += (n_ + 63) / 64, ++count) add(i, sum);
    for (int64_t j = 0; j < d_; ++j) total += sum[j] * sum[j];
    return (total - count) / (count * (count - 1));
  }

  std::optional<Segmentation> solve_by_bounds() {
    find_scales();
    if (!choose_chain()) return std::nullopt;
    ++tried;
    bounds_ = true;
    run();
    const CostBounds bounds{lo_,       hi_, best_, from_, stride_, ws_.chunk_bounds.at_least(0),
                            chunks_of_};
    Proof proof(
        bounds, [this](int64_t s, int64_t t) { return exact_cost(s, t); }, chunks_ / 16 + 4 * n_);
    auto b = proof.boundaries(n_, p_.k);
    if (!b) return std::nullopt;
    ++proven;
    return costed(*std::move(b));
  }

  // The cost of [s, t), and how far the value that run() finds in double may lie from it.
  ExactCost exact_cost(int64_t s, int64_t t) {
    const double cost = chunk_cost(s, t), length = static_cast<double>(t - s);
    const double ulp = 4.5e-16 * length;
    const double error = ulp * length * (static_cast<double>(d_ + 64) + 2 * length);  // of W(s, t)
    if (p_.objective == Objective::kLs)
      return {cost, error / length + ulp * static_cast<double>(t)};
    return {cost, error / std::sqrt(std::max(cost * cost, error))};
  }

  // The chunks that end at t may start in [lo[t], hi[t]). Both ends only grow with t.
  void find_limits() {
    lo_ = ws_.lo.at_least(n_ + 1);
    hi_ = ws_.hi.at_least(n_ + 1);
    double* weight = ws_.prefix_weight.at_least(n_ + 1);
    weight[0] = 0;
    lo_[0] = hi_[0] = 0;
    int64_t light = 0, heavy = 0;  // first start that is not too heavy; first that is too light
    for (int64_t t = 1; t <= n_; ++t) {
      weight[t] = weight[t - 1] + (p_.weights ? p_.weights[t - 1] : 0);
      while (weight[t] - weight[light] > p_.max_weight) ++light;
      while (heavy < t && weight[t] - weight[heavy] >= p_.min_weight) ++heavy;
      lo_[t] = std::max(light, p_.max_len < t ? t - p_.max_len : 0);
      hi_[t] = std::max<int64_t>(0, std::min(heavy, t - p_.min_len + 1));
    }
  }

  void allocate() {
    const int64_t layers = kernels_.panel;  // of a vector
    stride_ = p_.k ? round_up(p_.k, layers) + layers : 1;
    panel_ = bounds_ ? kernels_.panel32 : kernels_.panel;
    best_ = ws_.best.at_least((n_ + 1) * stride_);
    from_ = ws_.from.at_least((n_ + 1) * stride_);
    std::fill_n(best_, (n_ + 1) * stride_, kInf);
    if (!p_.k) best_[0] = 0;
    prunes_ = !p_.k && p_.kind == Kind::kEmbeddings && n_ > kPruneAbove;
    if (prunes_) alive_ = ws_.alive.at_least(n_ + 1);
    if (prunes_) alive_[0] = 0;
    int64_t reach = 0;  // widest range of columns that one block needs
    for (int64_t t0 = 0; t0 < n_; t0 += kBlock)
      reach = std::max(reach, std::min(n_, t0 + kBlock) - first_column(t0));
    ld_ = round_up(reach, panel_);
    block_ = ws_.block.at_least(kBlock * ld_);
    if (p_.kind == Kind::kCost) return;
    window_ = ws_.window.at_least(n_);
    trace_ = ws_.trace.at_least(n_ + 1);
    std::fill_n(window_, n_, 0.0);
    trace_[0] = 0;
    scale_ = ws_.scale.at_least(n_);
    if (!bounds_) std::fill_n(scale_, n_, 1.0);
    if (p_.kind == Kind::kSimilarity) return;
    slots_ = ld_ / panel_;
    packed_ = 0;
    if (bounds_) return allocate_bounds();
    panels_ = ws_.panels.at_least(ld_ * (n_ <= kBlock ? kShortSlab : d_));
  }

  void allocate_bounds() {
    panels32_ = ws_.panels32.at_least(ld_ * d_);
    ones_ = ws_.ones.at_least(n_);
    std::fill_n(ones_, n_, 1.0);
    ws_.chunk_bounds.at_least(chunks_);
    chunks_of_ = ws_.chunks_of.at_least(n_ + 1);
    int64_t at = 0;
    for (int64_t t = 0; t <= n_; at += t - lo_[t], ++t) chunks_of_[t] = at - lo_[t];
  }

  // Fills scale_ with the very numbers that the blocks of double products find: a product is summed
  // in two halves where its row begins a group of panels.
  void find_scales() {
    const int64_t width = kernels_.panel;
    scale_ = ws_.scale.at_least(n_);
    double* panel = ws_.panels.at_least(width * (kSlab + 2 * width));
    double* out = panel + width * kSlab;
    const double* columns[] = {panel, panel};
    for (int64_t i = 0; i < n_; i += width) {
      const int64_t first = lo_[i / kBlock * kBlock + 1] / width;
      const int64_t count = (i / width - first) % kernels_.gram_panels ? 2 : 1;
      for (int64_t j = 0; j < d_; j += kSlab) {
        const int64_t elements = std::min(kSlab, d_ - j);
        pack(i, j, elements, panel);
        kernels_.gram(panel, columns, count, elements, out, 2 * width, j > 0);
      }
      for (int64_t r = 0; r < std::min(width, n_ - i); ++r)
        scale_[i + r] = unit_scale(out[r * 2 * width + r], i + r);
    }
  }

  // First column of the cost block of ends t0+1 .. : a whole panel.
  int64_t first_column(int64_t t0) const { return lo_[t0 + 1] / panel_ * panel_; }

  void fill_costs(int64_t t0, int64_t t1) {
    column0_ = first_column(t0);
    if (bounds_) return fill_bounds(t0, t1);
    if (p_.kind == Kind::kEmbeddings) fill_gram(t0, t1, panels_);
    if (p_.kind == Kind::kSimilarity)
      p_.x32 ? fill_similarity(p_.x32, t0, t1) : fill_similarity(p_.x64, t0, t1);
    if (p_.kind == Kind::kCost)
      return p_.x32 ? fill_given(p_.x32, t0, t1) : fill_given(p_.x64, t0, t1);
    const auto costs = costs_of();
    for (int64_t t = t0 + 1; t <= t1; ++t) {
      double* g = row(t0, t);
      if (p_.kind == Kind::kEmbeddings) scale_[t - 1] = unit_scale(g[t - 1], t - 1);
      trace_[t] = trace_[t - 1] + g[t - 1] * scale_[t - 1] * scale_[t - 1];
      costs(g, scale_, window_, trace_, lo_[t], t);
    }
  }

  void fill_bounds(int64_t t0, int64_t t1) {
    fill_gram(t0, t1, panels32_);
    for (int64_t t = t0 + 1; t <= t1; ++t) {
      double* g = row(t0, t);
      trace_[t] = trace_[t - 1] + (scale_[t - 1] > 0);
      costs_of()(g, ones_, window_, trace_, lo_[t], t);
      kernels_.narrow(g + lo_[t], t - lo_[t],
                      ws_.chunk_bounds.at_least(0) + chunks_of_[t] + lo_[t]);
    }
  }

  auto costs_of() const -> decltype(Kernels::ls_costs) {
    return p_.objective == Objective::kNorm ? kernels_.norm_costs : kernels_.ls_costs;
  }

  // The cost row of end t, indexed by the start.
  double* row(int64_t t0, int64_t t) const { return block_ + (t - t0 - 1) * ld_ - column0_; }

  // Returns 1 / ||x_i||, or 0 for a zero vector.
  static double unit_scale(double square, int64_t i) {
    if (!(square < kInf)) fail("x must be finite with row norms below 1e154, row ", i, " is not");
    return square > 1e-300 ? 1 / std::sqrt(square) : 0;
  }

  // A slab of d at a time, so that a tile's panels stay in cache. The panels of later blocks are
  // kept in a ring; a single block needs no slab again and packs each into the same place.
  template <typename real_t>
  void fill_gram(int64_t t0, int64_t t1, real_t* panels) {
    const bool single = n_ <= kBlock;
    const int64_t width = panel_, first = column0_ / width, own = t0 / width;
    const int64_t end = round_up(t1, width) / width, slab = single ? kShortSlab : kSlab;
    const real_t* columns[8];
    for (int64_t j = 0; j < d_; j += slab) {
      const int64_t elements = std::min(slab, d_ - j), depth = single ? slab : d_;
      const auto panel = [&](int64_t index) {
        return panels + (index % slots_ * depth + (single ? 0 : j)) * width;
      };
      for (int64_t i = packed_; i < end; ++i) pack(i * width, j, elements, panel(i));
      for (int64_t c = first; c < end; c += kernels_.gram_panels)
        for (int64_t r = std::max(c, own); r < end; ++r) {
          const int64_t count = std::min(kernels_.gram_panels, r + 1 - c);
          for (int64_t g = 0; g < count; ++g) columns[g] = panel(c + g);
          double* out = block_ + (r * width - t0) * ld_ + (c - first) * width;
          multiply(panel(r), columns, count, elements, out, j > 0);
          fetch_ahead();
        }
    }
    packed_ = end;
  }

  void multiply(const double* a, const double* const* b, int64_t panels, int64_t d, double* out,
                bool more) const {
    kernels_.gram(a, b, panels, d, out, ld_, more);
  }
  void multiply(const float* a, const float* const* b, int64_t panels, int64_t d, double* out,
                bool more) const {
    kernels_.gram32(a, b, panels, d, chain_, product_error(chain_), out, ld_, more);
  }

  void fetch_ahead() const {
    for (int i = 0; i < 32 && ws_.ahead < ws_.ahead_end; ++i, ws_.ahead += 64)
      __builtin_prefetch(ws_.ahead);
  }

  void pack(int64_t i, int64_t j, int64_t elements, double* out) const {
    const int64_t rows = std::min(kernels_.panel, n_ - i), at = i * d_ + j;
    p_.x32 ? kernels_.pack32(p_.x32 + at, d_, rows, elements, out)
           : kernels_.pack64(p_.x64 + at, d_, rows, elements, out);
  }
  void pack(int64_t i, int64_t j, int64_t elements, float* out) const {
    const int64_t rows = std::min(kernels_.panel32, n_ - i), at = i * d_ + j;
    p_.x32 ? kernels_.pack_units32(p_.x32 + at, d_, scale_ + i, rows, elements, out)
           : kernels_.pack_units64(p_.x64 + at, d_, scale_ + i, rows, elements, out);
  }

  template <typename scalar_t>
  void fill_similarity(const scalar_t* x, int64_t t0, int64_t t1) {
    for (int64_t s = column0_; s < t1; ++s)
      for (int64_t t = std::max(t0, s); t < t1; ++t) {
        const double value = (static_cast<double>(x[t * n_ + s]) + x[s * n_ + t]) / 2;
        if (!std::isfinite(value))
          fail("x must be finite, rows ", s, " and ", t, " are not where they meet");
        block_[(t - t0) * ld_ + s - column0_] = value;
      }
  }

  template <typename scalar_t>
  void fill_given(const scalar_t* x, int64_t t0, int64_t t1) {
    for (int64_t s = column0_; s < t1; ++s)
      for (int64_t t = std::max(t0, s) + 1; t <= t1; ++t) {
        if (s < lo_[t] || s >= hi_[t]) continue;
        const double value = x[s * (n_ + 1) + t];
        if (!std::isfinite(value))
          fail("the cost of a chunk must be finite, row ", s, " has ", value, " in column ", t);
        row(t0, t)[s] = value;
      }
  }

  // best_[t * stride_ + k - 1] is the least cost of units 0..t in k chunks, from_[t * stride_ + k -
  // 2] where the last of them starts: what a start in layer k-1 offers lands one element further.
  void relax_layers(int64_t t0, int64_t t1) {
    const int64_t tile = std::max<int64_t>(8, kTileDoubles / stride_);
    for (int64_t t = t0 + 1; t <= t1; ++t)
      if (lo_[t] == 0 && hi_[t] > 0) best_[t * stride_] = row(t0, t)[0];
    for (int64_t s = t0 + 1; s > lo_[t0 + 1]; s -= tile)  // nearest first: they tend to be the best
      for (int64_t t = t0 + 1; t <= t1; ++t) relax(t0, t, s - tile, s, true);
    for (int64_t t = t0 + 1; t <= t1; ++t) relax(t0, t, t0 + 1, t, false);
  }

  // Offers the starts in [s0, s1) that are allowed to end t, in the layers from which k can be
  // reached.
  void relax(int64_t t0, int64_t t, int64_t s0, int64_t s1, bool older) {
    s0 = std::max({s0, lo_[t], int64_t{1}});
    s1 = std::min(s1, hi_[t]);
    if (s0 >= s1) return;
    int64_t first = 1, last = p_.k - 1;  // layers of the start
    if (!p_.path) {
      const int64_t longest = std::min(p_.max_len, n_), rest = n_ - t;
      first = std::max({first, (t + longest - 1) / longest - 1, p_.k - 1 - rest / p_.min_len});
      last = std::min({last, t / p_.min_len - 1, p_.k - 1 - (rest + longest - 1) / longest});
      first = (first - 1) / kernels_.panel * kernels_.panel + 1;
    }
    if (first > last) return;
    const int64_t j = first - 1;
    kernels_.relax(best_ + j, stride_, row(t0, t), s0, s1, last - j, older,
                   best_ + t * stride_ + j + 1, from_ + t * stride_ + j);
  }

  void relax_penalised(int64_t t0, int64_t t1) {
    for (int64_t t = t0 + 1; t <= t1; ++t) {
      double cost;
      if (prunes_) alive_[t] = alive_[t - 1];
      const int64_t s =
          hi_[t] > lo_[t] ? kernels_.least(best_, row(t0, t), lo_[t], hi_[t], &cost) : -1;
      if (s < 0) continue;
      best_[t] = cost + p_.penalty;
      from_[t] = static_cast<int32_t>(s);
      if (prunes_) find_alive(row(t0, t), t);
    }
  }

  // PELT. Cutting a chunk never makes norm or ls dearer, so a start s with best[s] + c(s, t) >
  // best[t] loses to t itself for every later end T that a chunk from t may have: from hi[T] > t
  // on, which the minima delay. Only the run of such starts at the front goes, and rounding is
  // given its margin.
  void find_alive(const double* costs, int64_t t) {
    const double limit = best_[t] + 1e-9 * (1 + std::abs(best_[t]));
    int64_t s = std::max(alive_[t], lo_[t]);
    while (s < t && best_[s] + costs[s] > limit) ++s;
    alive_[t] = s;
  }

  void drop_starts(int64_t t0, int64_t t1) {
    for (int64_t t = t0 + 1; t <= t1; ++t)
      if (hi_[t] > 0) lo_[t] = std::max(lo_[t], alive_[std::min(hi_[t] - 1, t0)]);
  }

  std::vector<Segmentation> collect() {
    std::vector<Segmentation> found;
    if (!p_.k && best_[n_] < kInf) found.push_back(trace_back(0));
    for (int64_t k = p_.path ? 1 : p_.k; k && k <= p_.k; ++k)
      if (best_[n_ * stride_ + k - 1] < kInf) found.push_back(trace_back(k));
    const bool answered =
        !found.empty() && (!p_.k || static_cast<int64_t>(found.back().chunk_costs.size()) == p_.k);
    if (!answered) fail("no segmentation satisfies ", describe(p_));
    return found;
  }

  Segmentation trace_back(int64_t k) {
    std::vector<int64_t> b;
    for (int64_t t = n_, layer = k; t > 0; --layer) {
      b.push_back(t);
      t = !k ? from_[t] : layer == 1 ? 0 : from_[t * stride_ + layer - 2];
    }
    b.push_back(0);
    std::reverse(b.begin(), b.end());
    return costed(std::move(b));
  }

  Segmentation costed(std::vector<int64_t> b) {
    Segmentation result;
    for (size_t m = 1; m < b.size(); ++m) result.chunk_costs.push_back(chunk_cost(b[m - 1], b[m]));
    result.boundaries = std::move(b);
    return result;
  }

  // Recomputed from the input, unless the block still holds a value that lost no digits.
  double chunk_cost(int64_t s, int64_t t) {
    if (p_.kind == Kind::kCost) return entry(s, t);
    const bool at_hand = p_.kind == Kind::kEmbeddings && n_ <= kBlock;
    if (at_hand && std::abs(row(0, t)[s]) > 0.01 * static_cast<double>(t - s)) return row(0, t)[s];
    double total = 0, trace = 0;
    if (p_.kind == Kind::kSimilarity) {
      for (int64_t i = s; i < t; ++i) {
        trace += entry(i, i);
        for (int64_t j = s; j < t; ++j) total += entry(i, j);
      }
    } else {
      double* sum = ws_.sum.at_least(d_);
      std::fill_n(sum, d_, 0.0);
      for (int64_t i = s; i < t; ++i) {
        trace += scale_[i] > 0;
        add(i, sum);
      }
      for (int64_t j = 0; j < d_; ++j) total += sum[j] * sum[j];
    }
    if (p_.objective == Objective::kNorm) return -std::sqrt(std::max(total, 0.0));
    return trace - total / static_cast<double>(t - s);
  }

  // sum += unit vector i.
  void add(int64_t i, double* sum) const {
    p_.x32 ? kernels_.add32(p_.x32 + i * d_, scale_[i], d_, sum)
           : kernels_.add64(p_.x64 + i * d_, scale_[i], d_, sum);
  }

  double entry(int64_t i, int64_t j) const {
    return p_.x32 ? p_.x32[i * p_.cols + j] : p_.x64[i * p_.cols + j];
  }

  const Problem& p_;
  Workspace& ws_;
  const Kernels& kernels_;
  const int64_t n_, d_;
  int64_t *lo_ = nullptr, *hi_ = nullptr;
  double *scale_ = nullptr, *panels_ = nullptr, *block_ = nullptr, *window_ = nullptr,
         *trace_ = nullptr;
  double* best_ = nullptr;
  int64_t* alive_ = nullptr;
  int32_t* from_ = nullptr;
  int64_t stride_ = 0;   // elements between the layers of two ends
  int64_t ld_ = 0;       // elements between the cost rows of two ends
  int64_t column0_ = 0;  // start that the first column of the block stands for
  int64_t slots_ = 0;    // panels in the ring
  int64_t packed_ = 0;   // panels packed so far
  int64_t panel_ = 0;    // units in a panel
  bool prunes_ = false;

  bool bounds_ = false;  // products in float32, and bounds in the place of costs
  float* panels32_ = nullptr;
  double* ones_ = nullptr;
  int64_t* chunks_of_ = nullptr;
  int64_t chunks_ = 0;  // in reach
  int64_t chain_ = 0;   // products added up in float32
};

}  // namespace

std::vector<Segmentation> segment(const Problem& problem, Workspace& workspace) {
  return Solver(problem, workspace).solve();
}

ProofCounts proof_counts() { return {tried, proven}; }

const char* instruction_set() { return kernels().name; }

}  // namespace cwt
