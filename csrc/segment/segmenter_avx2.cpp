#include "segment/segmenter_kernels_impl.h"

namespace cwt {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels<4, 3, 10>("avx2");
  return kernels;
}

}  // namespace cwt
