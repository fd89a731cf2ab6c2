// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/pmi/relay.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace icp::pmi {
namespace {

// The wire format 1.1: lines of words "name=value", of which the first is cmd, or a block from mcmd to endcmd. A task
// asks, and waits for the answer.
constexpr std::string_view kEndOfBlock = "endcmd\n", kBarrierIn = "cmd=barrier_in\n", kFinalize = "cmd=finalize\n";

std::string word(const std::string& line, std::string_view name) {
  const std::string wanted = std::string(name) + "=";
  size_t at = 0;
  while ((at = line.find(wanted, at)) != std::string::npos) {
    if (at == 0 || line[at - 1] == ' ') {
      const size_t begin = at + wanted.size();
      // A value has no blanks, but for that of put, which is the last word.
      const size_t end = name == "value" ? line.find('\n', begin) : line.find_first_of(" \n", begin);
      return line.substr(begin, end - begin);
    }
    at += wanted.size();
  }
  return {};
}

bool is_command(const std::string& line, std::string_view name) { return word(line, "cmd") == name; }

// Takes the first request, if it is whole.
std::string take_request(std::string& bytes) {
  size_t end;
  if (bytes.starts_with("mcmd=")) {
    end = bytes.find(kEndOfBlock);
    if (end == std::string::npos) return {};
    end += kEndOfBlock.size();
  } else {
    end = bytes.find('\n');
    if (end == std::string::npos) return {};
    end++;
  }
  std::string request = bytes.substr(0, end);
  bytes.erase(0, end);
  return request;
}

// Appends what is there, and takes a descriptor that comes beside it. False when the other side is gone.
bool receive(int fd, std::string& bytes, UniqueFd* beside) {
  for (;;) {
    char part[4096];
    iovec where{part, sizeof part};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &where;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 && errno == EAGAIN;
    const cmsghdr* const header = CMSG_FIRSTHDR(&message);
    if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
      int came;
      std::memcpy(&came, CMSG_DATA(header), sizeof came);
      UniqueFd taken(came);
      if (beside != nullptr && !*beside) {
        *beside = std::move(taken);
        continue;  // the byte it came with says nothing
      }
    }
    bytes.append(part, static_cast<size_t>(got));
  }
}

bool transmit(int fd, std::string& bytes) {
  while (fd >= 0 && !bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) bytes.erase(0, static_cast<size_t>(sent));
    if (sent < 0 && errno == EAGAIN) return true;
    if (sent < 0 && errno != EINTR) return false;
  }
  return true;
}

}  // namespace

void Relay::run() {
  for (;;) {
    std::vector<pollfd> polled{{control_.get(), POLLIN, 0}};
    bool work = false;
    for (const Client& client : clients_) {
      const auto wanted = [](const std::string& to) {
        return static_cast<short>(to.empty() ? POLLIN : POLLIN | POLLOUT);
      };
      polled.push_back({client.fd.get(), wanted(client.to_client), 0});
      polled.push_back({client.server.get(), wanted(client.to_server), 0});
      work |= static_cast<bool>(client.fd);
    }
    if (agent_gone_ && !work) return;
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;
    size_t next = 1;
    for (auto at = clients_.begin(); at != clients_.end(); next += 2) {
      Client& client = *at;
      bool stays = true;
      if (client.server && polled[next + 1].revents != 0) read_server(client);
      if (client.fd && polled[next].revents != 0) stays = read_client(client);
      if (!transmit(client.fd.get(), client.to_client)) client.fd.reset();
      if (!transmit(client.server.get(), client.to_server)) client.server.reset();
      at = stays ? std::next(at) : clients_.erase(at);
    }
    if (polled[0].revents != 0) on_control();
  }
}

void Relay::on_control() {
  protocol::Packet packet;
  const protocol::Received got = protocol::receive_packet(control_.get(), packet, 0);
  if (got == protocol::Received::kClosed || got == protocol::Received::kBroken) {
    agent_gone_ = true;
    control_.reset();
  } else if (got == protocol::Received::kPacket && packet.type == protocol::kPmiClient && packet.fds.size() == 1) {
    clients_.emplace_back().fd.reset(packet.fds[0]);
    packet.fds.clear();
  } else if (got == protocol::Received::kPacket && packet.type == protocol::kPmixServer) {
    new_manager(packet);
  } else if (got == protocol::Received::kPacket && packet.type == protocol::kPmixAsk) {
    tell_barriers();
  }
  packet.close_fds();
}

void Relay::tell_barriers() {
  protocol::Packet packet(protocol::kPmixFences);
  for (const Client& client : clients_) barriers_ = std::max(barriers_, client.barriers);
  packet.set_number(kBarrierKey, static_cast<int64_t>(barriers_));
  protocol::send_packet(control_.get(), packet);
}

