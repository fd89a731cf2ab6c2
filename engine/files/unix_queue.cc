// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_queue.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "engine/base/error.h"
#include "engine/base/socket_pair.h"
#include "engine/files/socket_option.h"

namespace icp {
namespace {

constexpr size_t kPeekBuffer = 16u << 20;  // address space only: pages are touched as far as data comes
constexpr size_t kMostMessages = 1u << 20;
constexpr size_t kMostFiles = 253;  // SCM_MAX_FD
constexpr int kPidfd = 4;           // SCM_PIDFD, Linux 6.5: made anew for each reader

// While it lives, MSG_PEEK reads on from where the last one ended (SO_PEEK_OFF, a property of the socket that
// the processes may use, too).
class PeekOffset {
 public:
  explicit PeekOffset(int fd) : fd_(fd) {
    socklen_t length = sizeof old_;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &old_, &length) != 0) throw_errno("cannot look into a Unix socket");
    const int start = 0;
    if (::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &start, sizeof start) != 0) {
      throw_errno("cannot look into a Unix socket");
    }
  }
  ~PeekOffset() { ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &old_, sizeof old_); }
  PeekOffset(const PeekOffset&) = delete;
  PeekOffset& operator=(const PeekOffset&) = delete;

 private:
  int fd_;
  int old_ = -1;
};

void take_control(msghdr& message, QueuedMessage& into) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET) continue;
    if (control->cmsg_type == SCM_CREDENTIALS && control->cmsg_len >= CMSG_LEN(sizeof(ucred))) {
      std::memcpy(&into.credentials.emplace(), CMSG_DATA(control), sizeof(ucred));
    }
    if (control->cmsg_type != SCM_RIGHTS && control->cmsg_type != kPidfd) continue;
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      UniqueFd fd(reinterpret_cast<int*>(CMSG_DATA(control))[i]);
      if (control->cmsg_type == SCM_RIGHTS) into.files.push_back(std::move(fd));
    }
  }
}

bool same(const std::optional<ucred>& a, const std::optional<ucred>& b) {
  if (!a || !b) return a.has_value() == b.has_value();
  return a->pid == b->pid && a->uid == b->uid && a->gid == b->gid;
}

bool joins(const QueuedMessage& last, const QueuedMessage& next) {
  return last.files.empty() && next.files.empty() && same(last.credentials, next.credentials);
}

}  // namespace

std::string unix_name(const char* path, size_t bytes) {
  std::string name(path, bytes);
  while (!name.empty() && name[0] != '\0' && name.back() == '\0') name.pop_back();
  return name;
}

namespace {

class Peeker {
 public:
  explicit Peeker(int fd) : fd_(fd), offset_(fd), buffer_(new char[kPeekBuffer]) {}

  // Up to `most` bytes from `at` on. -1 and errno when nothing is there (any more).
  ssize_t look(uint64_t at, size_t most, QueuedMessage& into) {
    const int from = static_cast<int>(at);
    if (at != next_ && ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &from, sizeof from) != 0) return -1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostFiles) + CMSG_SPACE(sizeof(ucred)) + 256];
    iovec data{buffer_.get(), std::min(most, kPeekBuffer)};
    sockaddr_un sender{};
    msghdr message{};
    message.msg_name = &sender;
    message.msg_namelen = sizeof sender;
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t got = 0;
    do {
      got = ::recvmsg(fd_, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0) return got;
    take_control(message, into);
    if (message.msg_flags & MSG_TRUNC) throw_error(ErrorKind::kRefused, "a message in a Unix socket is too long");
    constexpr size_t kFamily = offsetof(sockaddr_un, sun_path);
    if (message.msg_namelen > kFamily) into.sender = unix_name(sender.sun_path, message.msg_namelen - kFamily);
    into.data.assign(buffer_.get(), static_cast<size_t>(got));
    next_ = at + static_cast<uint64_t>(got);
    return got;
  }

  // How many of the `bytes` from `at` on come before the ones sent with descriptors. A read of a stream goes on into
  // these, and a look that ends before them tells of their descriptors all the same (unix_stream_read_generic() in the
  // kernel's net/unix/af_unix.c). One whose last byte cannot be written stops at them: they are copied whole or not.
  size_t before_files(uint64_t at, size_t bytes) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    void* barred = ::mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (barred == MAP_FAILED) throw_errno("cannot map a page");
    const int from = static_cast<int>(at);
    ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &from, sizeof from);
    iovec parts[2] = {{buffer_.get(), bytes - 1}, {barred, 1}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t got = ::recvmsg(fd_, &message, MSG_PEEK | MSG_DONTWAIT);
    ::munmap(barred, page);
    next_ = kUnknown;
    return got > 0 ? static_cast<size_t>(got) : 0;
  }

 private:
  static constexpr uint64_t kUnknown = ~0ull;
  int fd_;
  PeekOffset offset_;
  std::unique_ptr<char[]> buffer_;  // not cleared, on purpose
  uint64_t next_ = 0;
};

