// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/pmix/message.h"

#include <arpa/inet.h>

#include <cstring>
#include <stdexcept>

namespace icp::pmix {
namespace {

uint32_t number_at(const std::string& bytes, size_t offset) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

void put(std::string& bytes, uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); }

// flex128 of a signed number that is not negative: seven bits a byte, the lowest first, after a shift by one.
std::string flexible(size_t value) {
  std::string bytes;
  uint64_t rest = static_cast<uint64_t>(value) << 1;
  do {
    const auto low = static_cast<unsigned char>(rest & 0x7f);
    rest >>= 7;
    bytes += static_cast<char>(rest != 0 ? low | 0x80 : low);
  } while (rest != 0);
  return bytes;
}

// Reads one at `offset` and moves that behind it.
std::optional<size_t> flexible_at(const std::string& bytes, size_t& offset) {
  uint64_t value = 0;
  constexpr int kMostBits = 35;
  for (int shift = 0; shift < kMostBits && offset < bytes.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes[offset++]);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return static_cast<size_t>(value >> 1);
  }
  return std::nullopt;
}

std::string text(const std::string& value) { return flexible(value.size() + 1) + value + std::string(1, '\0'); }

// An answer to a request for data is its status and one block, whose length is that of the rest.
constexpr std::string_view kStatusAndBlock("\x02\x00\x02", 3);

}  // namespace

std::string Message::encode() const {
  std::string bytes;
  bytes.reserve(kHeaderBytes + body.size());
  put(bytes, htonl(sender));
  put(bytes, htonl(tag));
  put(bytes, htonl(static_cast<uint32_t>(body.size())));
  put(bytes, 0);
  return bytes + body;
}

std::optional<Message> take_message(std::string& bytes) {
  if (bytes.size() < kHeaderBytes) return std::nullopt;
  const size_t length = ntohl(number_at(bytes, 8));
  if (length > kMostBytes) throw std::runtime_error("a PMIx message is too long");
  if (bytes.size() < kHeaderBytes + length) return std::nullopt;
  Message message{ntohl(number_at(bytes, 0)), ntohl(number_at(bytes, 4)), bytes.substr(kHeaderBytes, length)};
  bytes.erase(0, kHeaderBytes + length);
  return message;
}

std::optional<Hello> take_hello(std::string& bytes) {
  if (bytes.size() < kHeaderBytes) return std::nullopt;
  const size_t length = number_at(bytes, 8);
  if (length > kMostHello) throw std::runtime_error("a PMIx client's first message is too long");
  if (bytes.size() < kHeaderBytes + length) return std::nullopt;
  const size_t all = kHeaderBytes + length;
  const size_t module = bytes.find('\0', kHeaderBytes);
  const size_t credential = module + 1 + sizeof(uint32_t);
  if (module >= all || credential > all) throw std::runtime_error("no PMIx client");
  const size_t kind = credential + ntohl(number_at(bytes, module + 1));
  if (kind >= all || bytes[kind] != 0) throw std::runtime_error("no process of a job under PMIx");
  const size_t end = bytes.find('\0', kind + 1);
  if (end >= all) throw std::runtime_error("no PMIx client");
  Hello hello{bytes.substr(0, kind + 1), bytes.substr(kind + 1, end - kind - 1), bytes.substr(end, all - end)};
  bytes.erase(0, all);
  return hello;
}

std::string Hello::encode() const {
  std::string bytes = before + name_space + after;
  const auto length = static_cast<uint32_t>(bytes.size() - kHeaderBytes);
  std::memcpy(bytes.data() + 8, &length, sizeof length);
  return bytes;
}

std::optional<uint8_t> command_of(std::string_view body) {
  constexpr char kOne = 2;  // flex128 of the number of commands
  if (body.size() < 2 || body[0] != kOne) return std::nullopt;
  return static_cast<uint8_t>(body[1]);
}

std::string with_name_space(const std::string& body, const std::string& from, const std::string& to) {
  if (from == to) return body;
  const std::string old_text = text(from), new_text = text(to);
  std::string changed;
  size_t done = 0;
  for (size_t at = body.find(old_text); at != std::string::npos; at = body.find(old_text, done)) {
    changed.append(body, done, at - done).append(new_text);
    done = at + old_text.size();
  }
  changed.append(body, done, std::string::npos);
  if (changed.size() == body.size() || !body.starts_with(kStatusAndBlock)) return changed;
  size_t begin = kStatusAndBlock.size();
  const auto length = flexible_at(body, begin);
  if (!length || *length != body.size() - begin) return changed;
  const std::string block = changed.substr(begin);
  return std::string(kStatusAndBlock) + flexible(block.size()) + block;
}

}  // namespace icp::pmix
