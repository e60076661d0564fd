// What a launch is made of: threads, blocks, clusters, and what threads wait for.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <vector>

#include "fiber.h"

namespace simt {

using Where = std::source_location;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Op : uint8_t { kBarrier, kClusterBarrier, kWarpBarrier, kShuffle, kBallot, kMatch };
enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kAtArrival, kDone };

// What a thread brings to a barrier or warp collective.
struct Call {
  Op op;
  Where where;
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
};

constexpr size_t kMaxShared = 227 << 10, kMaxStaticShared = 48 << 10;

struct Block;

struct Thread {
  Context context;
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  Block* block = nullptr;
  unsigned rank = 0;
  uint3 index = {};
  State state = State::kReady;
  Call call = {};
  uint64_t result = 0;
  void* fiber = nullptr;  // ThreadSanitizer's
};

struct SharedArray {
  Where where;
  void* data;
};

// A copy to shared memory that nobody has waited for yet.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool shared_pack;  // holds numbers of others too, who may be writing them
};

// What the threads of a block wait at until copies are there (mbarrier).
struct Arrival {
  const void* place;
  int arrivals, left;               // of a round, of them to come
  int64_t announced = 0, sent = 0;  // bytes
  unsigned round = 0;
  std::vector<Copy> copies;
  std::vector<Thread*> waiting;
  char token[2] = {};  // see Block
};

// Blocks that run together. A block that has ended is null.
struct Cluster {
  std::vector<Block*> blocks;
  unsigned alive = 0, waiting = 0;  // threads of all its blocks
  unsigned round = 0;
  char token[2] = {};  // see Block
};

struct Block {
  uint3 index = {};
  std::shared_ptr<Cluster> cluster;
  unsigned rank = 0;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<SharedArray> arrays;
  std::vector<std::unique_ptr<Arrival>> arrivals;
  size_t static_bytes = 0;
  void* dynamic = nullptr;
  unsigned alive = 0, waiting = 0;  // threads not yet exited, of them at a barrier
  // Happens-before edges: one token for even, one for odd rounds, so that a thread that is already
  // at the next barrier lends nothing to one that is still leaving this one.
  unsigned round = 0, warp_round[32] = {};
  char token[2] = {}, warp_token[32][2] = {};
};

}  // namespace simt
