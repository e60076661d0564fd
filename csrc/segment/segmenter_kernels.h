// The inner loops of the segmenter, one table per instruction set.
#pragma once

#include <cstdint>

namespace cwt {

struct Kernels {
  const char* name;
  int64_t panel;    // units interleaved in one packed panel
  int64_t panel32;  // the same of floats

  // sum[j] += scale * x[j] over a row (d,).
  void (*add32)(const float* x, double scale, int64_t d, double* sum);
  void (*add64)(const double* x, double scale, int64_t d, double* sum);

  // Interleaves elements [0, d) of `rows` <= panel rows, stride in elements, into out (d, panel);
  // missing rows are 0.
  void (*pack32)(const float* x, int64_t stride, int64_t rows, int64_t d, double* out);
  void (*pack64)(const double* x, int64_t stride, int64_t rows, int64_t d, double* out);

  // out[i * ld + g * panel + j] = row i of panel a . row j of panel b[g], over elements [0, d);
  // with `more` they are added to what is there. ld in elements.
  void (*gram)(const double* a, const double* const* b, int64_t panels, int64_t d, double* out,
               int64_t ld, bool more);
  int64_t gram_panels;  // most panels of b in one call

  // The same with products in float32: pack_units interleaves scale[i] * row i, rounded to float32,
  // into out (d, panel32); gram32 adds `first` to every product. `chain` products at a time are
  // added up in float32, these sums in double.
  void (*pack_units32)(const float* x, int64_t stride, const double* scale, int64_t rows, int64_t d,
                       float* out);
  void (*pack_units64)(const double* x, int64_t stride, const double* scale, int64_t rows,
                       int64_t d, float* out);
  void (*gram32)(const float* a, const float* const* b, int64_t panels, int64_t d, int64_t chain,
                 double first, double* out, int64_t ld, bool more);
  void (*narrow)(const double* from, int64_t size, float* to);  // rounds to nearest

  // With g[s] = x_{t-1} . x_s and the scales that make the x unit vectors: moves W(s, .) in
  // window[s] from t-1 to t for s in [lo, t), then replaces g[s] by the cost of the chunk [s, t).
  // trace: prefix sums of the diagonal of G, up to t.
  void (*norm_costs)(double* g, const double* scale, double* window, const double* trace,
                     int64_t lo, int64_t t);
  void (*ls_costs)(double* g, const double* scale, double* window, const double* trace, int64_t lo,
                   int64_t t);

  // best[j] = min over s in [s0, s1) of best[j] and f[s * ld + j] + c[s] for j in [0, layers);
  // from[j] becomes the first s that gives it. Of a tie with best[j] itself the older start wins:
  // s where `older` says that [s0, s1) lies before what best has seen. Touches up to panel - 1
  // elements past `layers` everywhere.
  void (*relax)(const double* f, int64_t ld, const double* c, int64_t s0, int64_t s1,
                int64_t layers, bool older, double* best, int32_t* from);

  // Returns the first s in [s0, s1) with the least f[s] + c[s], or -1 if none is below +inf; that
  // sum in *best.
  int64_t (*least)(const double* f, const double* c, int64_t s0, int64_t s1, double* best);
};

const Kernels& generic_kernels();
const Kernels& avx2_kernels();

}  // namespace cwt
