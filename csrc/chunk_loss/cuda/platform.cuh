// The few things that the kernels need and plain CUDA C++ does not name: shared memory, launches,
// loads and stores that say how long a line should stay in the cache, clusters of blocks, and powers
// of two. With
// CWT_SIMT defined the same kernels are built by a C++ compiler and executed on a CPU
// (tests/simt/simt.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#if defined(CWT_SIMT)
#include "simt.h"
#else
#include <cuda_runtime.h>
#define CWT_SHARED(type, name, count) __shared__ type name[count]
#define CWT_SHARED_DYNAMIC(type, name) extern __shared__ __align__(16) type name[]
#define CWT_LAUNCH(kernel, grid, block, bytes, stream, ...) \
  do {                                                      \
    kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__);    \
    ::cwt::check_cuda(cudaGetLastError(), #kernel);         \
  } while (false)
#define CWT_LAUNCH_CLUSTER(kernel, cluster, grid, block, bytes, stream, ...) \
  ::cwt::launch_cluster(#kernel, kernel, cluster, grid, block, bytes, stream, __VA_ARGS__)
#endif

namespace cwt {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kMaxWarps = 32;
constexpr int kPortableCluster = 8;  // blocks, on every device with clusters
constexpr int kMaxCluster = 16;

// 16 bytes, moved as one transaction.
struct alignas(16) Bits128 {
  uint32_t word[4];
};

template <typename scalar_t>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(scalar_t);
  scalar_t value[kSize];
};

template <typename scalar_t>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float& y) { y = x; }
__device__ __forceinline__ void narrow(double x, double& y) { y = x; }
__device__ __forceinline__ void narrow(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

#if defined(CWT_SIMT)

inline Bits128 load_keep(const Bits128* p) { return *p; }
inline Bits128 load_stream(const Bits128* p) { return *p; }
inline void store_pack(Bits128* p, const Bits128& v) { *p = v; }
inline void store_stream(Bits128* p, const Bits128& v) { *p = v; }
inline float power_of_two(float x) { return std::exp2(x); }
inline void zero_memory(void* p, size_t bytes, cudaStream_t) { std::memset(p, 0, bytes); }

template <typename value_t>
void keep_in_register(value_t*&) {}
inline int formed_again(int x) { return x; }

#else

// Keeps the compiler from forming an address anew at each use.
template <typename value_t>
__device__ __forceinline__ void keep_in_register(value_t*& p) {
  asm volatile("" : "+l"(p));
}

// x, of which the compiler does not know that it is x: what is made of it is made here, and no
// register holds it from an earlier use on.
__device__ __forceinline__ int formed_again(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// For data read once more soon: asks the L2 cache to evict it last. The hint exists for global
// addresses only, hence the cast.
__device__ __forceinline__ Bits128 load_keep(const Bits128* p) {
  Bits128 v;
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(__cvta_generic_to_global(p)), "l"(policy)
               : "memory");
  return v;
}

// For data read for the last time: evicted first.
__device__ __forceinline__ Bits128 load_stream(const Bits128* p) {
  const uint4 v = __ldcs(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}

// Without a hint: beside arriving rows (arrival.cuh) it is faster than with store_stream's.
__device__ __forceinline__ void store_pack(Bits128* p, const Bits128& v) {
  __stwb(reinterpret_cast<uint4*>(p), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

__device__ __forceinline__ void store_stream(Bits128* p, const Bits128& v) {
  __stcs(reinterpret_cast<uint4*>(p), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
}

// One instruction, 2 ulp; results below 2^-126 become 0.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("chunk_loss: CUDA error in ") + what + ": " +
                             cudaGetErrorString(error) + ".");
}

inline void zero_memory(void* p, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(p, 0, bytes, stream), "clearing the workspace");
}

// Raises the kernel's limit of shared memory. Above 48 KiB, static arrays included, it must be asked
// for; 8 KiB is more than they ever take.
inline void allow_shared_memory(const void* kernel, size_t bytes) {
  if (bytes > (40u << 10))
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               "setting the shared memory of a kernel");
}

// How many blocks of this shape fit one multiprocessor; raises the kernel's limit of shared memory.
template <typename kernel_t>
int resident_blocks(kernel_t* kernel, int threads, size_t shared_bytes) {
  int blocks = 0;
  const void* address = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(address, shared_bytes);
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, address, threads, shared_bytes),
             "asking for the occupancy of a kernel");
  return blocks > 0 ? blocks : 1;
}

