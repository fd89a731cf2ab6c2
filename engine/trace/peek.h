// SPDX-License-Identifier: GPL-2.0-or-later
// A look into a process's memory where nothing has to be there.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <type_traits>

namespace icp {

// Copies the bytes at address `at` of the process into `value`. False when they cannot all be read. Thread-safe.
template <typename Value>
bool peek(pid_t pid, uint64_t at, Value& value) {
  static_assert(std::is_trivially_copyable_v<Value>);
  const iovec here{&value, sizeof value}, there{reinterpret_cast<void*>(at), sizeof value};
  return ::process_vm_readv(pid, &here, 1, &there, 1, 0) == static_cast<ssize_t>(sizeof value);
}

}  // namespace icp
