// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/munge_auth.h"

#include <munge.h>

#include <cstdlib>
#include <memory>

#include "engine/base/error.h"

namespace icp::net {
namespace {

struct Context {
  explicit Context(const std::string& socket) : ctx(munge_ctx_create()) {
    if (ctx == nullptr) throw_error(ErrorKind::kSystem, "MUNGE: no memory");
    if (!socket.empty()) munge_ctx_set(ctx, MUNGE_OPT_SOCKET, socket.c_str());
  }
  ~Context() { munge_ctx_destroy(ctx); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  munge_ctx_t ctx;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

[[noreturn]] void fail(const Context& context, munge_err_t error, const char* doing) {
  const char* const detail = munge_ctx_strerror(context.ctx);
  const bool daemon = error == EMUNGE_SOCKET || error == EMUNGE_TIMEOUT;
  throw Error(
      daemon ? ErrorKind::kSystem : ErrorKind::kPermission,
      fmt::format("MUNGE cannot {} a credential: {}", doing, detail == nullptr ? munge_strerror(error) : detail), 0,
      daemon ? "is munged running, and munge_socket in icp.yaml right?" : "");
}

}  // namespace

std::string MungeAuth::encode(const std::string& payload, uid_t reader) const {
  if (maker_) return maker_(payload, reader);
  const Context context(socket_);
  munge_ctx_set(context.ctx, MUNGE_OPT_UID_RESTRICTION, reader);
  char* text = nullptr;
  const munge_err_t error = munge_encode(&text, context.ctx, payload.data(), static_cast<int>(payload.size()));
  const std::unique_ptr<char, Free> owned(text);
  if (error != EMUNGE_SUCCESS) fail(context, error, "make");
  return text;
}

Credential MungeAuth::decode(const std::string& text) const {
  const Context context(socket_);
  void* payload = nullptr;
  int length = 0;
  Credential credential;
  const munge_err_t error =
      munge_decode(text.c_str(), context.ctx, &payload, &length, &credential.uid, &credential.gid);
  const std::unique_ptr<void, Free> owned(payload);
  // An expired or replayed credential is decoded all the same: what it says is not to be used.
  if (error != EMUNGE_SUCCESS) fail(context, error, "accept");
  if (length > 0) credential.payload.assign(static_cast<const char*>(payload), static_cast<size_t>(length));
  return credential;
}

}  // namespace icp::net
