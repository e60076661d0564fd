// Exact segmentation of n units into chunks: dynamic programming over an additive cost.
//
// A segmentation is 0 = b_0 < ... < b_k = n. Chunk m is the half-open range b_{m-1} .. b_m and
// costs c(b_{m-1}, b_m). With e_i the embeddings at unit length:
//
//   G       = e e^T
//   W(s, t) = sum of G over [s, t) x [s, t) = ||e_s + ... + e_{t-1}||^2
//
//   norm      c(s, t) = -sqrt(max(W(s, t), 0))                    the resultant, to be long
//   ls        c(s, t) = trace G[s:t, s:t] - W(s, t) / (t - s)     kernel least squares
//   cost      c(s, t) is given as a matrix
//
// The segmentation of least total cost is found for a fixed k, for every k up to one (path), or
// with a penalty per chunk. No shortcut that needs the quadrangle inequality is taken: these costs
// violate it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cwt {

enum class Kind { kEmbeddings, kSimilarity, kCost };
enum class Objective { kNorm, kLs };

// Views one problem; every pointer is borrowed. Rows are contiguous and follow each other.
struct Problem {
  const float* x32 = nullptr;   // (rows, cols), or null where x64 is given
  const double* x64 = nullptr;  // (rows, cols), or null where x32 is given
  int64_t rows = 0;
  int64_t cols = 0;
  Kind kind = Kind::kEmbeddings;  // (n, d) embeddings, (n, n) similarity, (n+1, n+1) cost
  Objective objective = Objective::kNorm;
  int64_t k = 0;        // number of chunks; 0 = as many as the penalty makes worth while
  double penalty = 0;   // added for each chunk; used where k is 0
  bool path = false;    // also the optimum for every smaller number of chunks
  int64_t min_len = 1;  // units in a chunk
  int64_t max_len = std::numeric_limits<int64_t>::max();
  const double* weights = nullptr;  // (n,) or null; >= 0
  double min_weight = 0;            // sum of weights in a chunk
  double max_weight = std::numeric_limits<double>::infinity();

  int64_t n() const { return kind == Kind::kCost ? rows - 1 : rows; }
};

struct Segmentation {
  std::vector<int64_t> boundaries;  // (k+1,) from 0 to n
  std::vector<double> chunk_costs;  // (k,) without the penalty
};

// Memory on a cache line that only grows; what was in it is lost then. From 1 MiB on it is in huge
// pages, where the system has them: to touch 4 KiB for the first time costs as much as 400 products
// of rows.
template <typename T>
class Buffer {
 public:
  T* at_least(int64_t size) {
    if (size > size_) {
      data_.reset();
      const bool huge = size * sizeof(T) >= kHugePage / 2;
      const size_t unit = huge ? kHugePage : kLine;
      const size_t bytes = (size * sizeof(T) + unit - 1) / unit * unit;
      void* data = ::operator new(bytes, std::align_val_t{unit});
#if defined(__linux__)
      if (huge) madvise(data, bytes, MADV_HUGEPAGE);  // a wish
#endif
      data_ = {static_cast<T*>(data), Free{huge}};
      size_ = size;
    }
    return data_.get();
  }

 private:
  static constexpr size_t kLine = 64, kHugePage = 2 << 20;
  struct Free {
    bool huge = false;
    void operator()(T* data) const {
      ::operator delete(data, std::align_val_t{huge ? kHugePage : kLine});
    }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// Called now and then from the thread that solves a problem; what it throws ends the work.
using Poll = std::function<void()>;

// Scratch memory that grows to the largest problem seen. One per thread.
struct Workspace {
  Buffer<double> prefix_weight;  // (n+1,)
  Buffer<int64_t> lo, hi;        // (n+1,) a chunk that ends at t may start in [lo[t], hi[t])
  Buffer<int64_t> alive;         // (n+1,) first start that is not pruned once t is a start
  Buffer<double> scale;          // (n,) 1 / ||x_i||, 0 for a zero row
  Buffer<double> panels;         // (slots, d, panel) rows of x, interleaved: a ring
  Buffer<double> block;          // (kBlock, columns in reach) Gram rows, then cost rows in place
  Buffer<double> window;         // (n,) W(s, t) for the current t
  Buffer<double> trace;          // (n+1,) prefix sums of the diagonal of G
  Buffer<double> best;           // (n+1, stride) least cost of units 0..t in k chunks
  Buffer<int32_t> from;          // (n+1, stride) where the last of those chunks starts
  Buffer<double> sum;            // (d,)

  // What bounds take (segmenter_proof.h).
  Buffer<float> panels32;      // (slots, d, panel32) unit vectors, interleaved: a ring
  Buffer<double> ones;         // (n,) the scale of unit vectors
  Buffer<float> chunk_bounds;  // (chunks in reach,) of the chunks that end at 1, at 2, ...
  Buffer<int64_t> chunks_of;   // (n+1,) where those that end at t are, less lo[t]

  Poll poll;  // empty: nobody wants to stop

  // Bytes of the problem to be solved next, fetched into cache while the present one is computed.
  const char* ahead = nullptr;
  const char* ahead_end = nullptr;
};

// Returns the optimum, or with problem.path one for every feasible number of chunks 1..k, in that
// order. Of equal costs the one whose last chunk starts first (then the chunk before it, ...) wins.
// Throws std::invalid_argument for bad input and for constraints that nothing satisfies.
std::vector<Segmentation> segment(const Problem& problem, Workspace& workspace);

// Solves every problem on `threads` threads; what `segment` returns, in the order of the problems.
// If some fail, throws std::invalid_argument for the first of them, its message led by "item
// <index>: ". `poll` is called from the calling thread alone; what it throws comes first.
std::vector<std::vector<Segmentation>> segment_batch(const std::vector<Problem>& problems,
                                                     int64_t threads, const Poll& poll = {});

// How many problems of this process were tried on float32 products, and how many of these proved
// the optimum; the others were solved in double.
struct ProofCounts {
  int64_t tried, proven;
};
ProofCounts proof_counts();

// Returns the instruction set in use: "avx2" or "generic".
const char* instruction_set();

}  // namespace cwt
