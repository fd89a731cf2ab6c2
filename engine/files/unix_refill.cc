// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unix_refill.h"

#include <sys/syscall.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstring>

#include "engine/base/error.h"
#include "engine/trace/remote_process.h"

namespace icp {
namespace {

constexpr size_t kMostInProcess = 2048;  // bytes; of scratch memory

}  // namespace

UnixAddress::UnixAddress(const pb::OpenFile& file, const std::string& name) {
  if (name.empty() || name.size() > sizeof un.sun_path) throw_bad_file(file, "a Unix socket has no usable name");
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
}

void set_unix_buffer(int fd, int force, int option, uint32_t value) {
  const int half = static_cast<int>(value / 2);
  if (value == 0 || ::setsockopt(fd, SOL_SOCKET, force, &half, sizeof half) == 0) return;
  ::setsockopt(fd, SOL_SOCKET, option, &half, sizeof half);  // up to the system's limit
}

std::vector<int> files_of_entry(const RestoreContext& context, const pb::OpenFile& file, int entry) {
  std::vector<int> files;
  for (const pb::UnixControl& control : file.unix_socket().control()) {
    if (control.entry() != static_cast<uint32_t>(entry)) continue;
    for (const uint32_t id : control.files()) {
      files.push_back(context.get(id));
      if (files.back() < 0) throw_bad_file(file, fmt::format("open file {} is on its way and cannot be sent", id));
    }
  }
  return files;
}

bool carries_files(const pb::UnixSocket& socket) {
  return std::any_of(socket.control().begin(), socket.control().end(),
                     [](const pb::UnixControl& control) { return control.files_size() > 0; });
}

ssize_t send_entry(int sender, const std::string& data, size_t done, const std::vector<int>& files,
                   const UnixAddress* to) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostUnixFiles)];
  iovec part{const_cast<char*>(data.data()) + done, data.size() - done};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (to != nullptr) {
    message.msg_name = const_cast<sockaddr*>(to->get());
    message.msg_namelen = to->length;
  }
  if (!files.empty() && done == 0 && files.size() <= static_cast<size_t>(kMostUnixFiles)) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * files.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * files.size());
    std::memcpy(CMSG_DATA(header), files.data(), sizeof(int) * files.size());
  }
  return ::sendmsg(sender, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool carries_credentials(const pb::UnixSocket& socket) {
  return std::any_of(socket.control().begin(), socket.control().end(),
                     [](const pb::UnixControl& control) { return control.credentials() && control.pid() != 0; });
}

namespace {

const pb::UnixControl* credentials_of_entry(const pb::UnixSocket& socket, int entry) {
  for (const pb::UnixControl& control : socket.control())
    if (control.entry() == static_cast<uint32_t>(entry) && control.credentials()) return &control;
  return nullptr;
}

// The kernel writes down who calls: the process that did has to do it again. False where it cannot.
bool send_from_process(const RestoreContext& context, const pb::UnixSocket& socket, int entry, const UnixEnds& ends) {
  const pb::UnixControl* control = credentials_of_entry(socket, entry);
  if (control == nullptr || control->files_size() > 0 || ends.sender_file == nullptr) return false;
  const auto sender = context.senders.find(control->pid());
  if (sender == context.senders.end()) return false;
  const auto& fds = sender->second.process->fds();
  const auto fd = std::find_if(fds.begin(), fds.end(),
                               [&](const pb::FileDescriptor& one) { return one.file() == ends.sender_file->id(); });
  const std::string& data = socket.queue(entry);
  if (fd == fds.end() || data.size() > kMostInProcess) return false;
  RemoteProcess& remote = *sender->second.remote;
  remote.reset_scratch();
  const RemoteAddr bytes = remote.stage_string(data);
  return remote.syscall(SYS_sendto, {static_cast<uint64_t>(fd->fd()), bytes.value, data.size(),
                                     MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0}) == static_cast<int64_t>(data.size());
}

}  // namespace

void refill(const RestoreContext& context, const pb::OpenFile& file, const UnixEnds& ends) {
  const pb::UnixSocket& socket = file.unix_socket();
  if (socket.queue_size() == 0) return;
  uint64_t room = 1u << 18;
  for (const std::string& data : socket.queue()) room += 4 * data.size() + 4096;
  set_unix_buffer(ends.sender, SO_SNDBUFFORCE, SO_SNDBUF, static_cast<uint32_t>(std::min<uint64_t>(room, INT_MAX)));
  const int on = 1;
  if (carries_credentials(socket)) ::setsockopt(ends.receiver, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  for (int i = 0; i < socket.queue_size(); i++) {
    if (send_from_process(context, socket, i, ends)) continue;
    const std::string& data = socket.queue(i);
    const std::vector<int> files = files_of_entry(context, file, i);
    size_t done = 0;
    do {
      const ssize_t sent = send_entry(ends.sender, data, done, files, nullptr);
      if (sent < 0 && errno == EAGAIN) throw_bad_file(file, "more data waits in a Unix socket than fits in");
      if (sent < 0) throw_errno("cannot put the data back into a Unix socket");
      done += static_cast<size_t>(sent);
    } while (done < data.size());
  }
}

}  // namespace icp
