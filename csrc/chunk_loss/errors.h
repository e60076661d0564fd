// What chunk_loss says when something is wrong, the same for every backend. Users meet these
// messages only where they call the operators directly: cwt_ext/_checks.py looks first and says
// more. std::invalid_argument arrives in Python as ValueError, std::out_of_range as IndexError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "contract.h"

namespace cwt {

using torch::stable::Tensor;

template <typename... parts_t>
std::string text_of(const parts_t&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// A shape as Python writes it, written when a check fails: for every check that holds it would cost
// more than the check.
struct ShapeText {
  const Tensor& x;
};

inline ShapeText shape_of(const Tensor& x) { return {x}; }

inline std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  out << '(';
  for (int64_t d = 0; d < shape.x.dim(); ++d) out << (d ? ", " : "") << shape.x.size(d);
  return out << (shape.x.dim() == 1 ? ",)" : ")");
}

template <typename... parts_t>
void check_value(bool holds, const parts_t&... parts) {
  if (!holds) throw std::invalid_argument(text_of("chunk_loss: ", parts...));
}

// For `validate`: row t has a bad chunk id, or else a bad label.
[[noreturn]] inline void throw_bad_row(int64_t t, int64_t label, int64_t chunk, int64_t vocab,
                                       const ChunkLossOptions& o) {
  if (chunk < -1 || chunk >= o.num_chunks)
    throw std::out_of_range(text_of("chunk_loss: chunk_ids[", t, "] is ", chunk, ", outside [-1, ",
                                    o.num_chunks, ") (label ", label, ", num_chunks ", o.num_chunks,
                                    ")."));
  throw std::out_of_range(text_of("chunk_loss: labels[", t, "] is ", label,
                                  ", which is neither in [0, ", vocab,
                                  ") nor ignore_index = ", o.ignore_index, "."));
}

}  // namespace cwt
