// Runs the segmenter over random problems, one by one and as a batch on four threads, and compares.
// Built with sanitizers by test_segment_sanitizers.py; exits with 1 where the two differ.

#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>

#include "segment/segmenter.h"

namespace {

// A problem and what it points at.
struct Owned {
  cwt::Problem problem;
  std::vector<float> x32;
  std::vector<double> x64, weights;
};

Owned random_problem(std::mt19937& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  std::normal_distribution<double> normal;
  Owned o;
  cwt::Problem& p = o.problem;
  const int64_t n = pick(0, 9) ? pick(1, 60) : pick(90, 200);
  p.kind = static_cast<cwt::Kind>(pick(0, 2));
  p.objective = static_cast<cwt::Objective>(pick(0, 1));
  p.rows = n + (p.kind == cwt::Kind::kCost);
  p.cols = p.kind == cwt::Kind::kEmbeddings ? pick(1, 400) : p.rows;
  const bool single = pick(0, 1);
  for (int64_t i = 0; i < p.rows * p.cols; ++i)
    single ? o.x32.push_back(static_cast<float>(normal(random))) : o.x64.push_back(normal(random));
  if (pick(0, 1))
    p.k = pick(1, n);
  else
    p.penalty = std::abs(normal(random));
  p.path = p.k && pick(0, 3) == 0;
  if (pick(0, 1)) p.min_len = pick(1, 3);
  if (pick(0, 1)) p.max_len = pick(3, n + 3);
  if (pick(0, 1)) {
    for (int64_t i = 0; i < n; ++i) o.weights.push_back(static_cast<double>(pick(0, 9)));
    p.min_weight = static_cast<double>(pick(0, 9));
    p.max_weight = static_cast<double>(pick(9, 9 * n));
  }
  return o;
}

void point(Owned& o) {
  if (!o.x32.empty()) o.problem.x32 = o.x32.data();
  if (o.x32.empty()) o.problem.x64 = o.x64.data();
  if (!o.weights.empty()) o.problem.weights = o.weights.data();
}

}  // namespace

int main() {
  std::mt19937 random(0);
  std::vector<Owned> all(1200);
  for (Owned& o : all) o = random_problem(random);
  std::vector<cwt::Problem> feasible;
  std::vector<std::vector<int64_t>> expected;
  cwt::Workspace workspace;
  for (Owned& o : all) {
    point(o);
    try {
      expected.push_back(cwt::segment(o.problem, workspace).back().boundaries);
      feasible.push_back(o.problem);
    } catch (const std::invalid_argument&) {
    }
  }
  const auto results = cwt::segment_batch(feasible, 4);
  size_t different = 0;
  for (size_t i = 0; i < feasible.size(); ++i)
    different += results[i].back().boundaries != expected[i];
  std::printf("%s: %zu of %zu solved, %zu differ\n", cwt::instruction_set(), feasible.size(),
              all.size(), different);
  cwt::Problem broken = feasible[500];
  broken.k = -1;
  feasible[500] = feasible[900] = broken;
  bool named = false;
  try {
    cwt::segment_batch(feasible, 4);
  } catch (const std::invalid_argument& error) {
    named = std::string(error.what()).rfind("item 500: k must be", 0) == 0;
  }
  return different == 0 && named && feasible.size() > 600 ? 0 : 1;
}
