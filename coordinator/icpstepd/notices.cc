// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/notices.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"

namespace icp {
namespace {

// By the process's own table: opening /proc/PID/fd/N would not work for sockets, and would give another description.
UniqueFd take_fd(int pidfd, int number) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, number, 0)));
}

bool same(int fd, const StreamId& stream) {
  struct stat facts {};
  return ::fstat(fd, &facts) == 0 && facts.st_dev == stream.dev && facts.st_ino == stream.ino;
}

// The task's stream wherever the task has it now, 2 first.
UniqueFd find_stream(pid_t pid, const StreamId& stream) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return {};
  if (UniqueFd fd = take_fd(pidfd.get(), STDERR_FILENO); fd && same(fd.get(), stream)) return fd;
  try {
    for (const int number : list_proc_numbers(pid, "fd")) {
      UniqueFd fd = take_fd(pidfd.get(), number);
      // A pipe's reading end has the same inode.
      if (fd && same(fd.get(), stream) && (::fcntl(fd.get(), F_GETFL) & O_ACCMODE) != O_RDONLY) return fd;
    }
  } catch (const Error&) {
    // The process has ended.
  }
  return {};
}

}  // namespace

bool write_to_task(pid_t pid, const StreamId& stream, const std::string& line) {
  if (stream.mode == 0) return false;
  const UniqueFd fd = find_stream(pid, stream);
  if (!fd) return false;
  // The description is the task's as well: its flags must stay, so a full pipe is waited for here.
  pollfd entry{fd.get(), POLLOUT, 0};
  if (::poll(&entry, 1, 1000) != 1 || (entry.revents & POLLOUT) == 0) return false;
  const std::string bytes = (line.size() > 2000 ? line.substr(0, 2000) + " ..." : line) + "\n";  // below PIPE_BUF
  return ::write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
}

void Notices::complain(const std::string& text) {
  // Numbers (pids, descriptors) differ from time to time in what is the same complaint to a reader.
  std::string gist = text;
  gist.erase(std::remove_if(gist.begin(), gist.end(), [](char c) { return c >= '0' && c <= '9'; }), gist.end());
  if (gist == last_) return;
  last_ = gist;
  writer_(text, true);
}

}  // namespace icp
