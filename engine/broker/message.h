// SPDX-License-Identifier: GPL-2.0-or-later
// Messages between a worker and the broker or the helper that work for it: bytes and descriptors over a stream socket.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp {

// What is sent: numbers, texts and arrays one after the other, as memory has them (both ends are one program on one
// machine), and up to kMostFds descriptors.
struct Message {
  static constexpr size_t kMostFds = 64;
  std::string bytes;
  std::vector<UniqueFd> fds;

  template <typename Value>
  Message& put(const Value& value) {
    static_assert(std::is_trivially_copyable_v<Value>);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Message& put_text(std::string_view text) {
    put<uint64_t>(text.size());
    bytes.append(text);
    return *this;
  }
  template <typename Value>
  Message& put_all(const std::vector<Value>& values) {
    static_assert(std::is_trivially_copyable_v<Value>);
    return put_text({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Value)});
  }
};

// Takes a message apart. Throws kUsage when it holds less than is asked for: whoever sent it is not to be believed.
class MessageReader {
 public:
  explicit MessageReader(const Message& message) : left_(message.bytes) {}

  template <typename Value>
  Value take() {
    static_assert(std::is_trivially_copyable_v<Value>);
    Value value;
    std::memcpy(&value, take_bytes(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view take_text() { return take_bytes(take<uint64_t>()); }
  template <typename Value>
  std::vector<Value> take_all() {
    const std::string_view text = take_text();
    if (text.size() % sizeof(Value) != 0) throw_error(ErrorKind::kUsage, "a message holds a broken array");
    std::vector<Value> values(text.size() / sizeof(Value));
    if (!values.empty()) std::memcpy(values.data(), text.data(), text.size());
    return values;
  }

 private:
  std::string_view take_bytes(uint64_t bytes) {
    if (bytes > left_.size()) throw_error(ErrorKind::kUsage, "a message is too short");
    const std::string_view taken = left_.substr(0, bytes);
    left_.remove_prefix(bytes);
    return taken;
  }
  std::string_view left_;
};

// The process at the other end, where it is not to be waited for without an eye on it.
struct Peer {
  int pidfd = -1;
  std::function<void()> idle;  // called now and then while nothing comes from it
};

// Throw kGone when the other end is closed, kSystem on other failures. Messages of more than `limit` bytes are refused
// with kUsage before memory is taken for them. With a peer: kGone, too, once that process has ended, whoever else has
// the other end by then.
void send_message(int socket, const Message& message, const Peer* peer = nullptr);
Message receive_message(int socket, uint64_t limit, const Peer* peer = nullptr);

// A reply is either what was asked for or an Error, which is thrown again at the asking end.
void send_error(int socket, const Error& error, const Peer* peer = nullptr);
void send_reply(int socket, Message reply, const Peer* peer = nullptr);
Message receive_reply(int socket, uint64_t limit);

}  // namespace icp
