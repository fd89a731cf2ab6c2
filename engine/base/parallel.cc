// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "engine/base/mutex.h"

namespace icp {
namespace {

// One for this thread, and those of its processors that nobody uses at this moment: on others it would take turns with
// the job, which is what a version is not to slow down. The fourth field of /proc/loadavg begins with the number of
// threads that run or could, this one among them.
size_t processors() {
  cpu_set_t allowed;
  unsigned long running = 0;
  std::string skipped;
  std::ifstream("/proc/loadavg") >> skipped >> skipped >> skipped >> running;
  const long online = ::sysconf(_SC_NPROCESSORS_ONLN);
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0 || running == 0 || online <= 0) return 1;
  const auto all = static_cast<unsigned long>(online);
  return std::min<size_t>(CPU_COUNT(&allowed), all > running ? 1 + all - running : 1);
}

// Signals are for the thread that waits for them.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

void parallel_for(size_t items, size_t most, const std::function<ItemWork()>& make) {
  std::atomic<size_t> next = 0;
  Mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      const ItemWork one = make();
      for (size_t i = 0; (i = next++) < items;) one(i);
    } catch (...) {
      const MutexLock lock(mutex);
      if (!failure) failure = std::current_exception();
      next = items;
    }
  };
  std::vector<std::thread> threads;
  const size_t wanted = std::min({items, most, kMostThreads, std::min(items, most) > 1 ? processors() : 1});
  if (wanted > 1) {
    const NoSignals guard;
    try {
      for (size_t i = 1; i < wanted; ++i) threads.emplace_back(work);
    } catch (const std::system_error&) {
      // No more threads to be had (RLIMIT_NPROC, a cgroup's pids.max): those that run do it all.
    }
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace icp