// ---- after a restart --------------------------------------------------------------------------

// The connections are those to the new step's manager, to which its proxies have introduced the tasks.
void Relay::new_manager(const protocol::Packet& packet) {
  restarted_ = true;
  for (const Client& client : clients_) barriers_ = std::max(barriers_, client.barriers);
  barriers_ = std::max(barriers_, static_cast<uint64_t>(packet.number(kBarrierKey).value_or(0)));
  for (Client& client : clients_) {
    if (client.state == State::kRaw) client.server.reset(), client.fd.reset();  // it sees that its manager is gone
    if (!client.server) continue;
    client.from_server.clear();
    client.to_server.clear();
    client.next.clear();
    client.state = State::kPuts;
    catch_up(client);
  }
}

// The next thing to say to a new manager, which answers each.
void Relay::catch_up(Client& client) {
  if (client.state == State::kPuts) {
    const auto found = client.kept.upper_bound(client.next);
    if (found != client.kept.end()) {
      client.next = found->first;
      client.to_server += found->second;
      return;
    }
    client.state = State::kBarrier;
    // In every node's relay or in none: if no task has passed a barrier, nobody can have asked for what was put.
    if (barriers_ != 0) {
      client.to_server += kBarrierIn;
      return;
    }
  }
  if (client.state == State::kBarrier && client.finalized) {
    client.state = State::kFinalize;
    client.to_server += kFinalize;
    return;
  }
  client.state = State::kLive;
  go_on(client);
}

void Relay::go_on(Client& client) {
  if (is_command(client.pending, "init")) {
    client.to_client += "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1\n";
    client.introduced = true;
    client.pending.clear();
  } else if (is_command(client.pending, "barrier_in") && client.barriers < barriers_) {
    on_answer(client, "cmd=barrier_out rc=0\n");
  } else {
    client.to_server += client.pending;
  }
  take_requests(client);
}

// ---- both sides -------------------------------------------------------------------------------

bool Relay::read_client(Client& client) {
  const bool there = receive(client.fd.get(), client.from_client, client.server ? nullptr : &client.server);
  take_requests(client);
  if (there) return true;
  client.fd.reset();
  client.to_client.clear();
  // What one that has ended well has put is still asked for by others, after a restart, too.
  return client.finalized;
}

void Relay::take_requests(Client& client) {
  if (client.state == State::kRaw) {
    client.to_server += client.from_client;
    client.from_client.clear();
  }
  while (client.server && client.state == State::kLive) {
    std::string request = take_request(client.from_client);
    if (request.empty()) break;
    const bool init = is_command(request, "init");
    // PMI-2's own format begins with the same line: it is handed on, and has no restart.
    if (init && word(request, "pmi_version") != "1") {
      client.state = State::kRaw;
      client.to_server += request + client.from_client;
      client.from_client.clear();
      return;
    }
    client.pending += request;
    if (init && restarted_ && !client.introduced) {
      go_on(client);
      return;
    }
    client.to_server += request;
  }
}

void Relay::read_server(Client& client) {
  const bool there = receive(client.server.get(), client.from_server, nullptr);
  if (client.state == State::kRaw) {
    client.to_client += client.from_server;
    client.from_server.clear();
  }
  while (client.state != State::kRaw) {
    const size_t end = client.from_server.find('\n');
    if (end == std::string::npos) break;
    const std::string line = client.from_server.substr(0, end + 1);
    client.from_server.erase(0, end + 1);
    if (client.state == State::kLive) {
      on_answer(client, line);
    } else {
      catch_up(client);
    }
  }
  if (there) return;
  client.server.reset();
  // As the task sees it without us: what is left, then the end.
  transmit(client.fd.get(), client.to_client);
  if (client.fd) ::shutdown(client.fd.get(), SHUT_RDWR);
}

void Relay::on_answer(Client& client, const std::string& line) {
  note(client, line);
  client.pending.clear();
  client.to_client += line;
}

void Relay::note(Client& client, const std::string& answer) {
  const std::string& request = client.pending;
  const std::string command = word(request, "cmd");
  if (command == "init") client.introduced = true;
  if (command == "put") client.kept["put " + word(request, "key")] = request;
  if (command == "publish_name") client.kept["name " + word(request, "service")] = request;
  if (command == "unpublish_name") client.kept.erase("name " + word(request, "service"));
  if (command == "barrier_in" && is_command(answer, "barrier_out")) client.barriers++;
  if (command == "finalize") client.finalized = true;
}

}  // namespace icp::pmi
