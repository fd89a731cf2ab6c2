// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/protocol/packet.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace icp::protocol {

Packet& Packet::set(std::string_view key, std::string_view value) {
  // A NUL would end the value early on the other side; nothing of ours holds one.
  fields.insert_or_assign(std::string(key), std::string(value.substr(0, value.find('\0'))));
  return *this;
}

Packet& Packet::set_number(std::string_view key, int64_t value) { return set(key, std::to_string(value)); }

std::string Packet::get(std::string_view key) const {
  const auto found = fields.find(key);
  return found == fields.end() ? std::string() : found->second;
}

std::optional<int64_t> Packet::number(std::string_view key) const {
  const auto found = fields.find(key);
  if (found == fields.end()) return std::nullopt;
  const char* const end = found->second.data() + found->second.size();
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(found->second.data(), end, value);
  if (error != std::errc() || stop != end || found->second.empty()) return std::nullopt;
  return value;
}

void Packet::close_fds() {
  for (const int fd : fds) ::close(fd);
  fds.clear();
}

std::string encode(const Packet& packet) {
  std::string bytes = packet.type;
  bytes += '\0';
  for (const auto& [key, value] : packet.fields) {
    bytes += key;
    bytes += '=';
    bytes += value;
    bytes += '\0';
  }
  return bytes;
}

std::optional<Packet> decode(std::string_view bytes) {
  Packet packet;
  bool first = true;
  while (!bytes.empty()) {
    const size_t end = bytes.find('\0');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view item = bytes.substr(0, end);
    bytes.remove_prefix(end + 1);
    if (first) {
      if (item.empty()) return std::nullopt;
      packet.type = item;
      first = false;
      continue;
    }
    const size_t equals = item.find('=');
    if (equals == 0 || equals == std::string_view::npos) return std::nullopt;
    packet.set(item.substr(0, equals), item.substr(equals + 1));
  }
  if (first) return std::nullopt;
  return packet;
}

bool send_packet(int socket, const Packet& packet, int timeout_ms) {
  std::string bytes = encode(packet);
  if (bytes.size() > kMaxPacket || packet.fds.size() > kMaxFds) {
    errno = EMSGSIZE;
    return false;
  }
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!packet.fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * packet.fds.size());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * packet.fds.size());
    std::memcpy(CMSG_DATA(header), packet.fds.data(), sizeof(int) * packet.fds.size());
  }
  const int flags = MSG_NOSIGNAL | (timeout_ms < 0 ? 0 : MSG_DONTWAIT);
  ssize_t sent = 0;
  for (bool waited = false;; waited = true) {
    do {
      sent = ::sendmsg(socket, &message, flags);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0 || errno != EAGAIN || waited || timeout_ms <= 0) break;
    pollfd entry{socket, POLLOUT, 0};
    while (::poll(&entry, 1, timeout_ms) < 0 && errno == EINTR) {
    }
  }
  return sent == static_cast<ssize_t>(bytes.size());
}

namespace {

// Takes the descriptors that came beside a packet.
void take_fds(msghdr& message, std::vector<int>& fds) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      fds.push_back(fd);
    }
  }
}

}  // namespace

Received receive_packet(int socket, Packet& packet, int timeout_ms) {
  if (timeout_ms >= 0) {
    pollfd entry{socket, POLLIN, 0};
    int ready = 0;
    do {
      ready = ::poll(&entry, 1, timeout_ms);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) return Received::kNothing;
    if (ready < 0) return Received::kBroken;
  }
  std::string bytes(kMaxPacket, '\0');
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got == 0 || (got < 0 && errno == ECONNRESET)) return Received::kClosed;
  if (got < 0) return Received::kBroken;
  std::vector<int> fds;
  take_fds(message, fds);
  auto decoded = decode(std::string_view(bytes).substr(0, static_cast<size_t>(got)));
  if (!decoded || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    for (const int fd : fds) ::close(fd);
    return Received::kBroken;
  }
  packet = std::move(*decoded);
  packet.fds = std::move(fds);
  return Received::kPacket;
}

std::string step_name(int32_t step) {
  if (step == kBatchStep) return "batch";
  if (step == kExternStep) return "extern";
  return std::to_string(static_cast<uint32_t>(step));
}

Packet StepFacts::to_packet() const {
  std::string list;
  for (const gid_t group : groups) list += (list.empty() ? "" : ",") + std::to_string(group);
  Packet packet(kHello);
  packet.set_number("job", job).set_number("step", step).set_number("uid", uid).set_number("gid", gid);
  packet.set("groups", list).set("node", node).set_number("nodes", nodes);
  packet.set_number("local_tasks", local_tasks).set_number("total_tasks", total_tasks);
  packet.set_number("restarts", restarts);
  packet.set("interval", interval).set("checkpoint_dir", checkpoint_dir).set("restart_dir", restart_dir);
  packet.set("map_path", map_path).set("checkpoint_files", checkpoint_files);
  packet.set("checkpoint_on", checkpoint_on).set_number("requeue_max", requeue_max);
  packet.set("slurm_conf", slurm_conf);
  packet.set_number("verbose", verbose).set_number("private_ipc", private_ipc).set_number("launched", launched);
  return packet;
}

std::optional<StepFacts> StepFacts::from_packet(const Packet& packet) {
  const auto job = packet.number("job"), step = packet.number("step"), uid = packet.number("uid"),
             gid = packet.number("gid"), local = packet.number("local_tasks"), total = packet.number("total_tasks"),
             nodes = packet.number("nodes");
  if (packet.type != kHello || !job || !step || !uid || !gid || !local || !total || !nodes) return std::nullopt;
  StepFacts facts;
  facts.job = static_cast<uint32_t>(*job);
  facts.step = static_cast<int32_t>(*step);
  facts.uid = static_cast<uid_t>(*uid);
  facts.gid = static_cast<gid_t>(*gid);
  facts.local_tasks = static_cast<uint32_t>(*local);
  facts.total_tasks = static_cast<uint32_t>(*total);
  facts.restarts = static_cast<uint32_t>(packet.number("restarts").value_or(0));
  facts.nodes = static_cast<uint32_t>(*nodes);
  const std::string list = packet.get("groups");
  for (size_t at = 0; at < list.size();) {
    gid_t group = 0;
    const auto [stop, error] = std::from_chars(list.data() + at, list.data() + list.size(), group);
    if (error != std::errc()) return std::nullopt;
    facts.groups.push_back(group);
    at = static_cast<size_t>(stop - list.data()) + 1;
  }
  facts.node = facts.capsule = packet.get("node");
  // Slurm gives a batch step the job's number of tasks as its total; it is one task on one node all the same.
  facts.capsules = facts.step >= 0 && facts.total_tasks != facts.local_tasks ? facts.nodes : 1;
  facts.interval = packet.get("interval");
  facts.checkpoint_dir = packet.get("checkpoint_dir");
  facts.restart_dir = packet.get("restart_dir");
  facts.checkpoint_on = packet.get("checkpoint_on");
  facts.map_path = packet.get("map_path");
  facts.checkpoint_files = packet.get("checkpoint_files");
  facts.requeue_max = static_cast<uint32_t>(packet.number("requeue_max").value_or(0));
  facts.slurm_conf = packet.get("slurm_conf");
  facts.verbose = packet.number("verbose").value_or(0) != 0;
  facts.private_ipc = packet.number("private_ipc").value_or(0) != 0;
  facts.launched = static_cast<uint32_t>(packet.number("launched").value_or(0));
  return facts;
}

}  // namespace icp::protocol
