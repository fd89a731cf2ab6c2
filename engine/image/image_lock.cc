// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/image_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/error.h"
#include "engine/base/printable.h"
#include "engine/image/image_layout.h"

namespace icp {
namespace {

constexpr int kTries = 3000;
constexpr useconds_t kTryInterval = 10'000;  // microseconds

// Empty where the caller may not make it, and it is not there.
UniqueFd open_lock(const ImageRoot& root, const std::string& name, bool must) {
  // Locks over NFS want a descriptor open for writing.
  UniqueFd fd(::openat(root.fd.get(), name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!fd && !must) fd.reset(::openat(root.fd.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd && must) throw_errno("cannot open {}/{}", root.path, name);
  return fd;
}

// False when somebody else holds it. A file system without locks lets everybody pass.
bool try_lock(int fd, int how) {
  while (::flock(fd, how | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) break;
  }
  return true;
}

bool wait_for_lock(int fd, int how) {
  for (int tries = 0; tries < kTries; ++tries) {
    if (try_lock(fd, how)) return true;
    ::usleep(kTryInterval);
  }
  return false;
}

}  // namespace

UniqueFd lock_for_session(const ImageRoot& root) {
  constexpr int kEndingTries = 100;  // a second, for one that is just ending
  UniqueFd fd = open_lock(root, session_lock_name(root.node), true);
  for (int tries = 1; !try_lock(fd.get(), LOCK_EX); ++tries) {
    if (tries < kEndingTries) {
      ::usleep(kTryInterval);
      continue;
    }
    char text[200];
    const ssize_t got = ::pread(fd.get(), text, sizeof text, 0);
    const std::string who(text, static_cast<size_t>(std::max<ssize_t>(got, 0)));
    throw Error(ErrorKind::kBusy,
                fmt::format("{} is in use: {} takes versions into it", root.path,
                            who.empty() ? "another program" : printable(who)),
                0, "wait for its end, or use another directory");
  }
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  const std::string who = fmt::format("{} (process {} on {})", program_invocation_short_name, ::getpid(), host);
  // Who cannot write it has the lock all the same.
  if (::ftruncate(fd.get(), 0) == 0 && ::pwrite(fd.get(), who.data(), who.size(), 0) < 0) errno = 0;
  return fd;
}

UniqueFd lock_for_writing(const ImageRoot& root) {
  UniqueFd fd = open_lock(root, write_lock_name(root.node), true);
  open_lock(root, read_lock_name(root.node), false);  // made in good time: removal must be possible on a full disk
  if (!wait_for_lock(fd.get(), LOCK_EX)) {
    throw Error(ErrorKind::kBusy, fmt::format("another process is writing a version into {}", root.path), 0,
                "wait for it, or use another directory");
  }
  return fd;
}

UniqueFd lock_for_reading(const ImageRoot& root) {
  UniqueFd fd = open_lock(root, read_lock_name(root.node), false);
  if (fd && !wait_for_lock(fd.get(), LOCK_SH)) {
    throw_error(ErrorKind::kBusy, "versions are being removed from {}", root.path);
  }
  return fd;
}

UniqueFd lock_for_removal(const ImageRoot& root) {
  UniqueFd fd = open_lock(root, read_lock_name(root.node), true);
  if (!try_lock(fd.get(), LOCK_EX)) {
    throw Error(ErrorKind::kBusy, fmt::format("a version in {} is being read: nothing can be removed now", root.path),
                0, "wait for the restart, compaction or verification to end");
  }
  return fd;
}

}  // namespace icp
