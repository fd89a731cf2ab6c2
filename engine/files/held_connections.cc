// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/held_connections.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <string>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/broker/tcp_queue.h"

namespace icp {
namespace {

constexpr int kMostHeld = 3600 * 1000;    // ms; TCP itself gives up after a quarter of an hour of silence
constexpr int kMostReleased = 10 * 1000;  // ms

// Where the holder of a connection is asked: a name that nothing in the file system has, in the network namespace that
// the connection is in, too. Anybody may take a name there, so this is the part that says whose it is, and a random
// number follows: who is looked for by it proves itself by its credentials.
std::string name_of_holder(const InetAddress& local, const InetAddress& remote) {
  return "icp-held " + local.text() + " " + remote.text() + " ";
}

socklen_t address_of(const std::string& name, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  const size_t size = std::min(name.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path + 1, name.data(), size);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
}

std::string random_text() {
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) throw_errno("cannot hold a TCP connection");
  return fmt::format("{:x}", number);
}

// Names in the network namespace that begin so. In /proc/net/unix "@" stands before such a name (unix(7)).
std::vector<std::string> names_with(const std::string& begin) {
  std::vector<std::string> names;
  std::ifstream file("/proc/thread-self/net/unix");
  for (std::string line; std::getline(file, line);)
    if (const size_t at = line.find("@" + begin); at != std::string::npos) names.push_back(line.substr(at + 1));
  return names;
}

// Of the other end, who is root or this user.
bool is_ours(int socket) {
  ucred who{};
  socklen_t length = sizeof who;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0) return false;
  return who.uid == 0 || who.uid == ::geteuid();
}

struct Held {
  UniqueFd connection, asked;  // a listening Unix socket
};

// In a process of its own. What has been asked for is closed first, and then told so by closing the question.
[[noreturn]] void serve(std::vector<Held> held) {
  while (!held.empty()) {
    std::vector<pollfd> polled;
    for (const Held& one : held) polled.push_back({one.asked.get(), POLLIN, 0});
    if (::poll(polled.data(), polled.size(), kMostHeld) <= 0) break;
    for (size_t i = polled.size(); i-- > 0;) {
      if (polled[i].revents == 0) continue;
      const UniqueFd visitor(::accept4(held[i].asked.get(), nullptr, nullptr, SOCK_CLOEXEC));
      // Whoever may end the holder may have it end a connection.
      if (visitor && is_ours(visitor.get())) held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  ::_exit(0);
}

// Nothing of the agent's but the connections.
void close_others(const std::vector<Held>& held) {
  std::vector<unsigned> ours;
  for (const Held& one : held) {
    ours.push_back(static_cast<unsigned>(one.connection.get()));
    ours.push_back(static_cast<unsigned>(one.asked.get()));
  }
  std::sort(ours.begin(), ours.end());
  unsigned first = 0;
  for (const unsigned fd : ours) {
    if (fd > first) ::close_range(first, fd - 1, 0);
    first = fd + 1;
  }
  ::close_range(first, ~0u, 0);
}

[[noreturn]] void become_holder(std::vector<Held> held) {
  ::setsid();
  ::prctl(PR_SET_NAME, "icp-held", 0, 0, 0);
  ::prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGPIPE}) ::signal(signal, signal == SIGTERM ? SIG_DFL : SIG_IGN);
  close_others(held);
  if (::chdir("/") != 0) ::_exit(1);
  serve(std::move(held));
}

}  // namespace

bool can_be_held(int fd) {
  socklen_t instructions = 0;
  return ::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &instructions) == 0 && instructions == 0;
}

HeldConnections::~HeldConnections() {
  const int none = 0;
  for (const UniqueFd& socket : sockets_) ::setsockopt(socket.get(), SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none);
}

void HeldConnections::hold(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) throw_errno("cannot hold a TCP connection");
  broker().set_tcp_repair(fd, kTcpDeaf);
  sockets_.push_back(std::move(copy));
}

void HeldConnections::outlive() {
  std::vector<Held> held;
  for (const UniqueFd& socket : sockets_) {
    sockaddr_un name;
    const InetAddress remote = InetAddress::peer_of(socket.get()).value_or(InetAddress());
    const socklen_t length =
        address_of(name_of_holder(InetAddress::local_of(socket.get()), remote) + random_text(), name);
    UniqueFd asked(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!asked || ::bind(asked.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0 ||
        ::listen(asked.get(), 1) != 0)
      throw_errno("cannot hold a TCP connection");
    held.push_back({UniqueFd(), std::move(asked)});
  }
  if (held.empty()) return;
  for (const UniqueFd& socket : sockets_) broker().set_tcp_repair(socket.get(), TCP_REPAIR_ON);
  const pid_t child = ::fork();
  if (child == 0) {
    for (size_t i = 0; i < held.size(); ++i) held[i].connection = std::move(sockets_[i]);
    become_holder(std::move(held));
  }
  const int error = errno;
  if (child < 0)
    for (const UniqueFd& socket : sockets_) broker().set_tcp_repair(socket.get(), TCP_REPAIR_OFF);
  errno = error;
  if (child < 0) throw_errno("cannot start a process that holds TCP connections");
  sockets_.clear();
}

void HeldConnections::release(const InetAddress& local, const InetAddress& remote) {
  for (const std::string& holder : names_with(name_of_holder(local, remote))) {
    sockaddr_un name;
    const socklen_t length = address_of(holder, name);
    const UniqueFd question(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!question || ::connect(question.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0 ||
        !is_ours(question.get()))
      continue;
    pollfd answer{question.get(), POLLIN, 0};
    ::poll(&answer, 1, kMostReleased);
  }
}

}  // namespace icp
