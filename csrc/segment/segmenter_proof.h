// The optimum of a dynamic programme of which only lower bounds are known, proven with a few exact
// costs.
//
// Given: bounds of the chunks' costs, and the programme solved with these instead of the costs, so
// that best(t, k) bounds the cost of units 0..t in k chunks. Sought: the optimum for (n, K), from
// behind. Of the starts that a state (t, k) may have, the one that looks best is evaluated exactly,
// its own state (s, k-1) first; then all those, and only those, whose bound lies below what was
// found. With good bounds that is one start, now and then two.
//
// An exact cost comes with the rounding error that whoever computes it in another order may make.
// Where two starts are closer than that, the state is tied; an optimum that goes through a tied
// state is not proven, nor is one that takes too much work.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <unordered_map>
#include <vector>

namespace cwt {

struct ExactCost {
  double value, error;  // the error is at least 0
};

// Bounds of costs; the arrays are borrowed.
struct CostBounds {
  const int64_t *lo, *hi;  // (n+1,) a chunk that ends at t may start in [lo[t], hi[t])
  const double* best;      // (n+1, stride) of units 0..t in k chunks, at t * stride + k-1
  const int32_t* from;     // (n+1, stride) the start that it comes from, at t * stride + k-2
  int64_t stride;
  const float* chunk;        // of chunks, rounded to nearest
  const int64_t* chunks_of;  // (n+1,) chunk[chunks_of[t] + s] is that of [s, t)
};

class Proof {
 public:
  // cost(s, t) is the exact cost of the chunk [s, t); `work` counts units in evaluated chunks.
  Proof(const CostBounds& bounds, std::function<ExactCost(int64_t, int64_t)> cost, int64_t work)
      : bounds_(bounds), cost_(std::move(cost)), work_(work) {}

  // Returns 0 = b_0 < ... < b_k = n of the optimum, or nothing where it is not proven.
  std::optional<std::vector<int64_t>> boundaries(int64_t n, int64_t k) {
    solve(n, k);
    std::vector<int64_t> b(k + 1);
    for (int64_t t = n; k > 0; --k) {
      if (work_ < 0) return std::nullopt;
      const State& state = known_.at(key(t, k));
      if (state.tied || !(state.cost.value < kNone)) return std::nullopt;
      b[k] = t;
      t = state.from;
    }
    return b;
  }

 private:
  static constexpr double kNone = std::numeric_limits<double>::infinity();

  struct State {
    ExactCost cost{kNone, 0};  // of units 0..t in k chunks
    int64_t from = 0;          // where the last of them starts
    bool tied = false;
  };

  static int64_t key(int64_t t, int64_t k) { return t << 32 | k; }
  // What sums of doubles may lose.
  static double rounding(double sum) { return 1e-12 * (1 + std::abs(sum)); }

  ExactCost evaluate(int64_t s, int64_t t) {
    work_ -= t - s;
    return work_ < 0 ? ExactCost{kNone, 0} : cost_(s, t);
  }

  State solve(int64_t t, int64_t k) {
    if (const auto found = known_.find(key(t, k)); found != known_.end()) return found->second;
    State state;
    if (k > 1) {
      decide(t, k, state);
    } else if (bounds_.lo[t] == 0 && bounds_.hi[t] > 0) {
      state.cost = evaluate(0, t);
    }
    known_.emplace(key(t, k), state);
    return state;
  }

  void decide(int64_t t, int64_t k, State& state) {
    const double* best = bounds_.best + k - 2;
    const float* chunk = bounds_.chunk + bounds_.chunks_of[t];
    if (!(bounds_.best[t * bounds_.stride + k - 1] < kNone)) return;
    const int64_t first = bounds_.from[t * bounds_.stride + k - 2];
    offer(first, t, k, state);
    const double limit = state.cost.value + state.cost.error + rounding(state.cost.value);
    work_ -= (t - bounds_.lo[t]) / 64;
    std::vector<int64_t> others;
    for (int64_t s = std::max<int64_t>(bounds_.lo[t], 1); s < bounds_.hi[t]; ++s) {
      const double cost = chunk[s];
      if (best[s * bounds_.stride] + cost - 1.2e-7 * std::abs(cost) <= limit && s != first)
        others.push_back(s);
    }
    for (size_t i = 0; i < others.size() && work_ >= 0; ++i) offer(others[i], t, k, state);
  }

  void offer(int64_t s, int64_t t, int64_t k, State& state) {
    const ExactCost before = solve(s, k - 1).cost, last = evaluate(s, t);
    const ExactCost sum{before.value + last.value, before.error + last.error};
    if (!(sum.value < kNone)) return;
    const double margin = sum.error + state.cost.error + rounding(sum.value);
    if (std::abs(sum.value - state.cost.value) <= margin) {
      state.tied = true;
      state.cost.error = std::max(state.cost.error, sum.error) + margin;
    } else if (sum.value < state.cost.value) {
      state = {sum, s, false};
    }
  }

  const CostBounds bounds_;
  const std::function<ExactCost(int64_t, int64_t)> cost_;
  int64_t work_;
  std::unordered_map<int64_t, State> known_;
};

}  // namespace cwt
