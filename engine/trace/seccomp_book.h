// SPDX-License-Identifier: GPL-2.0-or-later
// What the seccomp filters of threads say about system calls that we make in them.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/types.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace icp {

struct SeccompFilter {
  std::vector<sock_filter> program;
  uint32_t flags = 0;  // SECCOMP_FILTER_FLAG_LOG
  friend bool operator==(const SeccompFilter& a, const SeccompFilter& b);
};
using SeccompChain = std::vector<std::shared_ptr<const SeccompFilter>>;  // the oldest first

// SECCOMP_RET_*, of all filters the one that counts (seccomp(2)). A program that the kernel would not take kills.
uint32_t seccomp_action(const SeccompChain& chain, const seccomp_data& call);
bool lets_through(uint32_t action);  // ALLOW, LOG
bool is_deadly(uint32_t action);     // anything but those and ERRNO: of no use to us, or the thread's end

// A call of x86-64 as filters see it. Where it comes from is not told.
seccomp_data seccomp_call(long number, std::initializer_list<uint64_t> arguments);

// Filters are never taken away, only added: what was read of a thread holds as long as their number does.
class SeccompBook {
 public:
  void note(pid_t tid, uint64_t process_start, SeccompChain chain);
  // Of a thread in strict mode.
  void note_strict(pid_t tid, uint64_t process_start);
  void forget(pid_t tid) { threads_.erase(tid); }
  bool knows(pid_t tid) const { return threads_.contains(tid); }
  bool is_strict(pid_t tid, uint64_t process_start) const;
  const SeccompChain* find(pid_t tid, uint64_t process_start) const;
  // Whether the thread, or its process, would not live through this call of ours. Threads not noted have no filters.
  bool forbids(pid_t tid, const seccomp_data& call) const;
  // The same, as kRefused.
  void check_call(pid_t tid, const seccomp_data& call) const;

 private:
  struct Entry {
    uint64_t process_start = 0;  // ticks since boot: numbers are used again
    bool strict = false;
    SeccompChain chain;
  };
  std::map<pid_t, Entry> threads_;
};

// Of this process's session. One thread.
SeccompBook& seccomp_book();

}  // namespace icp
