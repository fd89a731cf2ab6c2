// SPDX-License-Identifier: GPL-2.0-or-later
// std::mutex and std::condition_variable, with what clang's -Wthread-safety needs to see that a member is used under
// its lock alone (https://clang.llvm.org/docs/ThreadSafetyAnalysis.html). GCC ignores it; .ci/tidy and builds by clang
// look.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define ICP_THREAD_SAFETY(attribute) __attribute__((attribute))
#else
#define ICP_THREAD_SAFETY(attribute)
#endif
// Of a member: used with that mutex held. Of a function: called with it held.
#define ICP_GUARDED_BY(mutex) ICP_THREAD_SAFETY(guarded_by(mutex))
#define ICP_REQUIRES(...) ICP_THREAD_SAFETY(requires_capability(__VA_ARGS__))

namespace icp {

class ICP_THREAD_SAFETY(capability("mutex")) Mutex {
 public:
  void lock() ICP_THREAD_SAFETY(acquire_capability()) { mutex_.lock(); }
  void unlock() ICP_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

// Holds a mutex as long as it lives, but for what is between unlock() and lock().
class ICP_THREAD_SAFETY(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ICP_THREAD_SAFETY(acquire_capability(mutex)) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() ICP_THREAD_SAFETY(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits let the mutex go meanwhile; they may end for nothing.
class Condition {
 public:
  void wait(Mutex& mutex) ICP_REQUIRES(mutex) { condition_.wait(mutex); }
  void wait_until(Mutex& mutex, std::chrono::steady_clock::time_point until) ICP_REQUIRES(mutex) {
    condition_.wait_until(mutex, until);
  }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace icp
