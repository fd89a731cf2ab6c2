// SPDX-License-Identifier: GPL-2.0-or-later
// Who runs at the other end, by MUNGE.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

namespace icp::net {

struct Credential {
  uid_t uid = 0;  // of who made it
  gid_t gid = 0;
  std::string payload;
};

// Talks to munged through its socket. Each call is a short blocking exchange. Thread-safe.
class MungeAuth {
 public:
  // `socket`: munged's socket; empty: MUNGE's default (or $MUNGE_SOCKET).
  // `maker`: makes credentials instead of this process, in another one's name; thread-safe. May be empty.
  using Maker = std::function<std::string(const std::string& payload, uid_t reader)>;
  explicit MungeAuth(std::string socket, Maker maker = {}) : socket_(std::move(socket)), maker_(std::move(maker)) {}
  // A credential that only `reader` can decode, once. Throws Error naming what to look at.
  std::string encode(const std::string& payload, uid_t reader) const;
  // Throws Error (kPermission) for one that is expired, replayed, forged or meant for somebody else.
  Credential decode(const std::string& text) const;

 private:
  std::string socket_;
  Maker maker_;
};

}  // namespace icp::net
