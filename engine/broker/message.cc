// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/broker/message.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>

namespace icp {
namespace {

struct Header {
  uint64_t bytes = 0;
  uint64_t fds = 0;
};

union Control {
  cmsghdr align;
  char bytes[CMSG_SPACE(sizeof(int) * Message::kMostFds)];
};

constexpr int kIdle = 5'000;  // ms

// Until the socket can be read or written.
void wait_for(int socket, short event, const Peer* peer) {
  if (peer == nullptr) return;
  pollfd entries[] = {{peer->pidfd, POLLIN, 0}, {socket, event, 0}};
  for (int ready = 0; (ready = ::poll(entries, 2, kIdle)) <= 0;)
    if (ready == 0 && peer->idle) peer->idle();
  if (entries[0].revents != 0) throw_error(ErrorKind::kGone, "the other end has ended");
}

void send_rest(int socket, const char* data, size_t bytes, const Peer* peer) {
  constexpr size_t kPiece = 64 << 10;  // with a peer to watch: what is sent without a look at it
  while (bytes > 0) {
    wait_for(socket, POLLOUT, peer);
    const int flags = MSG_NOSIGNAL | (peer == nullptr ? 0 : MSG_DONTWAIT);
    const ssize_t sent = ::send(socket, data, peer == nullptr ? bytes : std::min(bytes, kPiece), flags);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) throw_error(ErrorKind::kGone, "the other end is gone");
    if (sent < 0) throw_errno("cannot send a message");
    data += sent;
    bytes -= static_cast<size_t>(sent);
  }
}

void receive_rest(int socket, char* data, size_t bytes, const Peer* peer) {
  while (bytes > 0) {
    wait_for(socket, POLLIN, peer);
    const ssize_t got = ::recv(socket, data, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0 || (got < 0 && errno == ECONNRESET)) throw_error(ErrorKind::kGone, "the other end is gone");
    if (got < 0) throw_errno("cannot receive a message");
    data += got;
    bytes -= static_cast<size_t>(got);
  }
}

}  // namespace

// The descriptors travel with the header, which a stream socket never splits from them.
void send_message(int socket, const Message& message, const Peer* peer) {
  if (message.fds.size() > Message::kMostFds) throw_error(ErrorKind::kUsage, "too many descriptors for a message");
  Header header{message.bytes.size(), message.fds.size()};
  iovec part{&header, sizeof header};
  Control control{};
  msghdr packet{};
  packet.msg_iov = &part;
  packet.msg_iovlen = 1;
  if (!message.fds.empty()) {
    packet.msg_control = control.bytes;
    packet.msg_controllen = CMSG_SPACE(sizeof(int) * message.fds.size());
    cmsghdr* const part_of_control = CMSG_FIRSTHDR(&packet);
    part_of_control->cmsg_level = SOL_SOCKET;
    part_of_control->cmsg_type = SCM_RIGHTS;
    part_of_control->cmsg_len = CMSG_LEN(sizeof(int) * message.fds.size());
    int* const numbers = reinterpret_cast<int*>(CMSG_DATA(part_of_control));
    for (size_t i = 0; i < message.fds.size(); ++i) numbers[i] = message.fds[i].get();
  }
  ssize_t sent = 0;
  wait_for(socket, POLLOUT, peer);
  while ((sent = ::sendmsg(socket, &packet, MSG_NOSIGNAL)) < 0 && errno == EINTR) {
  }
  if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) throw_error(ErrorKind::kGone, "the other end is gone");
  if (sent < 0) throw_errno("cannot send a message");
  send_rest(socket, reinterpret_cast<const char*>(&header) + sent, sizeof header - static_cast<size_t>(sent), peer);
  send_rest(socket, message.bytes.data(), message.bytes.size(), peer);
}

Message receive_message(int socket, uint64_t limit, const Peer* peer) {
  Header header;
  iovec part{&header, sizeof header};
  Control control{};
  msghdr packet{};
  packet.msg_iov = &part;
  packet.msg_iovlen = 1;
  packet.msg_control = control.bytes;
  packet.msg_controllen = sizeof control.bytes;
  ssize_t got = 0;
  wait_for(socket, POLLIN, peer);
  while ((got = ::recvmsg(socket, &packet, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  Message message;
  if (got > 0) {
    for (cmsghdr* at = CMSG_FIRSTHDR(&packet); at != nullptr; at = CMSG_NXTHDR(&packet, at)) {
      if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
      const int* const numbers = reinterpret_cast<const int*>(CMSG_DATA(at));
      for (size_t i = 0; i < (at->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) message.fds.emplace_back(numbers[i]);
    }
  }
  if (got == 0 || (got < 0 && errno == ECONNRESET)) throw_error(ErrorKind::kGone, "the other end is gone");
  if (got < 0) throw_errno("cannot receive a message");
  receive_rest(socket, reinterpret_cast<char*>(&header) + got, sizeof header - static_cast<size_t>(got), peer);
  if (header.bytes > limit || header.fds != message.fds.size() || (packet.msg_flags & MSG_CTRUNC) != 0)
    throw_error(ErrorKind::kUsage, "a message of {} bytes with {} descriptors is refused", header.bytes, header.fds);
  message.bytes.resize(header.bytes);
  receive_rest(socket, message.bytes.data(), message.bytes.size(), peer);
  return message;
}

void send_error(int socket, const Error& error, const Peer* peer) {
  Message message;
  message.put<uint8_t>(0).put(error.kind()).put(error.error_number()).put_text(error.what()).put_text(error.hint());
  send_message(socket, message, peer);
}

void send_reply(int socket, Message reply, const Peer* peer) {
  reply.bytes.insert(reply.bytes.begin(), 1);
  send_message(socket, reply, peer);
}

Message receive_reply(int socket, uint64_t limit) {
  Message message = receive_message(socket, limit);
  MessageReader reader(message);
  if (reader.take<uint8_t>() == 1) {
    message.bytes.erase(message.bytes.begin());
    return message;
  }
  const auto kind = reader.take<ErrorKind>();
  const int number = reader.take<int>();
  const std::string what(reader.take_text());
  throw Error(kind, what, number, std::string(reader.take_text()));
}

}  // namespace icp