// Whether this code of the kernel was compiled for clusters. A device that has them may run what its
// driver made of older code.
template <typename kernel_t>
bool has_clusters(kernel_t* kernel) {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)),
             "asking for the version of a kernel");
  return attributes.ptxVersion >= 90;
}

// The configuration of a launch in clusters; `attribute` must live as long as it is used.
inline cudaLaunchConfig_t cluster_config(cudaLaunchAttribute* attribute, int cluster, dim3 grid,
                                         dim3 block, size_t bytes, cudaStream_t stream) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return config;
}

// How many clusters of this shape are resident on the device at once; 0: it cannot hold one.
template <typename kernel_t>
int resident_clusters(kernel_t* kernel, int cluster, int threads, size_t shared_bytes) {
  const void* address = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(address, shared_bytes);
  const bool large = cluster > kPortableCluster;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = cluster_config(&attribute, cluster, dim3(unsigned(cluster)),
                                                   dim3(unsigned(threads)), shared_bytes, nullptr);
  int clusters = 0;
  cudaError_t error = cudaSuccess;
  if (large)
    error = cudaFuncSetAttribute(address, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, address, &config);
  if (large && error != cudaSuccess) {
    cudaGetLastError();  // asked and answered: it must not meet the next one who looks
    return 0;
  }
  check_cuda(error, "asking for the occupancy of a kernel");
  return clusters;
}

template <typename kernel_t, typename... args_t>
void launch_cluster(const char* name, kernel_t* kernel, int cluster, dim3 grid, dim3 block,
                    size_t bytes, cudaStream_t stream, const args_t&... args) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = cluster_config(&attribute, cluster, grid, block, bytes, stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), name);
}

#endif

// exp(x - shift) as base^t with t = step(x - shift): base 2 and one instruction for float, e for
// double. kLog is the natural logarithm of the base.
template <typename acc_t>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float kLog = 0.693147180559945f;
  static constexpr float kFloor = -200.f;  // base^kFloor is 0; -inf times 0 would not be
  static constexpr float kLowest = -3.402823466e+38f;
  static __device__ __forceinline__ float step(float d) { return d * 1.44269504088896f; }
  static __device__ __forceinline__ float unit_near(float x) {
    const float size = fabsf(x);
    return size < 0x1p28f ? 1.44269504088896f : size > 1e38f ? 0.25f : 1.f;
  }
  static __device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
  static __device__ __forceinline__ float power(float t) { return power_of_two(t); }
};
template <>
struct Exponent<double> {
  static constexpr double kLog = 1;
  static constexpr double kFloor = -800;
  static constexpr double kLowest = -1.7976931348623157e+308;
  static __device__ __forceinline__ double step(double d) { return d; }
  static __device__ __forceinline__ double unit_near(double x) {
    return fabs(x) > 1e307 ? 0.25 : 1;
  }
  static __device__ __forceinline__ double fused(double a, double b, double c) {
    return fma(a, b, c);
  }
  static __device__ __forceinline__ double power(double t) { return exp(t); }
};

// The largest of two numbers, ignoring NaN.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// The same of two pairs of 16-bit numbers.
template <typename scalar_t>
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
#if defined(CWT_SIMT)
  struct {
    scalar_t half[2];
  } x, y;
  std::memcpy(&x, &a, 4), std::memcpy(&y, &b, 4);
  for (int k = 0; k < 2; ++k) narrow(larger(widen(x.half[k]), widen(y.half[k])), x.half[k]);
  std::memcpy(&a, &x, 4);
  return a;
#else
  using pair_t = std::conditional_t<std::is_same<scalar_t, __half>::value, __half2, __nv_bfloat162>;
  pair_t x, y;
  memcpy(&x, &a, 4);
  memcpy(&y, &b, 4);
  x = __hmax2(x, y);
  memcpy(&a, &x, 4);
  return a;
#endif
}

}  // namespace cwt
