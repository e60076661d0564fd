// Row functions for float64 logits: plain loops, made for gradient checks, not for speed.
#include <cmath>
#include <limits>

#include "kernels.h"

namespace cwt {
namespace {

bool row_sums(const RowInput& in, RowScratch& scratch, RowSums<double>& sums) {
  const double* x = static_cast<const double*>(in.x);
  double *z = static_cast<double*>(scratch.z), *slope = static_cast<double*>(scratch.slope);
  double* e = static_cast<double*>(scratch.e);
  double top = -std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < in.vocab; ++j) {
    z[j] = x[j * in.stride];
    if (!(z[j] < std::numeric_limits<double>::infinity())) return false;
    if (in.softcap > 0) {
      const double t = std::tanh(z[j] / in.softcap), c = std::cosh(z[j] / in.softcap);
      z[j] = in.softcap * t;
      slope[j] = 1 / (c * c);
    }
    top = z[j] > top ? z[j] : top;
  }
  if (top == -std::numeric_limits<double>::infinity()) return false;
  sums = {top, 0, 0, 0, 0, z[in.label], top};
  for (int64_t j = 0; j < in.vocab; ++j) {
    sums.z_sum += z[j];
    if (j == in.label) continue;
    const double d = z[j] - top, value = std::exp(d);
    sums.s += value;
    sums.q += value * value;
    if (value > 0) sums.h += value * d;
    e[j] = value;
  }
  return true;
}

double row_write(const RowInput& in, const RowScratch& scratch, const RowOutput& out, int64_t begin,
                 int64_t end) {
  const double *slope = static_cast<const double*>(scratch.slope),
               *e = static_cast<const double*>(scratch.e);
  double *grad = static_cast<double*>(out.grad), *mean = static_cast<double*>(out.mean);
  double square = 0;
  for (int64_t j = begin; j < end; ++j) {
    double g = j == in.label ? out.g_y : out.p_factor * out.p_scale * e[j] - out.bias;
    if (in.softcap > 0) g *= slope[j];
    square += g * g;
    if (mean) mean[j] += g;
    if (grad) grad[j] = out.weight * g;
  }
  return square;
}

void row_scale(const void* in, void* out, int64_t size, double factor) {
  for (int64_t j = 0; j < size; ++j)
    static_cast<double*>(out)[j] = factor * static_cast<const double*>(in)[j];
}

}  // namespace

const RowKernels kRowKernelsFloat64 = {&row_sums, &row_write, &row_scale, {}};

}  // namespace cwt
