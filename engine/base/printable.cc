// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/printable.h"

#include <cstdint>

namespace icp {
namespace {

// Bytes of the character at the beginning of `text`, which is not empty; 0: this is no UTF-8.
size_t character(std::string_view text, uint32_t& code) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return code = byte(0), 1;
  const size_t length = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};  // a longer form of a smaller number hides it
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < length) return 0;
  code = byte(0) & (0x7fu >> length);
  for (size_t i = 1; i < length; i++) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  return code < kLeast[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : length;
}

bool is_control(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2066 && code <= 0x2069);
}

}  // namespace

std::string printable(std::string_view text) {
  std::string shown(text);
  for (size_t at = 0; at < shown.size();) {
    uint32_t code = 0;
    const size_t length = character(std::string_view(shown).substr(at), code);
    const size_t bytes = length == 0 ? 1 : length;
    if (length == 0 || is_control(code)) shown.replace(at, bytes, bytes, '?');
    at += bytes;
  }
  return shown;
}

}  // namespace icp
