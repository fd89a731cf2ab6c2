// SPDX-License-Identifier: GPL-2.0-or-later
// Frames of the connections to icpctld, after the handshake (connection.h):
//
//   bytes 0..3    length of the payload, big endian
//   payload       a message of coordinator.proto
//   32 bytes      HMAC-SHA256 over: number of the frame in its direction (8 bytes, big endian, from 0), length, payload
//
// Each direction has a key of its own, so that a frame can neither be changed, repeated, left out, reordered nor sent
// back. Nothing is encrypted: what travels are job numbers, paths and sizes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace icp::net {

inline constexpr size_t kLengthBytes = 4, kMacBytes = 32, kKeyBytes = 32;
inline constexpr size_t kMaxToCoordinator = 1 << 20;  // bytes of payload
inline constexpr size_t kMaxFromUser = 16 << 10;      // of a peer that is neither root nor icpctld's user
inline constexpr size_t kMaxToPeer = 16 << 20;

using Key = std::array<unsigned char, kKeyBytes>;

// Random bytes from the kernel. Throws Error.
Key random_key();
// HMAC-SHA256 of `text` with the two halves as key: both sides of a connection compute the same.
Key derive_key(const Key& client_half, const Key& server_half, std::string_view text);
// SHA-256.
Key digest(const Key& key);

// Makes frames. Not thread-safe.
class FrameWriter {
 public:
  explicit FrameWriter(const Key& key) : key_(key) {}
  std::string frame(std::string_view payload);

 private:
  Key key_;
  uint64_t number_ = 0;
};

// Takes frames apart, from bytes as they come. Never holds more than one frame of the largest size and what was fed
// last. Not thread-safe.
class FrameReader {
 public:
  FrameReader(const Key& key, size_t max_payload) : key_(key), max_payload_(max_payload) {}
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole payload. Throws Error (kPermission) when a frame is too long or its MAC is wrong: the connection
  // must be closed then.
  std::optional<std::string> next();

 private:
  Key key_;
  size_t max_payload_;
  uint64_t number_ = 0;
  std::string buffer_;
};

}  // namespace icp::net
