// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/pmix/relay.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "coordinator/pmix/peer_check.h"

namespace icp::pmix {
namespace {

constexpr size_t kIntroduction = 8;  // bytes of the server's answer to a hello: its status, the client's index
constexpr size_t kStatus = 4;
constexpr rlim_t kOtherFds = 32;

bool is_kept(uint8_t command) {
  return command == kCommit || command == kRegister || command == kDeregister || command == kJobControl ||
         command == kFinalize;
}

bool is_answered(const Message& message, uint8_t command) {
  return message.tag >= kFirstTag && command != kDeregister && command != kStopOutput;
}

uint32_t number_at(const std::string& bytes, size_t offset) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return ntohl(value);
}

// FNV-1a: what stands for a kind of fence among nodes.
std::string key_of(const std::string& body) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char byte : body) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  char text[20];
  std::snprintf(text, sizeof text, "f%016" PRIx64, hash);
  return text;
}

// Appends what is there. False when the other side is gone.
bool receive(int fd, std::string& bytes) {
  for (;;) {
    char part[64 << 10];
    const ssize_t got = ::recv(fd, part, sizeof part, MSG_DONTWAIT);
    if (got > 0) {
      bytes.append(part, static_cast<size_t>(got));
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    return got < 0 && errno == EAGAIN;
  }
}

// Sends what goes. A header is never torn apart unless the socket is full: PMIx reads it in one go.
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

Server parse_server(const std::string& uri, const std::string& name_space) {
  constexpr std::string_view kScheme = ";tcp4://";
  Server server;
  server.name_space = name_space;
  const size_t scheme = uri.find(kScheme), colon = uri.rfind(':');
  if (scheme != std::string::npos && colon != std::string::npos && colon > scheme + kScheme.size()) {
    server.host = uri.substr(scheme + kScheme.size(), colon - scheme - kScheme.size());
    std::from_chars(uri.data() + colon + 1, uri.data() + uri.size(), server.port);
  }
  in_addr address{};
  if (server.port == 0 || name_space.empty() || ::inet_pton(AF_INET, server.host.c_str(), &address) != 1)
    throw std::runtime_error("no PMIx server at \"" + uri + "\"");
  return server;
}

// ---- the loop ---------------------------------------------------------------------------------

void Relay::run() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const size_t most = limit.rlim_cur > 2 * kOtherFds ? (limit.rlim_cur - kOtherFds) / 2 : 1;
  for (;;) {
    // Two descriptors a client: who comes when there are no more waits.
    const auto open = std::count_if(clients_.begin(), clients_.end(), [](const Client& one) { return bool(one.fd); });
    const int listener = static_cast<size_t>(open) < most ? listener_.get() : -1;
    std::vector<pollfd> polled{{control_.get(), POLLIN, 0}, {listener, POLLIN, 0}};
    bool work = false;
    for (Client& client : clients_) {
      const auto wanted = [](const std::string& to) {
        return static_cast<short>(to.empty() ? POLLIN : POLLIN | POLLOUT);
      };
      polled.push_back({client.fd.get(), wanted(client.to_client), 0});
      polled.push_back({client.server.get(), wanted(client.to_server), 0});
      work |= static_cast<bool>(client.fd);
    }
    if (agent_gone_ && !work) return;
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;
    size_t next = 2;
    for (auto at = clients_.begin(); at != clients_.end(); next += 2) {
      Client& client = *at;
      bool stays = true;
      try {
        if (client.server && polled[next + 1].revents != 0) read_server(client);
        if (client.fd && polled[next].revents != 0) stays = read_client(client);
        if (!transmit(client.fd.get(), client.to_client)) client.fd.reset(), stays = client.finalized;
        if (!transmit(client.server.get(), client.to_server)) lose_server(client);
      } catch (const std::exception&) {
        stays = false;  // it speaks another language: both sides see it go
      }
      if (agent_gone_ && client.fd && client.introduced && !client.server) stays = false;
      at = stays ? std::next(at) : clients_.erase(at);
    }
    if (polled[1].revents != 0) accept_client();
    if (polled[0].revents != 0) on_control();
  }
}

void Relay::on_control() {
  protocol::Packet packet;
  const protocol::Received got = protocol::receive_packet(control_.get(), packet, 0);
  packet.close_fds();
  if (got == protocol::Received::kClosed || got == protocol::Received::kBroken) {
    agent_gone_ = true;
    control_.reset();
    return;
  }
  if (got != protocol::Received::kPacket) return;
  if (packet.type == protocol::kPmixServer) new_server(packet);
  if (packet.type == protocol::kPmixAsk) tell_fences();
}

void Relay::new_server(const protocol::Packet& packet) {
  try {
    server_ = parse_server(packet.get("uri"), packet.get("name_space"));
    for (const auto& [key, value] : packet.fields)
      if (key.starts_with('f')) ended_there_[key] = static_cast<uint64_t>(packet.number(key).value_or(0));
    for (Client& client : clients_)
      if (client.introduced) connect(client);
  } catch (const std::exception& error) {
    protocol::send_packet(control_.get(), protocol::Packet(protocol::kFail).set("text", error.what()));
  }
}

