// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/frame.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <sys/random.h>

#include "engine/base/error.h"

namespace icp::net {
namespace {

void put_be(std::string& out, uint64_t value, int bytes) {
  for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) out.push_back(static_cast<char>(value >> shift & 0xff));
}

Key mac_of(const Key& key, uint64_t number, std::string_view payload) {
  std::string text;
  text.reserve(8 + kLengthBytes + payload.size());
  put_be(text, number, 8);
  put_be(text, payload.size(), kLengthBytes);
  text.append(payload);
  Key mac;
  unsigned length = 0;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(text.data()),
           text.size(), mac.data(), &length) == nullptr) {
    throw_error(ErrorKind::kSystem, "OpenSSL cannot compute an HMAC");
  }
  return mac;
}

}  // namespace

Key random_key() {
  Key key;
  if (::getrandom(key.data(), key.size(), 0) != static_cast<ssize_t>(key.size()))
    throw_errno("cannot get random bytes");
  return key;
}

Key derive_key(const Key& client_half, const Key& server_half, std::string_view text) {
  std::string both(reinterpret_cast<const char*>(client_half.data()), client_half.size());
  both.append(reinterpret_cast<const char*>(server_half.data()), server_half.size());
  Key key;
  unsigned length = 0;
  if (HMAC(EVP_sha256(), both.data(), static_cast<int>(both.size()),
           reinterpret_cast<const unsigned char*>(text.data()), text.size(), key.data(), &length) == nullptr) {
    throw_error(ErrorKind::kSystem, "OpenSSL cannot compute an HMAC");
  }
  return key;
}

Key digest(const Key& key) {
  Key sum;
  SHA256(key.data(), key.size(), sum.data());
  return sum;
}

std::string FrameWriter::frame(std::string_view payload) {
  std::string out;
  out.reserve(kLengthBytes + payload.size() + kMacBytes);
  put_be(out, payload.size(), kLengthBytes);
  out.append(payload);
  const Key mac = mac_of(key_, number_++, payload);
  out.append(reinterpret_cast<const char*>(mac.data()), mac.size());
  return out;
}

std::optional<std::string> FrameReader::next() {
  if (buffer_.size() < kLengthBytes) return std::nullopt;
  size_t length = 0;
  for (size_t i = 0; i < kLengthBytes; i++) length = length << 8 | static_cast<unsigned char>(buffer_[i]);
  if (length > max_payload_) {
    throw_error(ErrorKind::kPermission, "a message of {} bytes is longer than the {} allowed", length, max_payload_);
  }
  const size_t whole = kLengthBytes + length + kMacBytes;
  if (buffer_.size() < whole) return std::nullopt;
  std::string payload = buffer_.substr(kLengthBytes, length);
  const Key mac = mac_of(key_, number_, payload);
  if (CRYPTO_memcmp(mac.data(), buffer_.data() + kLengthBytes + length, kMacBytes) != 0) {
    throw_error(ErrorKind::kPermission, "message {} of the connection is not authentic", number_);
  }
  ++number_;
  buffer_.erase(0, whole);
  return payload;
}

}  // namespace icp::net
