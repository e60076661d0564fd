// Who of a launch runs next, and the rules of barriers, warp collectives and asynchronous copies.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "parts.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace simt {

inline bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0 &&
         std::strcmp(a.function_name(), b.function_name()) == 0;
}

inline std::string text(const Where& w) {
  const std::string file = w.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(w.line());
}

class Machine {
 public:
  uint64_t seed = 0;      // 0: one block after another, threads by index
  unsigned resident = 3;  // clusters alive at once when the seed is not 0
  uint64_t switches = 0;
  std::vector<std::pair<std::string, unsigned>> launches;  // kernel as written, blocks

  void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body,
              unsigned cluster = 1) {
    const Quiet quiet;
    if (cluster < 1 || cluster > 16 || grid.x % cluster)
      throw Error("simt: clusters have 1 to 16 blocks, and a grid is whole clusters");
    if (block.x == 0 || block.x > 1024 || block.x % 32 || block.y != 1 || block.z != 1)
      throw Error("simt: blocks must be (n, 1, 1) with n a multiple of 32 up to 1024");
    if (grid.x == 0 || grid.y != 1 || grid.z != 1) throw Error("simt: grids must be (n, 1, 1)");
    if (shared_bytes > kMaxShared) throw Error("simt: more dynamic shared memory than a block has");
    random_.seed(seed);
    body_ = std::move(body), shared_bytes_ = shared_bytes;
    gridDim = grid, blockDim = block;
    error_.clear();
    ready_.clear();
    std::vector<unsigned> order(grid.x / cluster);
    for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
    if (seed) std::shuffle(order.begin(), order.end(), random_);
    SIMT_TSAN(main_fiber_ = __tsan_get_current_fiber());
    size_t next = 0;
    while (error_.empty() && (next < order.size() || !blocks_.empty())) {
      while (next < order.size() &&
             blocks_.size() + cluster <= (seed ? resident * cluster : cluster))
        start(order[next++], cluster);
      if (ready_.empty())
        error_ = "deadlock" + describe();
      else
        resume(pick());
    }
    for (auto& b : blocks_) dispose(*b);
    blocks_.clear();
    SIMT_TSAN(destroy_fibers(); __tsan_acquire(&done_));
    if (!error_.empty()) throw Error("simt: " + error_);
  }

  uint64_t collective(const Call& call) {
    const Quiet quiet;
    Thread& me = *current_;
    Block& block = *me.block;
    const unsigned warp = me.rank / 32;
    me.call = call;
    char* token = nullptr;
    if (call.op == Op::kBarrier) token = &block.token[block.round % 2];
    if (call.op == Op::kClusterBarrier) token = &block.cluster->token[block.cluster->round % 2];
    if (call.op == Op::kWarpBarrier) token = &block.warp_token[warp][block.warp_round[warp] % 2];
    SIMT_TSAN(if (token) __tsan_release(token));
    if (call.op == Op::kBarrier) {
      me.state = State::kAtBarrier;
      ++block.waiting;
      finish_barrier(block);
    } else if (call.op == Op::kClusterBarrier) {
      me.state = State::kAtBarrier;
      ++block.cluster->waiting;
      finish_cluster_barrier(*block.cluster);
    } else {
      if (!(call.mask >> (me.rank % 32) & 1)) fail("the calling lane is not in its own mask");
      me.state = State::kAtWarp;
      finish_warp(me);
    }
    if (me.state != State::kReady || seed) suspend();
    SIMT_TSAN(if (token) __tsan_acquire(token));
    (void)token;
    return me.result;
  }

  // A place where another thread may run: atomics and fences.
  void yield() {
    const Quiet quiet;
    if (!seed || random_() % 4) return;
    ready_.push_back(current_);
    suspend();
  }

  void arrival_init(const void* place, int arrivals) {
    const Quiet quiet;
    current_->block->arrivals.push_back(std::make_unique<Arrival>(place, arrivals, arrivals));
  }
  void arrive(const void* place, int64_t bytes) {
    const Quiet quiet;
    Arrival& a = arrival_at(place);
    SIMT_TSAN(__tsan_release(&a.token[a.round % 2]));
    a.announced += bytes;
    if (a.left-- == 0) fail("more arrivals than the barrier was made for");
    end_round(a);
  }
  // What is in the way of a copy is gone at once; what it brings comes when somebody waits.
  void start_copy(const Copy& copy, const void* place) {
    const Quiet quiet;
    if ((reinterpret_cast<uintptr_t>(copy.to) | reinterpret_cast<uintptr_t>(copy.from)) %
        std::min<size_t>(copy.bytes, 16))
      fail("an asynchronous copy from or to a misaligned address");
    std::memset(copy.to, 0xff, copy.bytes);
    Arrival& a = arrival_at(place);
    a.copies.push_back(copy);
    if (copy.bytes < 16) return;
    a.sent += copy.bytes;
    end_round(a);
  }
  template <typename value_t>
  void tell_rank(value_t* to, int rank, const value_t& v, void* place) {
    value_t* there = static_cast<value_t*>(at_rank(to, rank));
    *there = v;
    const Quiet quiet;
    Arrival& a = arrival_at(at_rank(place, rank), *current_->block->cluster->blocks[rank]);
    SIMT_TSAN(__tsan_release(&a.token[a.round % 2]));
    a.sent += sizeof v;
    end_round(a);
  }
  void wait_for(const void* place, int parity) {
    Arrival* a = nullptr;
    char* token = nullptr;
    {
      const Quiet quiet;
      a = &arrival_at(place);
      token = &a->token[parity & 1];
      if (int(a->round & 1) == parity) {
        current_->state = State::kAtArrival;
        a->waiting.push_back(current_);
        suspend();
      } else if (seed) {
        ready_.push_back(current_);
        suspend();
      }
      SIMT_TSAN(__tsan_acquire(token));
    }
    std::vector<Copy> copies;
    {
      const Quiet quiet;
      copies.swap(a->copies);
    }
    for (const Copy& c : copies)
      c.shared_pack ? copy_unseen(c) : (void)std::memcpy(c.to, c.from, c.bytes);
    const Quiet quiet;
    SIMT_TSAN(__tsan_release(token));
    (void)token;
  }

  int cluster_rank() const {
    const Quiet quiet;
    return int(current_->block->rank);
  }
  // The place in the dynamic shared memory of another block of the cluster.
  void* at_rank(void* mine, int rank) {
    const Quiet quiet;
    Block& block = *current_->block;
    Cluster& cluster = *block.cluster;
    const size_t offset = static_cast<char*>(mine) - static_cast<char*>(block.dynamic);
    if (offset >= shared_bytes_) fail("only dynamic shared memory is mapped in a cluster");
    if (rank < 0 || size_t(rank) >= cluster.blocks.size())
      fail("there is no block " + std::to_string(rank) + " in the cluster");
    if (cluster.round == 0) fail("shared memory of a block that may not have started");
    if (!cluster.blocks[rank]) fail("shared memory of a block that has exited");
    return static_cast<char*>(cluster.blocks[rank]->dynamic) + offset;
  }

  void* static_shared(const Where& where, size_t bytes) {
    const Quiet quiet;
    Block& block = *current_->block;
    for (const SharedArray& a : block.arrays)
      if (same_place(a.where, where)) return a.data;
    block.static_bytes += bytes;
    if (block.static_bytes > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
    if (block.static_bytes + shared_bytes_ > kMaxShared)
      fail("more shared memory than a block has");
    block.arrays.push_back({where, nan_filled(bytes)});
    return block.arrays.back().data;
  }
  void* dynamic_shared() const {
    const Quiet quiet;
    return current_->block->dynamic;
  }
  unsigned lane() const {
    const Quiet quiet;
    return current_->rank % 32;
  }

 private:
  static void* nan_filled(size_t bytes) {
    // Exactly as long as asked for, so that AddressSanitizer sees the first byte past the end.
    void* p = nullptr;
    if (posix_memalign(&p, 16, bytes)) throw std::bad_alloc();
    std::memset(p, 0xff, bytes);
    return p;
  }

  Arrival& arrival_at(const void* place) { return arrival_at(place, *current_->block); }
  Arrival& arrival_at(const void* place, Block& block) {
    for (auto& a : block.arrivals)
      if (a->place == place) return *a;
    fail("no barrier for copies has been made here");
  }
  void end_round(Arrival& a) {
    if (a.sent > a.announced && a.left == 0) fail("more bytes are copied than were announced");
    if (a.left > 0 || a.sent < a.announced) return;
    ++a.round;
    a.left = a.arrivals, a.announced = a.sent = 0;
    for (Thread* t : a.waiting) release(*t);
    a.waiting.clear();
  }
  // No sanitizer looks: other threads may write what is around the numbers that are wanted.
  __attribute__((no_sanitize("address", "thread"), noinline)) static void copy_unseen(
      const Copy& c) {
    for (size_t i = 0; i < c.bytes; ++i)
      static_cast<volatile char*>(c.to)[i] = static_cast<const volatile char*>(c.from)[i];
  }

  void start(unsigned index, unsigned size) {
    auto cluster = std::make_shared<Cluster>();
    cluster->alive = size * blockDim.x;
    for (unsigned rank = 0; rank < size; ++rank) start_block(index * size + rank, cluster);
  }

  void start_block(unsigned index, std::shared_ptr<Cluster> cluster) {
    blocks_.push_back(std::make_unique<Block>());
    Block& block = *blocks_.back();
    block.index = {index, 0, 0};
    block.rank = unsigned(cluster->blocks.size());
    cluster->blocks.push_back(&block);
    block.cluster = std::move(cluster);
    block.alive = blockDim.x;
    if (shared_bytes_) block.dynamic = nan_filled(shared_bytes_);
    block.threads.resize(blockDim.x);
    for (unsigned i = blockDim.x; i-- > 0;) {
      if (spare_.empty()) spare_.push_back(std::make_unique<Thread>());
      block.threads[i] = std::move(spare_.back());
      spare_.pop_back();
      Thread& t = *block.threads[i];
      t.block = &block, t.rank = i, t.index = {i, 0, 0}, t.state = State::kReady;
      // A thread that has exited leaves its frames' red zones behind.
      SIMT_ASAN(__asan_unpoison_memory_region(t.stack.get(), kStackBytes));
      t.context.prepare(t.stack.get(), &entry);
      SIMT_TSAN(t.fiber = __tsan_create_fiber(0));
      ready_.push_back(&t);
    }
  }

  void dispose(Block& block) {
    for (SharedArray& a : block.arrays) std::free(a.data);
    std::free(block.dynamic);
    for (auto& t : block.threads) {
      SIMT_TSAN(fibers_.push_back(t->fiber));
      // ThreadSanitizer remembers who touched a stack: it gets no second owner.
      SIMT_TSAN(t->stack = std::make_unique_for_overwrite<char[]>(kStackBytes));
      spare_.push_back(std::move(t));
    }
  }

  Thread* pick() {
    if (seed) std::swap(ready_[random_() % ready_.size()], ready_.back());
    Thread* t = ready_.back();
    ready_.pop_back();
    return t;
  }

  void finish_barrier(Block& block) {
    if (block.waiting == 0 || block.waiting < block.alive) return;
    if (block.alive != block.threads.size())
      fail("__syncthreads after some threads of the block have exited");
    for (auto& t : block.threads)
      if (!same_place(t->call.where, block.threads[0]->call.where))
        fail("divergent __syncthreads: threads of a block wait at different places");
    block.waiting = 0;
    ++block.round;
    for (unsigned i = block.threads.size(); i-- > 0;) release(*block.threads[i]);
  }

  void finish_cluster_barrier(Cluster& cluster) {
    if (cluster.waiting == 0 || cluster.waiting < cluster.alive) return;
    if (cluster.alive != cluster.blocks.size() * blockDim.x)
      fail("a barrier of a cluster after some of its threads have exited");
    const Where& first = cluster.blocks[0]->threads[0]->call.where;
    for (Block* block : cluster.blocks)
      for (auto& t : block->threads)
        if (t->call.op != Op::kClusterBarrier || !same_place(t->call.where, first))
          fail("threads of a cluster wait at different barriers");
    cluster.waiting = 0;
    ++cluster.round;
    for (Block* block : cluster.blocks)
      for (unsigned i = block->threads.size(); i-- > 0;) release(*block->threads[i]);
  }

  void finish_warp(Thread& me) {
    Thread* lane[32] = {};
    const unsigned base = me.rank / 32 * 32;
    for (unsigned l = 0; l < 32; ++l) {
      if (!(me.call.mask >> l & 1)) continue;
      Thread& t = *me.block->threads[base + l];
      if (t.state == State::kDone)
        fail("a warp collective names lane " + std::to_string(l) + ", which has exited");
      if (t.state != State::kAtWarp) return;
      if (t.call.mask != me.call.mask || t.call.op != me.call.op ||
          !same_place(t.call.where, me.call.where))
        fail("lanes of one warp are at warp collectives of different mask, operation or place");
      lane[l] = &t;
    }
    for (Thread* t : lane)
      if (t) t->result = result_of(*t, lane);
    if (me.call.op == Op::kWarpBarrier) ++me.block->warp_round[base / 32];
    for (Thread* t : lane)
      if (t) release(*t);
  }

  uint64_t result_of(const Thread& t, Thread* const (&lane)[32]) {
    uint64_t result = 0;
    switch (t.call.op) {
      case Op::kShuffle:
        if (!lane[t.call.source])
          fail("a shuffle reads lane " + std::to_string(t.call.source) + ", which its mask omits");
        return lane[t.call.source]->call.value;
      case Op::kBallot:
        for (unsigned l = 0; l < 32; ++l)
          if (lane[l] && lane[l]->call.value) result |= uint64_t(1) << l;
        return result;
      case Op::kMatch:
        for (unsigned l = 0; l < 32; ++l)
          if (lane[l] && lane[l]->call.value == t.call.value) result |= uint64_t(1) << l;
        return result;
      default:
        return 0;
    }
  }

  void release(Thread& t) {
    t.state = State::kReady;
    if (&t != current_ || seed) ready_.push_back(&t);
  }

  [[noreturn]] void fail(const std::string& what) {
    error_ = what + describe();
    if (!current_) throw Error("simt: " + error_);
    suspend();
    std::abort();  // nobody resumes a failed launch
  }

  std::string describe() const {
    std::string out, previous;
    for (const auto& block : blocks_)
      for (const auto& t : block->threads) {
        std::string now = t->state == State::kDone        ? "has exited"
                          : t->state == State::kReady     ? "runs"
                          : t->state == State::kAtBarrier ? "waits at " + text(t->call.where)
                          : t->state == State::kAtArrival
                              ? "waits for what is to arrive"
                              : "is in a collective at " + text(t->call.where);
        if (now == previous || out.size() > 1000) continue;
        out += "\n  block " + std::to_string(block->index.x) + " thread " +
               std::to_string(t->rank) + ".. " + now;
        previous = now;
      }
    return out;
  }

  static void entry();

  void run_thread() {
    SIMT_ASAN(__sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_));
    body_();
    exit_thread();
  }

  void exit_thread() {
    {
      const Quiet quiet;
      current_->state = State::kDone;
      Block& block = *current_->block;
      SIMT_TSAN(__tsan_release(&done_));
      Cluster& cluster = *block.cluster;
      --cluster.alive;
      if (--block.alive == 0) {
        finished_ = &block;
        cluster.blocks[block.rank] = nullptr;
      } else {
        finish_barrier(block);
      }
      finish_cluster_barrier(cluster);
    }
    SIMT_ASAN(__sanitizer_start_switch_fiber(nullptr, main_bottom_, main_size_));
    SIMT_TSAN(__tsan_switch_to_fiber(main_fiber_, __tsan_switch_to_fiber_no_sync));
    current_->context.leave_for(main_);
  }

  void suspend() {
    Thread* t = current_;
    SIMT_ASAN(void* fake; __sanitizer_start_switch_fiber(&fake, main_bottom_, main_size_));
    SIMT_TSAN(__tsan_switch_to_fiber(main_fiber_, __tsan_switch_to_fiber_no_sync));
    t->context.leave_for(main_);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr));
  }

  void resume(Thread* t) {
    current_ = t;
    threadIdx = t->index;
    blockIdx = t->block->index;
    ++switches;
    SIMT_ASAN(void* fake; __sanitizer_start_switch_fiber(&fake, t->stack.get(), kStackBytes));
    SIMT_TSAN(__tsan_switch_to_fiber(t->fiber, __tsan_switch_to_fiber_no_sync));
    main_.leave_for(t->context);
    SIMT_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr));
    current_ = nullptr;
    if (!finished_) return;
    dispose(*finished_);
    std::erase_if(blocks_, [&](const auto& b) { return b.get() == finished_; });
    finished_ = nullptr;
    SIMT_TSAN(if (fibers_.size() > 4096) destroy_fibers());
  }

#if defined(__SANITIZE_THREAD__)
  // Not at once: ThreadSanitizer uses an id again, and a race with its former owner would be lost.
  void destroy_fibers() {
    for (void* f : fibers_) __tsan_destroy_fiber(f);
    fibers_.clear();
  }
  std::vector<void*> fibers_;
#endif

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Thread>> spare_;
  std::vector<Thread*> ready_;
  Thread* current_ = nullptr;
  Block* finished_ = nullptr;
  std::function<void()> body_;
  size_t shared_bytes_ = 0;
  std::string error_;
  std::mt19937_64 random_;
  Context main_;
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
  void* main_fiber_ = nullptr;
  char done_ = 0;
};

inline Machine machine;
inline void Machine::entry() { machine.run_thread(); }

}  // namespace simt