constexpr size_t kMostParts = 1u << 16;

// A stream of the agent's own, to see what a message of so many bytes takes of its sender's buffer.
class Gauge {
 public:
  Gauge() : pair_(SOCK_STREAM) {
    const int most = 1 << 22;  // as far as the system lets it
    ::setsockopt(pair_.here.get(), SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
  }
  // 0: it cannot be sent at once.
  size_t taken_by(size_t bytes) {
    std::string data(bytes, '\0');
    int taken = 0;
    const ssize_t sent = ::send(pair_.here.get(), data.data(), bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    const bool known = ::ioctl(pair_.here.get(), SIOCOUTQ, &taken) == 0;
    while (::recv(pair_.there.get(), data.data(), bytes, MSG_DONTWAIT) > 0) {
    }
    return known && sent == static_cast<ssize_t>(bytes) ? static_cast<size_t>(taken) : 0;
  }

 private:
  SocketPair pair_;
};

}  // namespace

std::vector<std::string> cut_to_fill(const std::string& data, size_t room) {
  Gauge gauge;
  const auto size_of = [&](size_t parts) { return (data.size() + parts - 1) / parts; };
  const auto fills = [&](size_t parts) { return gauge.taken_by(size_of(parts)) * parts >= room; };
  size_t none = 0, enough = std::min(data.size(), kMostParts);
  if (enough == 0 || !fills(enough)) return {data};
  while (enough - none > 1) {
    const size_t middle = none + (enough - none) / 2;
    (fills(middle) ? enough : none) = middle;
  }
  std::vector<std::string> parts;
  for (size_t at = 0; at < data.size(); at += size_of(enough)) parts.push_back(data.substr(at, size_of(enough)));
  return parts;
}

std::vector<QueuedMessage> peek_socket(int fd) {
  std::vector<QueuedMessage> queue;
  const int type = socket_option(fd, SOL_SOCKET, SO_TYPE);
  int queued = 0;  // bytes; of a datagram socket those of the first one
  if (::ioctl(fd, SIOCINQ, &queued) != 0) queued = 0;
  if (type == SOCK_STREAM && queued == 0) return queue;
  pollfd state{fd, POLLRDHUP, 0};
  const bool ended = type == SOCK_SEQPACKET && ::poll(&state, 1, 0) > 0 && (state.revents & POLLRDHUP) != 0;
  Peeker peeker(fd);
  const auto all = static_cast<uint64_t>(queued);
  // Of a stream, one more read than needed would take a pending error (ECONNRESET) away from the process. Packets are
  // not counted by anybody, and may be empty.
  for (uint64_t bytes = 0; type == SOCK_STREAM ? bytes < all : queue.size() < kMostMessages;) {
    QueuedMessage next;
    ssize_t got = peeker.look(bytes, kPeekBuffer, next);
    if (got > 1 && type == SOCK_STREAM && !next.files.empty()) {
      const size_t before = peeker.before_files(bytes, static_cast<size_t>(got));
      if (before > 0) {
        next.files.clear();
        next.data.resize(before);
        got = static_cast<ssize_t>(before);
      }
    }
    if (got < 0) {
      if (errno == EAGAIN || errno == ECONNRESET || errno == ENOTCONN) break;
      throw_errno("cannot look into a Unix socket");
    }
    if (got == 0 && (type == SOCK_STREAM || (ended && bytes >= all))) break;
    bytes += static_cast<uint64_t>(got);
    if (type == SOCK_STREAM && !queue.empty() && joins(queue.back(), next)) {
      queue.back().data += next.data;
    } else {
      queue.push_back(std::move(next));
    }
  }
  return queue;
}

}  // namespace icp
