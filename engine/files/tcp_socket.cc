// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/tcp_socket.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/base/error.h"
#include "engine/broker/broker.h"
#include "engine/files/held_connections.h"
#include "engine/files/inet_diag.h"
#include "engine/files/socket_option.h"
#include "engine/files/tcp_reconnect.h"
#include "engine/files/tcp_repair.h"

namespace icp {
namespace {

using Role = TcpFacts::Role;

constexpr uint32_t kDefaultWindow = 65535;  // bytes
constexpr const char* kLater = "try again in a moment";

// tcp_info of Linux 6.2 and what later ones add; headers of the build may be older or newer.
struct TcpInfo {
  union {
    tcp_info base;
    struct {
      unsigned char before[232];
      uint32_t receive_window;  // 0 where the kernel has none
      uint32_t rehash;
    } later;
  };
};
static_assert(sizeof(tcp_info) >= 232);

bool read_info(int fd, TcpInfo& info) {
  std::memset(&info, 0, sizeof info);  // all of the union
  socklen_t length = sizeof info;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0;
}

short poll_of(int fd) {
  pollfd request{fd, POLLIN | POLLPRI | POLLRDHUP, 0};
  return ::poll(&request, 1, 0) >= 0 ? request.revents : short{0};
}

Role role_of_state(uint8_t state, short events) {
  switch (state) {
    case kTcpListen:
      return Role::kListening;
    case kTcpSynSent:
    case kTcpSynReceived:
    case kTcpNewSynReceived:
      return Role::kConnecting;
    case kTcpClose:
      // A socket that has never been connected has nothing shut.
      if (events & POLLERR) return Role::kBroken;
      return (events & POLLRDHUP) ? Role::kEnded : Role::kUnconnected;
    default:
      return (events & POLLPRI) ? Role::kUrgent : Role::kOpenEnd;
  }
}

TcpFacts look_at(FileScan& scan, Description& description, uint64_t own_namespace) {
  TcpFacts facts;
  const int fd = scan.take(description);
  TcpInfo info;
  if (fd < 0 || !read_info(fd, info)) return facts;
  facts.local = InetAddress::local_of(fd);
  facts.state = info.base.tcpi_state;
  if (const uint64_t space = network_namespace_of(fd); space != 0 && own_namespace != 0 && space != own_namespace) {
    facts.role = Role::kForeign;
    return facts;
  }
  const short events = poll_of(fd);
  facts.role = role_of_state(facts.state, events);
  facts.shut_read = (events & POLLRDHUP) != 0;
  facts.sent_bytes = info.base.tcpi_bytes_sent - info.base.tcpi_bytes_retrans;
  facts.received_bytes = info.base.tcpi_bytes_received;
  facts.unsent = info.base.tcpi_notsent_bytes;
  facts.received_fin = has_received_fin(facts.state);
  facts.unaccepted = info.base.tcpi_unacked;  // of a listener; see tcp_get_info() in the kernel
  facts.backlog = info.base.tcpi_sacked;
  if (facts.role == Role::kOpenEnd || facts.role == Role::kConnecting || facts.role == Role::kUrgent) {
    const auto remote = InetAddress::peer_of(fd);
    if (remote) facts.remote = *remote;
    if (!remote && facts.role == Role::kOpenEnd) facts.role = Role::kGone;  // closed since
  }
  return facts;
}

// The sockets of the capsule that listen there, several of them with SO_REUSEPORT.
std::vector<uint32_t> listeners_at(const InetSurvey& survey, const InetAddress& address) {
  std::vector<uint32_t> listeners;
  for (const auto& [id, facts] : survey.tcp) {
    if (facts.role == Role::kListening && facts.local.port == address.port &&
        (facts.local.any() || facts.local.ip == address.ip)) {
      listeners.push_back(id);
    }
  }
  return listeners;
}

// Of a connection that nobody has accepted, what has been sent cannot be read.
bool has_sent_nothing(const TcpFacts& facts, const InetDiag& other) {
  return facts.state == kTcpEstablished && other.state == kTcpEstablished && facts.sent_bytes == 0 &&
         facts.unsent == 0 && !facts.shut_read && other.unread == 0;
}

Role judge_unaccepted(InetSurvey& survey, TcpFacts& facts, const InetDiag& other) {
  const std::vector<uint32_t> listeners = listeners_at(survey, facts.remote);
  if (listeners.empty()) return Role::kOutside;
  if (listeners.size() > 1 || !has_sent_nothing(facts, other)) return Role::kUnaccepted;
  facts.other = listeners.front();
  survey.tcp.at(facts.other).pending++;
  return Role::kPending;
}

// An end with no other end among the capsule's sockets: who has that one?
Role judge_alone(InetSurvey& survey, TcpFacts& facts, const AddressMap& addresses, InetDiagSocket& kernel) {
  if (!addresses.is_local(facts.remote)) return Role::kOpenEnd;
  const auto other = kernel.query(facts.remote, facts.local);
  if (!other || other->leftover()) {
    if (has_received_fin(facts.state)) return Role::kEnded;
    return other ? Role::kClosing : Role::kOpenEnd;
  }
  if (other->ino == 0) return judge_unaccepted(survey, facts, *other);
  return Role::kOpenEnd;  // a process outside of this capsule: perhaps another capsule on this host
}

void pair_ends(InetSurvey& survey) {
  std::map<std::pair<InetAddress, InetAddress>, uint32_t> ends;
  for (const auto& [id, facts] : survey.tcp)
    if (facts.role == Role::kOpenEnd || facts.role == Role::kUrgent)
      ends.emplace(std::pair(facts.local, facts.remote), id);
  std::optional<InetDiagSocket> kernel;
  const AddressMap addresses;
  for (auto& [id, facts] : survey.tcp) {
    if (facts.role != Role::kOpenEnd) continue;
    if (const auto other = ends.find({facts.remote, facts.local}); other != ends.end()) {
      facts.role = Role::kConnected;
      facts.other = other->second;
      continue;
    }
    if (!kernel) kernel.emplace();
    facts.role = judge_alone(survey, facts, addresses, *kernel);
    if (facts.role == Role::kOpenEnd) survey.open_ends.push_back({facts.local, facts.remote});
  }
}

bool is_connection(Role role) { return role == Role::kConnected || role == Role::kOpenEnd || role == Role::kKept; }

// From here on such a connection hears nothing any more.
void keep_outside(FileScan& scan, Descriptions descriptions) {
  const bool can = broker().privileged() && !scan.inet.several && (scan.checking() || scan.inet.held != nullptr);
  if (scan.inet.external != ExternalTcp::kKeep || !can) return;
  for (Description* description : descriptions) {
    TcpFacts& facts = scan.inet.tcp[description->id];
    if (facts.role != Role::kOpenEnd && facts.role != Role::kOutside) continue;
    const int fd = scan.take(*description);
    if (fd < 0 || !can_be_held(fd) || scan.is_pmix_relay(description->uses.front().process)) continue;
    facts.role = Role::kKept;
    if (!scan.checking()) scan.inet.held->hold(fd);
  }
}

// What the process has written goes on being delivered while it is stopped. It is copied first, here, and what has
// arrived only afterwards, in capture(): so that what is missing in the first copy is in the second one.
void capture_outgoing(FileScan& scan, Descriptions descriptions) {
  std::optional<TcpReader> reader;
  for (Description* description : descriptions) {
    const TcpFacts& facts = scan.inet.tcp[description->id];
    if (!is_connection(facts.role)) continue;
    if (!reader) reader.emplace();
    TcpReader::Outgoing outgoing = reader->outgoing(scan.take(*description));
    pb::TcpSocket& message = *description->message->mutable_tcp();
    message.set_send_queue(std::move(outgoing.data));
    message.set_shut_write(has_sent_fin(facts.state));
    message.set_sent(outgoing.next - (message.shut_write() ? 1 : 0));
  }
}

// Without repair mode: only between processes of this capsule, and at rest.
void check_without_repair(FileScan& scan, Description& description, const TcpFacts& facts) {
  const auto name = fmt::format("TCP connection {} to {}", facts.local.text(), facts.remote.text());
  if (facts.role != Role::kConnected) {
    scan.refuse(description, name + ", whose other end is in another part of the job", "have root take the checkpoint");
    return;
  }
  const int fd = scan.take(description);
  if (fd < 0) return;  // closed since: running processes
  const std::string why = cannot_reconnect(fd, facts, scan.inet.tcp.at(facts.other));
  if (!why.empty()) scan.refuse(description, name + " " + why, kLater, true);
}

void refuse_outside(FileScan& scan, Description& description, const TcpFacts& facts) {
  if (scan.inet.external != ExternalTcp::kRefuse || scan.is_pmix_relay(description.uses.front().process)) return;
  // With several capsules: another one may be about to accept it.
  scan.refuse(description,
              fmt::format("TCP connection {} to {}, which is not in the job", facts.local.text(), facts.remote.text()),
              "close the connection before a checkpoint, or let it be reset at a restart (external_tcp: reset), or go "
              "on (keep)",
              scan.inet.several);
}

void check_socket(FileScan& scan, Description& description) {
  TcpFacts& facts = scan.inet.tcp[description.id];
  const std::string ends = fmt::format("{} to {}", facts.local.text(), facts.remote.text());
  switch (facts.role) {
    case Role::kForeign:
      scan.refuse(description, fmt::format("TCP socket {} of another network namespace", facts.local.text()),
                  "close it before a checkpoint");
      break;
    case Role::kListening:
      if (facts.unaccepted == facts.pending) break;
      scan.refuse(description, fmt::format("connections to {} waiting to be accepted", facts.local.text()), kLater,
                  true);
      break;
    case Role::kUnaccepted:
      scan.refuse(description, fmt::format("TCP connection {} waiting to be accepted", ends), kLater, true);
      break;
    case Role::kConnecting:
      scan.refuse(description, fmt::format("TCP connection {} being made", ends), kLater, true);
      break;
    case Role::kClosing:
      scan.refuse(description, fmt::format("TCP connection {}, closed with data on its way", ends), kLater, true);
      break;
    case Role::kUrgent:
      scan.refuse(description, fmt::format("urgent data in TCP connection {}", ends), kLater, true);
      break;
    case Role::kOpenEnd:
      if (scan.inet.inside.count({facts.local, facts.remote})) break;
      facts.role = Role::kOutside;
      [[fallthrough]];
    case Role::kOutside:
      refuse_outside(scan, description, facts);
      break;
    default:
      break;
  }
  check_socket_options(scan, description);
  if (is_connection(facts.role) && !broker().privileged()) check_without_repair(scan, description, facts);
  if (is_connection(facts.role)) {
    char name[16] = "";
    socklen_t length = sizeof name;
    const int fd = scan.take(description);
    if (fd >= 0 && ::getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &length) == 0 && length > 0 && name[0] != '\0') {
      scan.refuse(description, fmt::format("TCP connection {} with {} in the kernel", ends, name),
                  "let the program do it by itself");
    }
  }
}

// A mark that urgent data have left: whoever reads stops there, and so would we.
bool has_urgent_mark(int fd, const TcpFacts& facts, InetDiagSocket& kernel) {
  int waiting = 0;
  if (::ioctl(fd, SIOCINQ, &waiting) != 0 || waiting < 0) return false;
  const auto seen = kernel.query(facts.local, facts.remote);
  // More may have come since; one that counts the mark stays behind for good.
  int again = 0;
  const uint32_t fin = seen && has_received_fin(seen->state) ? 1 : 0;  // counted, too
  return seen && seen->unread > static_cast<uint32_t>(waiting) + fin && ::ioctl(fd, SIOCINQ, &again) == 0 &&
         again == waiting;
}

// Looked for while the processes run: in the stop, urgent data that nobody has read are seen without asking.
void check_urgent_marks(FileScan& scan, Descriptions descriptions) {
  std::optional<InetDiagSocket> kernel;
  for (Description* description : descriptions) {
    const TcpFacts& facts = scan.inet.tcp[description->id];
    const int fd = is_connection(facts.role) ? scan.take(*description) : -1;
    if (fd < 0) continue;
    if (!kernel) kernel.emplace();
    if (has_urgent_mark(fd, facts, *kernel))
      scan.refuse(*description,
                  fmt::format("TCP connection {} to {}, with the mark of urgent data in what waits to be read",
                              facts.local.text(), facts.remote.text()),
                  kLater, true);
  }
}

void capture_connection(TcpReader& reader, const Description& description, int fd, const TcpFacts& facts,
                        pb::TcpSocket& message) {
  TcpInfo info;
  if (!read_info(fd, info)) throw_errno("cannot look at a TCP connection");
  TcpReader::Incoming incoming = reader.incoming(fd);
  if (incoming.state == kTcpClose || has_sent_fin(incoming.state) != message.shut_write()) {
    throw Error(ErrorKind::kBusy,
                fmt::format("TCP connection {} to {} (descriptor {}) ended while it was looked at", facts.local.text(),
                            facts.remote.text(), description.uses.front().fd),
                0, kLater);
  }
  const bool fin = has_received_fin(incoming.state);
  message.set_received(incoming.next - (fin ? 1 : 0));
  message.set_receive_queue(std::move(incoming.data));
  message.set_shut_read(fin || facts.shut_read);
  if (facts.role == Role::kKept) message.set_kernel_state(incoming.state);
  message.set_sack((info.base.tcpi_options & TCPI_OPT_SACK) != 0);
  message.set_timestamps((info.base.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0);
  constexpr uint32_t kTimestampOption = 12;  // bytes of each segment
  message.set_mss(
      std::min<uint32_t>(UINT16_MAX, info.base.tcpi_snd_mss + (message.timestamps() ? kTimestampOption : 0)));
  if (info.base.tcpi_options & TCPI_OPT_WSCALE) {
    message.set_send_scale(info.base.tcpi_snd_wscale);
    message.set_receive_scale(info.base.tcpi_rcv_wscale);
  }
  message.set_timestamp(static_cast<uint32_t>(socket_option(fd, IPPROTO_TCP, TCP_TIMESTAMP)));
  message.set_send_window(info.base.tcpi_snd_wnd);
  message.set_receive_window(info.later.receive_window != 0 ? info.later.receive_window : kDefaultWindow);
}

pb::TcpSocket::State image_state(Role role) {
  switch (role) {
    case Role::kListening:
      return pb::TcpSocket::LISTENING;
    case Role::kConnected:
    case Role::kOpenEnd:
    case Role::kPending:
      return pb::TcpSocket::CONNECTED;
    case Role::kKept:
      return pb::TcpSocket::OUTSIDE;
    case Role::kEnded:
      return pb::TcpSocket::ENDED;
    case Role::kOutside:
    case Role::kBroken:
      return pb::TcpSocket::RESET;
    default:
      return pb::TcpSocket::UNCONNECTED;
  }
}

void drop_filters(SocketOptions& options) {
  options.erase(std::remove_if(options.begin(), options.end(),
                               [](const pb::SocketOption& option) {
                                 return option.level() == SOL_SOCKET && option.name() == SO_ATTACH_FILTER;
                               }),
                options.end());
}

void capture_socket(FileScan& scan, Description& description, std::optional<TcpReader>& reader) {
  const int fd = scan.take(description);
  const TcpFacts& facts = scan.inet.tcp[description.id];
  if (facts.role == Role::kGone) throw_error(ErrorKind::kGone, "a TCP socket vanished while it was looked at");
  pb::TcpSocket& message = *description.message->mutable_tcp();
  message.set_state(image_state(facts.role));
  message.set_v6(socket_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET6);
  facts.local.store(*message.mutable_local());
  if (facts.role == Role::kPending) message.set_pending_of(facts.other);
  const bool unused = message.state() == pb::TcpSocket::UNCONNECTED || message.state() == pb::TcpSocket::LISTENING;
  capture_socket_options(fd, !unused, *message.mutable_options());
  if (facts.role == Role::kKept) drop_filters(*message.mutable_options());  // it is held by one of ours
  capture_socket_buffers(fd, *message.mutable_buffers());
  if (facts.role == Role::kListening) message.set_backlog(facts.backlog);
  if (is_connection(facts.role)) {
    facts.remote.store(*message.mutable_remote());
    if (!reader) reader.emplace();
    capture_connection(*reader, description, fd, facts, message);
  } else if (!unused) {
    facts.remote.store(*message.mutable_remote());
    message.set_shut_write(facts.state == kTcpClose || has_sent_fin(facts.state));
    int waiting = 0;
    if (facts.role != Role::kOutside && ::ioctl(fd, SIOCINQ, &waiting) == 0 && waiting > 0) {
      message.set_receive_queue(peek_stream(fd, static_cast<size_t>(waiting)));
    }
  }
}

class TcpSocketKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kTcp; }

