// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/engine/tcp_peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/engine/roundtrip.h"

namespace icp::test {
namespace {

constexpr size_t kChunk = 7919;
constexpr uint64_t kWindow = 40;  // messages on their way

socklen_t length_of(const sockaddr_storage& address) {
  return address.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
}

unsigned char byte_at(uint64_t seed, uint64_t position) {
  return static_cast<unsigned char>((seed * 0x9e3779b97f4a7c15ull + position * 0xbf58476d1ce4e5b9ull) >> 40);
}

std::string message(uint64_t number) {
  std::string text(sizeof number + number * 131 % 9000, static_cast<char>(number));
  std::memcpy(text.data(), &number, sizeof number);
  return text;
}

void write_all(int fd, const std::string& data) {
  for (size_t done = 0; done < data.size();) {
    const ssize_t put = ::write(fd, data.data() + done, data.size() - done);
    CHECK_OR_DIE(put > 0);
    done += static_cast<size_t>(put);
  }
}

// False at the end of the stream, where that may be. Anything else ends the process, which says what came.
bool expect_message(int fd, uint64_t number, bool may_end = false) {
  const std::string expected = message(number), got = read_exactly(fd, expected.size());
  if (got == expected) return true;
  if (may_end && got.empty()) return false;
  const auto differ = std::mismatch(got.begin(), got.end(), expected.begin());
  uint64_t came = 0;
  std::memcpy(&came, got.data(), std::min(got.size(), sizeof came));
  dprintf(2, "message %lu of %zu bytes: %zu bytes came, the first %td as expected; they begin like message %lu\n",
          number, expected.size(), got.size(), differ.first - got.begin(), came);
  ::_exit(99);
}

}  // namespace

sockaddr_storage loopback(int family, uint16_t port) {
  sockaddr_storage address{};
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(address);
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in.sin_port = htons(port);
  } else {
    auto& in = reinterpret_cast<sockaddr_in6&>(address);
    in.sin6_addr = in6addr_loopback;
    in.sin6_port = htons(port);
  }
  return address;
}

uint16_t port_of(const sockaddr_storage& address) {
  return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

std::string text_of(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  const void* ip = address.ss_family == AF_INET
                       ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(address).sin_addr)
                       : &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  ::inet_ntop(address.ss_family, ip, text, sizeof text);
  return text + (":" + std::to_string(port_of(address)));
}

sockaddr_storage name_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  CHECK_OR_DIE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return address;
}

sockaddr_storage peer_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  CHECK_OR_DIE(::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0);
  return address;
}

void bind_to(int fd, const sockaddr_storage& address) {
  CHECK_OR_DIE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), length_of(address)) == 0);
}

int connect_to(const sockaddr_storage& address) {
  const int fd = ::socket(address.ss_family, SOCK_STREAM, 0);
  CHECK_OR_DIE(fd >= 0 && ::connect(fd, reinterpret_cast<const sockaddr*>(&address), length_of(address)) == 0);
  return fd;
}

Listener::Listener(int family) : fd_(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  bind_to(fd(), loopback(family, 0));
  CHECK_OR_DIE(::listen(fd(), 8) == 0);
}

std::pair<int, int> tcp_pair(int family) {
  const Listener listener(family);
  const int client = connect_to(name_of(listener.fd()));
  const int server = ::accept(listener.fd(), nullptr, nullptr);
  CHECK_OR_DIE(server >= 0);
  return {client, server};
}

std::string read_some(int fd, size_t most) {
  std::string text(most, '\0');
  const ssize_t got = ::read(fd, text.data(), most);
  CHECK_OR_DIE(got >= 0);
  text.resize(static_cast<size_t>(got));
  return text;
}

std::string read_exactly(int fd, size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    const std::string more = read_some(fd, bytes - text.size());
    if (more.empty()) break;
    text += more;
  }
  return text;
}

bool at_end(int fd) { return read_some(fd, 1).empty(); }

bool readable_now(int fd) {
  pollfd wait{fd, POLLIN, 0};
  return ::poll(&wait, 1, 0) == 1;
}

uint64_t fill(int fd, uint64_t seed) {
  uint64_t total = 0;
  for (;;) {
    unsigned char chunk[kChunk];
    for (size_t i = 0; i < kChunk; ++i) chunk[i] = byte_at(seed, total + i);
    const ssize_t put = ::write(fd, chunk, kChunk);
    if (put < 0 && errno == EAGAIN) {
      pollfd wait{fd, POLLOUT, 0};
      if (::poll(&wait, 1, 100) == 0) return total;  // nothing moves any more
      continue;
    }
    CHECK_OR_DIE(put > 0);
    total += static_cast<uint64_t>(put);
  }
}

bool drain(int fd, uint64_t seed, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes;) {
    pollfd wait{fd, POLLIN, 0};
    CHECK_OR_DIE(::poll(&wait, 1, 15'000) == 1);
    const std::string part = read_some(fd, std::min<uint64_t>(kChunk, bytes - done));
    if (part.empty()) return false;
    for (const char c : part)
      if (static_cast<unsigned char>(c) != byte_at(seed, done++)) return false;
  }
  return true;
}

uint64_t exchange_numbers(int fd, const std::function<bool()>& enough) {
  uint64_t sent = 0, received = 0;
  for (bool ending = false; !ending || received < sent;) {
    ending = ending || enough();
    if (!ending && sent - received < kWindow) {
      write_all(fd, message(sent++));
      continue;
    }
    expect_message(fd, received++);
  }
  CHECK_OR_DIE(::shutdown(fd, SHUT_WR) == 0 && at_end(fd));
  return sent;
}

void echo_numbers(int fd) {
  for (uint64_t number = 0;; ++number) {
    if (!expect_message(fd, number, true)) ::_exit(0);
    write_all(fd, message(number));
  }
}

}  // namespace icp::test
