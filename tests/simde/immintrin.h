// AVX-512 in portable C, for rows_avx512.cpp where its instructions are emulated: SIMDe, and the few
// that SIMDe 0.7 lacks, lane by lane.
#pragma once
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <array>
#include <cstdint>
#include <cstring>

#define __mmask16 simde__mmask16
#define _MM_FROUND_NO_EXC SIMDE_MM_FROUND_NO_EXC

namespace emulated {

template <class out_t, class lane_out_t, class lane_in_t, class in_t, class function_t>
out_t map_lanes(const in_t& in, const function_t& f) {
  constexpr int kLanes = sizeof(in_t) / sizeof(lane_in_t);
  std::array<lane_in_t, kLanes> from;
  std::array<lane_out_t, kLanes> to;
  static_assert(sizeof to == sizeof(out_t) && sizeof from == sizeof(in_t));
  std::memcpy(&from, &in, sizeof in);
  for (int k = 0; k < kLanes; ++k) to[k] = f(from[k]);
  out_t out;
  std::memcpy(&out, &to, sizeof out);
  return out;
}

template <class half_t, class whole_t>
half_t half_of(const whole_t& x, int which) {
  half_t out;
  std::memcpy(&out, reinterpret_cast<const char*>(&x) + which * sizeof out, sizeof out);
  return out;
}

template <class whole_t, class half_t>
whole_t join(const half_t& low, const half_t& high) {
  whole_t out;
  std::memcpy(&out, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&out) + sizeof low, &high, sizeof high);
  return out;
}

}  // namespace emulated

inline simde__m512i _mm512_cvtepu16_epi32(simde__m256i x) {
  return emulated::map_lanes<simde__m512i, uint32_t, uint16_t>(x, [](uint16_t v) { return v; });
}
inline simde__m256i _mm512_cvtepi32_epi16(simde__m512i x) {
  return emulated::map_lanes<simde__m256i, uint16_t, uint32_t>(
      x, [](uint32_t v) { return static_cast<uint16_t>(v); });
}
inline simde__m512 _mm512_cvtph_ps(simde__m256i x) {
  using emulated::half_of;
  return emulated::join<simde__m512>(simde_mm256_cvtph_ps(half_of<simde__m128i>(x, 0)),
                                     simde_mm256_cvtph_ps(half_of<simde__m128i>(x, 1)));
}
inline simde__m256i _mm512_cvtps_ph(simde__m512 x, int) {
  using emulated::half_of;
  return emulated::join<simde__m256i>(simde_mm256_cvtps_ph(half_of<simde__m256>(x, 0), 0),
                                      simde_mm256_cvtps_ph(half_of<simde__m256>(x, 1), 0));
}
inline void _mm512_stream_ps(float* p, simde__m512 x) { std::memcpy(p, &x, sizeof x); }
