// SPDX-License-Identifier: GPL-2.0-or-later
// Sockets for processes under test. Everything ends the process with a message when it fails (CHECK_OR_DIE).
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "engine/base/unique_fd.h"

namespace icp::test {

sockaddr_storage loopback(int family, uint16_t port);
uint16_t port_of(const sockaddr_storage& address);
std::string text_of(const sockaddr_storage& address);  // "127.0.0.1:80"
sockaddr_storage name_of(int fd);
sockaddr_storage peer_of(int fd);
void bind_to(int fd, const sockaddr_storage& address);
int connect_to(const sockaddr_storage& address);

class Listener {
 public:
  explicit Listener(int family);
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

// Connected over loopback: the one that called connect(), and the accepted one.
std::pair<int, int> tcp_pair(int family);

std::string read_some(int fd, size_t most);
std::string read_exactly(int fd, size_t bytes);
bool at_end(int fd);
bool readable_now(int fd);

// Writes bytes of a sequence that `seed` starts, until the (nonblocking) socket takes no more; returns how many.
uint64_t fill(int fd, uint64_t seed);
// Reads that many bytes and compares.
bool drain(int fd, uint64_t seed, uint64_t bytes);

// Sends messages of odd lengths, numbered from 0, and reads them back from echo_numbers(); ends when `enough` and all
// have come back. Returns how many.
uint64_t exchange_numbers(int fd, const std::function<bool()>& enough);
[[noreturn]] void echo_numbers(int fd);

}  // namespace icp::test
