// What a problem must fulfil, and how it is described where something is wrong.
#pragma once

#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>

#include "segment/segmenter.h"

namespace cwt {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline std::string describe(const Problem& p) {
  std::ostringstream text;
  text << "n=" << p.n() << ", k=";
  p.k ? text << p.k : text << "None";
  text << ", min_len=" << p.min_len << ", max_len=";
  p.max_len < std::numeric_limits<int64_t>::max() ? text << p.max_len : text << "None";
  if (p.weights) {
    text << ", min_weight=" << p.min_weight << ", max_weight=";
    p.max_weight < std::numeric_limits<double>::infinity() ? text << p.max_weight : text << "None";
  }
  return text.str();
}

inline void check_arguments(const Problem& p) {
  const int64_t n = p.n();
  const bool square = p.kind == Kind::kEmbeddings || p.rows == p.cols;
  if (!square) fail("a square matrix is wanted, got shape (", p.rows, ", ", p.cols, ")");
  if (n < 1) fail("at least one unit is wanted, got n=0");
  if (p.cols < 1) fail("embeddings of at least one element are wanted, got d=0");
  if (n >= std::numeric_limits<int32_t>::max()) fail("n=", n, " units are more than 2^31 - 2");
  if (p.min_len < 1) fail("min_len must be at least 1, got ", p.min_len);
  if (p.max_len < p.min_len) fail("max_len must be at least min_len, got ", describe(p));
  if (!(p.min_weight >= 0)) fail("min_weight must be at least 0, got ", p.min_weight);
  if (!(p.max_weight >= p.min_weight))
    fail("max_weight must be at least min_weight, got ", describe(p));
  if (p.k < 0 || p.k > n) fail("k must be between 1 and n, got ", describe(p));
  if (!(p.penalty >= 0) || std::isinf(p.penalty))
    fail("penalty must be finite and at least 0, got ", p.penalty);
  for (int64_t i = 0; p.weights && i < n; ++i) {
    const double w = p.weights[i];
    if (!(w >= 0) || std::isinf(w))
      fail("weights must be finite and at least 0, got ", w, " for unit ", i);
    if (w > p.max_weight)
      fail("unit ", i, " weighs ", w, ", more than max_weight: no chunk can hold it; got ",
           describe(p));
  }
}

}  // namespace cwt
