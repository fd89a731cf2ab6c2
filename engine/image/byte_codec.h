// SPDX-License-Identifier: GPL-2.0-or-later
// Little-endian numbers and variable-length numbers in image files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace icp {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "image files are little-endian and copied as they are");

// What is wrong with some bytes; whoever knows the file turns it into an Error with path and offset.
struct DecodeError {
  const char* what;
};

class ByteWriter {
 public:
  explicit ByteWriter(std::vector<uint8_t>& out) : out_(out) {}

  void u8(uint8_t value) { out_.push_back(value); }
  void u32(uint32_t value) { raw(&value, sizeof value); }
  void u64(uint64_t value) { raw(&value, sizeof value); }
  void text(std::string_view value) { raw(value.data(), value.size()); }
  void raw(const void* data, size_t bytes) {
    const auto* first = static_cast<const uint8_t*>(data);
    out_.insert(out_.end(), first, first + bytes);
  }
  // Seven bits a byte, lowest first, the top bit set on all but the last (LEB128, as in protobuf).
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_.push_back(static_cast<uint8_t>(value | 0x80));
    out_.push_back(static_cast<uint8_t>(value));
  }
  // Small magnitudes of either sign become small numbers: 0, -1, 1, -2 ... are 0, 1, 2, 3 ...
  void zigzag(int64_t value) { varint((static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63)); }

 private:
  std::vector<uint8_t>& out_;
};

// Reads from hostile bytes; throws DecodeError rather than pass the end.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  size_t left() const { return static_cast<size_t>(end_ - at_); }
  uint8_t u8() {
    need(1);
    return *at_++;
  }
  uint32_t u32() { return number<uint32_t>(); }
  uint64_t u64() { return number<uint64_t>(); }
  std::span<const uint8_t> raw(size_t bytes) {
    need(bytes);
    const std::span<const uint8_t> result(at_, bytes);
    at_ += bytes;
    return result;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = u8();
      if (shift == 63 && byte > 1) break;
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw DecodeError{"number too long"};
  }
  int64_t zigzag() {
    const uint64_t value = varint();
    return static_cast<int64_t>((value >> 1) ^ (0 - (value & 1)));
  }

 private:
  template <typename Number>
  Number number() {
    Number value;
    std::memcpy(&value, raw(sizeof value).data(), sizeof value);
    return value;
  }
  void need(size_t bytes) const {
    if (left() < bytes) throw DecodeError{"ends too early"};
  }

  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace icp
