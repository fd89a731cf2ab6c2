// SPDX-License-Identifier: GPL-2.0-or-later
// Errors of libicp: what failed, on what, why, and what the user can do.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>

namespace icp {

enum class ErrorKind {
  kSystem,      // a system call failed
  kRefused,     // a resource cannot be checkpointed; nothing was stopped
  kBusy,        // transient condition (a vfork in progress, a process that exits): try again
  kImage,       // an image is damaged, hostile or does not fit this host
  kPermission,  // the caller may not do this
  kUsage,       // a wrong argument or configuration value
  kGone,        // the process or step is no longer there
  kInternal,    // an invariant does not hold: a fault of this program (engine/base/check.h)
};

// The one exception type of libicp. what() is a whole sentence without a trailing period, for example
// "cannot open /scratch/img: Permission denied". Immutable, hence safe to share between threads.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what, int error_number = 0, std::string hint = {})
      : std::runtime_error(what), kind_(kind), errno_(error_number), hint_(std::move(hint)) {}

  ErrorKind kind() const { return kind_; }
  int error_number() const { return errno_; }        // errno value, 0 when none is involved
  const std::string& hint() const { return hint_; }  // what the user can do, may be empty

 private:
  ErrorKind kind_;
  int errno_;
  std::string hint_;
};

// "<what>; <hint>", or the sentence alone when there is no hint.
inline std::string with_hint(const Error& error) {
  return error.hint().empty() ? error.what() : std::string(error.what()) + "; " + error.hint();
}

// The kernel's text for an errno value; thread-safe.
std::string errno_text(int error_number);

// "<text>: <errno text>". Captures errno before anything else can change it.
template <typename... Args>
[[noreturn]] void throw_errno(fmt::format_string<Args...> format, Args&&... args) {
  const int saved = errno;
  throw Error(ErrorKind::kSystem,
              fmt::format("{}: {}", fmt::format(format, std::forward<Args>(args)...), errno_text(saved)), saved);
}

template <typename... Args>
[[noreturn]] void throw_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace icp
