// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/pmix_link.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "engine/base/error.h"

namespace icp {

using protocol::Packet;
namespace {

// On an address of this host's loopback network that hardly anybody else uses: the relay takes address and port along
// to other nodes.
UniqueFd listen_somewhere(std::string& address) {
  std::array<unsigned char, 3> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    throw_errno("cannot read random numbers");
  constexpr unsigned kSpan = 253;  // 127.2.2.2 to 127.254.254.254
  const std::string host =
      fmt::format("127.{}.{}.{}", 2 + random[0] % kSpan, 2 + random[1] % kSpan, 2 + random[2] % kSpan);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  ::inet_pton(AF_INET, host.c_str(), &name.sin_addr);
  socklen_t length = sizeof name;
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0 || ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &length) != 0)
    throw_errno("cannot listen at {}", host);
  address = fmt::format("{}:{}", host, ntohs(name.sin_port));
  return fd;
}

}  // namespace

void PmixLink::task_said(const Packet& ready) {
  if (!uri_.empty() || pmi_) return;
  pmi_ = ready.number("modepmi").has_value();
  uri_ = ready.get("pmix_uri");
  name_space_ = ready.get("pmix_name_space");
}

void PmixLink::make_sockets() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    throw_errno("cannot make a socket for the PMIx relay");
  control_.reset(ends[0]);
  relays_end_.reset(ends[1]);
  struct stat status {};
  if (::fstat(ends[1], &status) != 0) throw_errno("cannot look at a socket");
  dev_ = status.st_dev;
  ino_ = status.st_ino;
}

void PmixLink::let_run(Packet& run, const std::string& relay_program) {
  if (uri_.empty() && !pmi_) return;
  try {
    if (uri_.empty()) return let_run_with_pmi(run, relay_program);
    if (address_.empty()) {
      UniqueFd listener = listen_somewhere(address_);
      make_sockets();
      serve();
      run.set("relay", relay_program);
      run.fds = {listener.release(), relays_end_.release()};
    }
    run.set("pmix", address_);
  } catch (const Error& error) {
    spdlog::warn("no relay of {}: {}", pmi_ ? "PMI" : "PMIx", error.what());
    address_.clear();
    uri_.clear();
    pmi_ = false;
  }
}

// Each task on its own: what becomes its PMI_FD, through which it hands the relay the one that Slurm gave it.
void PmixLink::let_run_with_pmi(Packet& run, const std::string& relay_program) {
  if (!control_) make_sockets();
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw_errno("cannot make a socket for PMI");
  UniqueFd task(ends[0]);
  Packet client(protocol::kPmiClient);
  client.fds = {ends[1]};
  constexpr int kPatience = 1000;  // ms
  const bool told = protocol::send_packet(control_.get(), client, kPatience);
  client.close_fds();
  if (!told) throw_errno("cannot tell the relay of PMI of a task");
  run.set("pmi_relay", relay_program);
  run.fds = {task.release()};
  if (relays_end_) run.fds.push_back(relays_end_.release());
}

int PmixLink::restored_end() {
  if (uri_.empty() && !pmi_) return -1;
  make_sockets();
  return relays_end_.get();
}

void PmixLink::serve(const Fences& there) {
  if (!control_) return;
  if (uri_.empty() || address_.empty()) relays_end_.reset();  // restored, and not there if its image has no relay
  Packet packet(protocol::kPmixServer);
  packet.set("uri", uri_).set("name_space", name_space_);
  for (const auto& [kind, ended] : there) packet.set_number(kind, static_cast<int64_t>(ended));
  protocol::send_packet(control_.get(), packet);
}

Fences PmixLink::fences() {
  constexpr int kPatience = 10'000;  // ms
  Fences here;
  Packet packet;
  relays_end_.reset();  // an image may be without a relay: nobody answers then
  if (!control_ || !protocol::send_packet(control_.get(), Packet(protocol::kPmixAsk)) ||
      protocol::receive_packet(control_.get(), packet, kPatience) != protocol::Received::kPacket)
    return here;
  packet.close_fds();
  if (packet.type != protocol::kPmixFences) return here;
  for (const auto& [kind, text] : packet.fields)
    here[kind] = static_cast<uint64_t>(std::max<int64_t>(0, packet.number(kind).value_or(0)));
  return here;
}

void PmixLink::add_stream(std::vector<OuterStreamId>& outer) const {
  // The rank says which: 0 PMIx, 1 PMI.
  if (control_) outer.push_back({pmi_ ? 1 : 0, kPmixRelayStream, dev_, ino_, false});
}

}  // namespace icp
