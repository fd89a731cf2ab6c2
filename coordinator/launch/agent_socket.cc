// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/launch/agent_socket.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "coordinator/launch/request.h"

namespace icp::launch {
namespace {

using Call = int (*)(int, const sockaddr*, socklen_t);

UniqueFd socket_at(const std::string& name, Call call) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.empty() || name.size() >= sizeof address.sun_path) {
    errno = EINVAL;
    return {};
  }
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket || call(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) return {};
  return socket;
}

}  // namespace

bool is_same_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == ::geteuid();
}

UniqueFd listen_at(const std::string& name) {
  UniqueFd socket = socket_at(name, ::bind);
  if (!socket || ::listen(socket.get(), SOMAXCONN) != 0) return {};
  return socket;
}

UniqueFd connect_to(const std::string& name) {
  UniqueFd socket = socket_at(name, ::connect);
  if (!socket || !is_same_user(socket.get())) return {};
  return socket;
}

UniqueFd put_in_memory(const std::string& request) {
  UniqueFd file(::memfd_create("srun", MFD_CLOEXEC));
  if (!file || ::pwrite(file.get(), request.data(), request.size(), 0) != static_cast<ssize_t>(request.size()))
    return {};
  return file;
}

std::string read_from_memory(int file) {
  struct stat facts {};
  if (::fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_size <= 0 ||
      static_cast<size_t>(facts.st_size) > kMaxRequest)
    return {};
  std::string bytes(static_cast<size_t>(facts.st_size), '\0');
  if (::pread(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) return {};
  return bytes;
}

}  // namespace icp::launch