  bool recognises(FileScan& scan, Description& description) const override {
    if (!S_ISSOCK(description.stat.st_mode)) return false;
    const int fd = scan.take(description);
    if (fd < 0 || socket_option(fd, SOL_SOCKET, SO_PROTOCOL) != IPPROTO_TCP) return false;
    const int domain = socket_option(fd, SOL_SOCKET, SO_DOMAIN);
    return (domain == AF_INET || domain == AF_INET6) && socket_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM;
  }

  void survey(FileScan& scan, Descriptions descriptions) const override {
    const uint64_t own_namespace = own_network_namespace();
    for (Description* description : descriptions)
      scan.inet.tcp[description->id] = look_at(scan, *description, own_namespace);
    pair_ends(scan.inet);
    keep_outside(scan, descriptions);
    if (!scan.checking()) capture_outgoing(scan, descriptions);
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) check_socket(scan, *description);
    if (scan.checking()) check_urgent_marks(scan, descriptions);
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    std::optional<TcpReader> reader;
    for (Description* description : descriptions) capture_socket(scan, *description, reader);
  }

  void create(RestoreContext& context, ImageFiles files) const override { create_tcp_sockets(context, files); }
};

}  // namespace

const FileKind& tcp_socket_kind() {
  static const TcpSocketKind kind;
  return kind;
}

}  // namespace icp