void Relay::tell_fences() {
  constexpr size_t kMost = 1000;  // a packet has an end
  protocol::Packet packet(protocol::kPmixFences);
  for (const auto& [body, fence] : fences_)
    if (packet.fields.size() < kMost) packet.set_number(key_of(body), static_cast<int64_t>(fence.ended));
  protocol::send_packet(control_.get(), packet);
}

void Relay::accept_client() {
  UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  // The port is open to all users of the host; the job's processes are one user's.
  if (fd && is_own_peer(fd.get())) clients_.emplace_back().fd = std::move(fd);
}

// ---- the server's side ------------------------------------------------------------------------

void Relay::connect(Client& client) {
  lose_server(client);
  if (server_.port == 0) return;  // it comes
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server_.port);
  ::inet_pton(AF_INET, server_.host.c_str(), &address.sin_addr);
  if (!fd || ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    throw std::runtime_error(std::string("cannot connect to Slurm's PMIx server: ") + std::strerror(errno));
  client.server = std::move(fd);
  Hello hello = client.hello;
  hello.name_space = server_.name_space;
  client.to_server = hello.encode();
  if (!transmit(client.server.get(), client.to_server)) lose_server(client);
}

// A client without a server waits: it gets another one when this is a restart.
void Relay::lose_server(Client& client) {
  client.server.reset();
  client.connected = false;
  client.from_server.clear();
  client.to_server.clear();
}

void Relay::take_introduction(Client& client) {
  const size_t size = client.from_server.size();
  if (size < kStatus || (number_at(client.from_server, 0) == 0 && size < kIntroduction)) return;
  if (number_at(client.from_server, 0) != 0) {
    if (client.told) throw std::runtime_error("the PMIx server does not know a process of this job");
    client.to_client += client.from_server.substr(0, kStatus);  // it gives up by itself
    client.from_server.erase(0, kStatus);
    return;
  }
  if (!client.told) client.to_client += client.from_server.substr(0, kIntroduction);
  client.told = true;
  client.index = number_at(client.from_server, kStatus);
  client.from_server.erase(0, kIntroduction);
  client.connected = true;
  repeat_requests(client);
}

bool Relay::has_ended(const Request& fence) {
  const auto there = ended_there_.find(key_of(fence.body));
  return fences_[fence.body].ended >= fence.fence || (there != ended_there_.end() && there->second >= fence.fence);
}

void Relay::repeat_requests(Client& client) {
  for (auto request = client.requests.begin(); request != client.requests.end();) {
    if (request->fence != 0 && has_ended(*request)) {
      client.to_client += Message{0, request->tag, fences_[request->body].answer}.encode();
      request = client.requests.erase(request);
    } else {
      send(client, *request);
      const bool done = request->answered && !is_kept(request->command);
      request = done ? client.requests.erase(request) : std::next(request);
    }
  }
}

void Relay::read_server(Client& client) {
  const bool there = receive(client.server.get(), client.from_server);
  if (!client.connected) take_introduction(client);
  while (client.connected) {
    std::optional<Message> message = take_message(client.from_server);
    if (!message) break;
    on_answer(client, std::move(*message));
  }
  if (!there) lose_server(client);
}

void Relay::on_answer(Client& client, Message message) {
  std::string body = with_name_space(message.body, server_.name_space, client.hello.name_space);
  const auto request = std::find_if(client.requests.begin(), client.requests.end(),
                                    [&](const Request& one) { return one.tag == message.tag; });
  if (message.tag >= kFirstTag && request != client.requests.end()) {
    if (request->answered) return;
    if (request->fence != 0) {
      Fence& fence = fences_[request->body];
      if (request->fence > fence.ended) fence = {request->fence, body};
    }
    if (request->command == kFinalize) client.finalized = true;
    if (is_kept(request->command)) {
      request->answered = true;
    } else {
      client.requests.erase(request);
    }
  }
  client.to_client += Message{message.sender, message.tag, std::move(body)}.encode();
}

// ---- the client's side ------------------------------------------------------------------------

bool Relay::read_client(Client& client) {
  const bool there = receive(client.fd.get(), client.from_client);
  if (!client.introduced) {
    std::optional<Hello> hello = take_hello(client.from_client);
    if (hello) {
      client.hello = std::move(*hello);
      client.introduced = true;
      connect(client);
    }
  }
  while (client.introduced) {
    std::optional<Message> message = take_message(client.from_client);
    if (!message) break;
    on_request(client, std::move(*message));
  }
  if (there) return true;
  client.fd.reset();
  client.to_client.clear();
  // What one that has ended well has published is still asked for by others, after a restart, too.
  if (client.finalized) lose_server(client);
  return client.finalized;
}

void Relay::on_request(Client& client, Message message) {
  Request request{message.tag, std::move(message.body), 0, 0, false};
  request.command = command_of(request.body).value_or(0);
  if (request.command == kFence) request.fence = ++client.fences[request.body];
  const bool answered = is_answered(message, request.command);
  if (client.connected) send(client, request);
  if (answered || is_kept(request.command) || !client.connected) {
    request.answered = !answered;  // nobody waits
    client.requests.push_back(std::move(request));
  }
}

void Relay::send(Client& client, const Request& request) {
  client.to_server +=
      Message{client.index, request.tag, with_name_space(request.body, client.hello.name_space, server_.name_space)}
          .encode();
}

}  // namespace icp::pmix
