// What the driver (chunk_loss_cpu.cpp) asks of the row functions, and who provides them. No torch,
// no inline code: this header is seen by files compiled for different instruction sets.
#pragma once

#include <cstdint>

#include "../contract.h"

namespace cwt {

// Elements that share one exponent; two blocks of floats fit the first-level cache with room.
constexpr int64_t kRowBlock = 1024;

struct RowInput {
  const void* x;   // (V) logits of the row
  int64_t stride;  // in elements
  int64_t vocab, label;
  double softcap;   // 0: none
  bool want_stats;  // fill q and h
  bool want_z_sum;
  bool keep;  // leave exp(z_j - shift) in scratch.e for write()
};

// One thread's workspace; acc is float, or double for float64 logits.
struct RowScratch {
  void* z;  // (V) acc: the row after softcap, rebasing or gathering, where one of them was needed
  void* slope;         // (V) acc: dz_j/dx_j, with softcap only
  void* e;             // (V) acc: exp(z_j - shift), each block in units of 2^exponent of its own
  int32_t* exponents;  // (V / kRowBlock, rounded up)
  int32_t exponent;    // of the shift
};

struct RowOutput {
  double p_scale;         // p_j = p_scale * exp(z_j - shift)
  double p_factor, bias;  // g_j = (p_factor * p_j - bias) * slope_j for j != y
  double g_y;             // g at the label before the slope
  double weight;          // grad_j = weight * g_j
  void* grad;             // (V) logits' type, unit stride, or null
  void* mean;             // (V) acc: += g_j, or null
  bool plain;             // p_factor 1, bias 0, no slope, and nobody wants the sum of squares
  bool stream;            // store past the caches
};

// What the logits of one block but the label's add up to, in units of 2^exponent of its own.
struct BlockSums {
  float top;  // the largest of them
  double s, q, h;
};

// sums() in steps, for several threads at one row of unit stride without softcap: bit by bit what
// sums() finds. The steps of all blocks may run at the same time. Null for float64.
struct BlockKernels {
  // The largest logit of the block that begins there, but the label's.
  float (*top)(const RowInput&, int64_t begin);
  // From the blocks' tops fills scratch.exponents; false: this row has to be taken by sums().
  bool (*choose_exponents)(const RowInput&, const BlockSums*, RowScratch&);
  // Fills s, q and h.
  void (*sums)(const RowInput&, const RowScratch&, int64_t begin, BlockSums&);
  // What sums() returns.
  bool (*join)(const RowInput&, const BlockSums*, RowScratch&, RowSums<double>&);
};

struct RowKernels {
  // False where the row holds NaN or +Inf, or nothing but -Inf.
  bool (*sums)(const RowInput&, RowScratch&, RowSums<double>&);
  // Writes the gradient of [begin, end) from what sums() kept; begin is a multiple of kRowBlock.
  // Returns the sum of g_j^2 unless out.plain.
  double (*write)(const RowInput&, const RowScratch&, const RowOutput&, int64_t begin, int64_t end);
  // out = factor * in for `size` elements; out may be in.
  void (*scale)(const void* in, void* out, int64_t size, double factor);
  BlockKernels blocks;
};

struct RowKernelSet {
  const char* name;
  RowKernels float16, bfloat16, float32;
};

extern const RowKernelSet kRowKernelsBaseline;
#if defined(__x86_64__)
extern const RowKernelSet kRowKernelsAvx2;
extern const RowKernelSet kRowKernelsAvx512;
#endif
#if defined(__aarch64__) || defined(CWT_EMULATE_NEON)
extern const RowKernelSet kRowKernelsNeon;
#endif
extern const RowKernels kRowKernelsFloat64;

}  // namespace cwt
