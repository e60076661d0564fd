// NEON in portable C, for rows_neon.cpp where its instructions are emulated: SIMDe, and the one that
// SIMDe 0.7 lacks.
#pragma once
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

inline simde_float32x4_t vdivq_f32(simde_float32x4_t a, simde_float32x4_t b) {
  return simde_float32x4_from_private([&] {
    auto x = simde_float32x4_to_private(a);
    const auto y = simde_float32x4_to_private(b);
    for (int k = 0; k < 4; ++k) x.values[k] /= y.values[k];
    return x;
  }());
}
