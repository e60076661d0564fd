#include "segment/segmenter_kernels_impl.h"

namespace cwt {

const Kernels& generic_kernels() {
  static constexpr Kernels kernels = make_kernels<2, 3, 4>("generic");
  return kernels;
}

}  // namespace cwt
