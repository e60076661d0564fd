// Many problems at once: threads take them from a shared counter, a few at a time.

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "segment/segmenter.h"

namespace cwt {
namespace {

// Problems per visit to the counter: about 0.1 ms of short rationales.
constexpr int64_t kTake = 16;

constexpr int64_t kStop = -1;  // the index of what `poll` throws: before that of any problem

struct Stopped {};  // thrown by threads whose results nobody wants any more

// Keeps the failure of the lowest index, whatever the order in which the threads meet them.
class FirstFailure {
 public:
  bool before(int64_t index) const { return index_.load(std::memory_order_relaxed) < index; }
  void record(int64_t index, std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (before(index)) return;
    index_.store(index, std::memory_order_relaxed);
    error_ = error;
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::atomic<int64_t> index_ = std::numeric_limits<int64_t>::max();
  std::exception_ptr error_;
};

void announce(const Problem& next, Workspace& workspace) {
  const int64_t size = next.rows * next.cols;
  workspace.ahead = reinterpret_cast<const char*>(next.x32);
  workspace.ahead_end = reinterpret_cast<const char*>(next.x32 + size);
  if (next.x32) return;
  workspace.ahead = reinterpret_cast<const char*>(next.x64);
  workspace.ahead_end = reinterpret_cast<const char*>(next.x64 + size);
}

}  // namespace

std::vector<std::vector<Segmentation>> segment_batch(const std::vector<Problem>& problems,
                                                     int64_t threads, const Poll& poll) {
  const int64_t count = static_cast<int64_t>(problems.size());
  std::vector<std::vector<Segmentation>> results(count);
  std::atomic<int64_t> next = 0;
  FirstFailure failure;

  const Poll ask = [&] {
    if (poll) try {
        poll();
      } catch (...) {
        failure.record(kStop, std::current_exception());
        throw Stopped();
      }
  };
  const Poll obey = [&] {
    if (failure.before(0)) throw Stopped();
  };
  const auto work = [&](const Poll& own_poll) {
    Workspace workspace;
    workspace.poll = own_poll;
    for (int64_t begin; (begin = next.fetch_add(kTake)) < count;)
      for (int64_t i = begin; i < std::min(count, begin + kTake) && !failure.before(i); ++i) try {
          own_poll();
          if (i + 1 < count) announce(problems[i + 1], workspace);
          results[i] = segment(problems[i], workspace);
        } catch (const std::invalid_argument& error) {
          const std::string message = "item " + std::to_string(i) + ": " + error.what();
          failure.record(i, std::make_exception_ptr(std::invalid_argument(message)));
        } catch (const Stopped&) {
          return;
        } catch (...) {
          failure.record(i, std::current_exception());
        }
  };

  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(std::max<int64_t>(threads, 1)));
  for (int64_t i = 1; i < std::min(threads, (count + kTake - 1) / kTake); ++i) try {
      others.emplace_back(work, obey);
    } catch (const std::system_error&) {
      break;  // the system grants no more threads; those there are will do
    }
  work(ask);
  for (auto& thread : others) thread.join();
  failure.rethrow();
  return results;
}

}  // namespace cwt
