// SPDX-License-Identifier: GPL-2.0-or-later
// An authenticated connection between icpctld and a peer, over TCP.
//
// Handshake, both messages of the form "SICP", length (4 bytes, big endian, at most kMaxCredential), MUNGE credential:
//   peer -> icpctld   payload: kClientMark, 32 random bytes; only icpctld's user can decode it
//   icpctld -> peer   payload: kServerMark, SHA-256 of those bytes, 32 random bytes; only the peer's user can decode it
// MUNGE says who each side runs as, and refuses a replayed credential; the digest ties the answer to the question; the
// two secrets never travel in the clear and make the keys of the frames (frame.h).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "coordinator/protocol/asio.h"
#include "coordinator/protocol/frame.h"
#include "coordinator/protocol/munge_auth.h"

namespace icp::net {

inline constexpr size_t kMaxCredential = 8192;  // bytes
inline constexpr size_t kMaxQueued = 64 << 20;  // bytes waiting for a peer that does not read
// icpctld says something to each agent at least so often; an agent that hears nothing for kSilence takes it for gone,
// be it that its machine is, or that it hangs.
inline constexpr std::chrono::milliseconds kHeartbeat{5'000}, kSilence{20'000};
inline constexpr uint16_t kDefaultPort = 6830;

// Which step's agent a peer is, by root's word: the end of the payload of its credential, "agent JOB STEP RESTARTS
// UID". An agent works with its user's rights; root's broker makes its credential.
struct AgentName {
  uint32_t job = 0;
  int32_t step = 0;
  uint32_t restarts = 0;
  uid_t uid = 0;
  std::string text() const;
  static std::optional<AgentName> parse(const std::string& text);
  friend bool operator==(const AgentName&, const AgentName&) = default;
};
// Whether these bytes are what a peer says in its credential when it connects, without a name.
bool is_client_payload(const std::string& payload);

// All members are to be called in the thread that runs the io_context; so are the handlers. Keeps itself alive while
// something is under way; close() ends that.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Pointer = std::shared_ptr<Connection>;
  using Socket = boost::asio::ip::tcp::socket;
  struct Handlers {
    std::function<void()> ready;                         // the handshake is done, uid() and gid() are known
    std::function<void(std::string payload)> received;   // a message
    std::function<void(const std::string& why)> closed;  // once, unless close() was called here
  };

  // Server side of an accepted socket. MUNGE is asked in `pool`, since a slow munged must not hold up everybody.
  // `handshake_timeout` limits each of the peer's two steps; what munged takes when a thousand peers come at once is
  // not held against them.
  static Pointer accept(Socket socket, const MungeAuth& munge, boost::asio::thread_pool& pool,
                        std::chrono::milliseconds handshake_timeout, Handlers handlers);
  // Client side of a connected socket. `server` is whom icpctld must run as (root is believed as well).
  // `handshake_timeout` limits all of it.
  static Pointer open(Socket socket, const MungeAuth& munge, boost::asio::thread_pool& pool, uid_t server,
                      std::chrono::milliseconds handshake_timeout, Handlers handlers);

  // Queues a message. A peer that lets kMaxQueued bytes pile up is dropped.
  void send(const std::string& payload);
  // Sends what is queued, then closes.
  void finish();
  // At once, without calling `closed`.
  void close();

  uid_t uid() const { return uid_; }
  gid_t gid() const { return gid_; }
  // The peer, if it is an agent whose credential says so.
  const std::optional<AgentName>& agent() const { return agent_; }
  std::string address() const { return address_; }
  // Bytes held for the peer at this moment.
  size_t queued() const { return queued_; }
  // True when bytes of the peer have arrived that nobody has read yet: whoever is late, it is not the peer.
  bool unread() const;

 private:
  Connection(Socket socket, const MungeAuth& munge, boost::asio::thread_pool& pool, bool server_side, uid_t server,
             std::chrono::milliseconds timeout, Handlers handlers);
  void begin();
  void expect(const char* late);
  void in_time();
  void send_credential();
  void read_credential();
  void credential_arrived(const std::string& text);
  void accept_peer(const Credential& credential);
  void accept_server(const Credential& credential);
  void keys_known();
  void read_frames();
  void write_next();
  void fail(const std::string& why);
  template <typename Work, typename Then>
  void in_pool(Work work, Then then);

  Socket socket_;
  MungeAuth munge_;
  boost::asio::thread_pool& pool_;
  boost::asio::steady_timer timer_;
  uint32_t step_ = 0;  // of the handshake, whose time timer_ limits
  const bool server_side_;
  const uid_t server_;
  const std::chrono::milliseconds timeout_;
  Handlers handlers_;
  std::string address_;
  uid_t uid_ = static_cast<uid_t>(-1);
  gid_t gid_ = static_cast<gid_t>(-1);
  std::optional<AgentName> agent_;
  Key client_half_{}, server_half_{};
  std::unique_ptr<FrameWriter> writer_;
  std::unique_ptr<FrameReader> reader_;
  std::deque<std::string> queue_;
  size_t queued_ = 0;
  bool writing_ = false, finishing_ = false, closed_ = false;
  std::string incoming_;  // being read
};

}  // namespace icp::net
