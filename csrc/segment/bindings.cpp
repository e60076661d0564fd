// The pybind11 module `_segment`: numpy arrays in, numpy arrays out, the GIL released between.
// cwt_ext/segment.py turns user input into these arguments; nothing here guesses.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <numeric>
#include <optional>

#include "segment/segmenter.h"

namespace py = pybind11;

namespace cwt {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;

// What all problems of a call share.
struct Options {
  Kind kind;
  Objective objective;
  int64_t min_len;
  std::optional<int64_t> max_len;
  std::optional<double> min_weight, max_weight;
};

Problem make_problem(const py::array& x, int64_t k, double penalty,
                     const std::optional<Doubles>& weights, const Options& options) {
  Problem p;
  if (x.ndim() != 2 || !(x.flags() & py::array::c_style))
    throw py::type_error("x must be a C-contiguous matrix");
  if (py::isinstance<py::array_t<float>>(x))
    p.x32 = static_cast<const float*>(x.data());
  else if (py::isinstance<py::array_t<double>>(x))
    p.x64 = static_cast<const double*>(x.data());
  else
    throw py::type_error("x must be float32 or float64");
  p.rows = x.shape(0);
  p.cols = x.shape(1);
  p.kind = options.kind;
  p.objective = options.objective;
  p.k = k;
  p.penalty = penalty;
  p.min_len = options.min_len;
  if (options.max_len) p.max_len = *options.max_len;
  if (options.min_weight) p.min_weight = *options.min_weight;
  if (options.max_weight) p.max_weight = *options.max_weight;
  if (!weights) return p;
  if (weights->ndim() != 1 || weights->size() != p.n())
    throw py::type_error("weights must be (n,)");
  p.weights = weights->data();
  return p;
}

// Lets Python act on a signal (Ctrl-C), at most twenty times a second; throws what it raises.
class SignalPoll {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Returns (boundaries, chunk costs), each end to end, and of each result (number of chunks, cost).
py::tuple flatten(const std::vector<Segmentation>& results) {
  size_t chunks = 0;
  for (const auto& r : results) chunks += r.chunk_costs.size();
  py::array_t<int64_t> boundaries(chunks + results.size());
  py::array_t<double> costs(chunks);
  py::array_t<int64_t> counts(results.size());
  py::array_t<double> totals(results.size());
  int64_t *b = boundaries.mutable_data(), *k = counts.mutable_data();
  double *c = costs.mutable_data(), *total = totals.mutable_data();
  for (const auto& r : results) {
    b = std::copy(r.boundaries.begin(), r.boundaries.end(), b);
    c = std::copy(r.chunk_costs.begin(), r.chunk_costs.end(), c);
    *k++ = static_cast<int64_t>(r.chunk_costs.size());
    *total++ = std::accumulate(r.chunk_costs.begin(), r.chunk_costs.end(), 0.0);
  }
  return py::make_tuple(boundaries, costs, counts, totals);
}

py::tuple segment_one(const py::array& x, int64_t k, double penalty,
                      const std::optional<Doubles>& weights, const Options& options, bool path) {
  Problem problem = make_problem(x, k, penalty, weights, options);
  problem.path = path;
  std::vector<Segmentation> results;
  {
    const py::gil_scoped_release release;
    Workspace workspace;
    workspace.poll = SignalPoll();
    results = segment(problem, workspace);
  }
  return flatten(results);
}

py::tuple segment_many(const std::vector<py::array>& xs, const std::vector<int64_t>& ks,
                       const std::vector<double>& penalties,
                       const std::optional<std::vector<Doubles>>& weights, const Options& options,
                       int64_t threads, bool path) {
  if (ks.size() != xs.size() || penalties.size() != xs.size() ||
      (weights && weights->size() != xs.size()))
    throw py::type_error("xs, ks, penalties and weights must be equally long");
  std::vector<Problem> problems;
  problems.reserve(xs.size());
  for (size_t i = 0; i < xs.size(); ++i)
    problems.push_back(make_problem(xs[i], ks[i], penalties[i],
                                    weights ? std::optional((*weights)[i]) : std::nullopt,
                                    options));
  for (Problem& problem : problems) problem.path = path;
  std::vector<std::vector<Segmentation>> found;
  {
    const py::gil_scoped_release release;
    found = segment_batch(problems, threads, SignalPoll());
  }
  std::vector<Segmentation> results;
  std::vector<int64_t> of_item;  // how many results each item has
  for (auto& item : found) {
    // Without a path one result is wanted, the last.
    const size_t first = path ? 0 : item.size() - 1;
    of_item.push_back(static_cast<int64_t>(item.size() - first));
    std::move(item.begin() + first, item.end(), std::back_inserter(results));
  }
  return py::make_tuple(flatten(results), of_item);
}

}  // namespace
}  // namespace cwt

PYBIND11_MODULE(_segment, m) {
  using namespace cwt;
  m.doc() = "Exact segmentation over numpy arrays; use it through cwt_ext.segment.";
  py::enum_<Kind>(m, "Kind")
      .value("embeddings", Kind::kEmbeddings)
      .value("similarity", Kind::kSimilarity)
      .value("cost", Kind::kCost);
  py::enum_<Objective>(m, "Objective").value("norm", Objective::kNorm).value("ls", Objective::kLs);
  py::class_<Options>(m, "Options")
      .def(py::init<Kind, Objective, int64_t, std::optional<int64_t>, std::optional<double>,
                    std::optional<double>>(),
           py::arg("kind"), py::arg("objective"), py::arg("min_len"), py::arg("max_len"),
           py::arg("min_weight"), py::arg("max_weight"));
  m.def("segment", &segment_one, py::arg("x"), py::arg("k"), py::arg("penalty"), py::arg("weights"),
        py::arg("options"), py::arg("path"));
  m.def("segment_batch", &segment_many, py::arg("xs"), py::arg("ks"), py::arg("penalties"),
        py::arg("weights"), py::arg("options"), py::arg("threads"), py::arg("path"));
  m.def("instruction_set", &instruction_set);
  m.def("proof_counts", [] {
    const ProofCounts counts = proof_counts();
    return py::make_tuple(counts.tried, counts.proven);
  });
}
