// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/launched_steps.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "coordinator/launch/agent_socket.h"
#include "coordinator/launch/request.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/base/socket_pair.h"

namespace icp {

using protocol::Packet;
using protocol::Received;
namespace {

constexpr std::string_view kMark = ".launch";
constexpr size_t kMostRunning = 64;
constexpr uint32_t kMostNumber = 9999;
constexpr int kRequestTimeout = 1000;  // ms; a stand-in sends it at once

std::string random_name(uint32_t job) {
  uint64_t random[2];
  if (::getrandom(random, sizeof random, 0) != sizeof random) throw_errno("cannot read random numbers");
  return fmt::format("slurm-icp-launch-{}-{:016x}{:016x}", job, random[0], random[1]);
}

}  // namespace

std::string launched_capsule(const std::string& node, uint32_t number) {
  return number == 0 ? node : fmt::format("{}{}{}", node, kMark, number);
}

uint32_t launch_in_name(const std::string& capsule) {
  const size_t at = capsule.rfind(kMark);
  if (at == std::string::npos) return 0;
  const char* const first = capsule.data() + at + kMark.size();
  const char* const last = capsule.data() + capsule.size();
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(first, last, number);
  return error == std::errc() && end == last && number <= kMostNumber ? number : 0;
}

// ---- the script's task ---------------------------------------------------------------------------------------------

void LaunchedSteps::begin(Packet& answer, const std::string& directory, const std::string& image) {
  image_ = image;
  try {
    if (name_.empty()) name_ = random_name(job_);
    listen();
  } catch (const Error& error) {
    // The name is a restored script's, and somebody has it: what it starts from now on is not part of its versions.
    spdlog::warn("{}", error.what());
  }
  SocketPair pair(SOCK_SEQPACKET);
  launcher_ = std::make_unique<Socket>(io_, pair.here.release());
  when_readable(*launcher_, [this] { on_launcher(); });
  for (auto& [number, step] : steps_) launch(number, restored_from_);
  answer.set("launcher", directory + "/icp-proxy");
  answer.set("launch_path", directory + "/launch").set("launch_socket", name_);
  answer.fds = {pair.there.release()};
}

void LaunchedSteps::listen() {
  UniqueFd socket = launch::listen_at(name_);
  if (!socket) throw_errno("cannot listen at @{}", name_);
  ::fcntl(socket.get(), F_SETFL, O_NONBLOCK);
  listener_ = std::make_unique<Socket>(io_, socket.release());
  when_readable(*listener_, [this] { on_connection(); });
}

// Anybody on the node may connect, and must not keep the agent from all else.
void LaunchedSteps::on_connection() {
  constexpr int kAtOnce = 16;
  for (int count = 0; count < kAtOnce; count++) {
    const UniqueFd connection(::accept4(listener_->native_handle(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!connection) break;
    try {
      if (launch::is_same_user(connection.get())) take_request(connection.get());
    } catch (const Error& error) {
      spdlog::warn("a step cannot be launched: {}", error.what());
    }
  }
  when_readable(*listener_, [this] { on_connection(); });
}

void LaunchedSteps::take_request(int connection) {
  Packet packet;
  if (protocol::receive_packet(connection, packet, kRequestTimeout) != Received::kPacket) return;
  Step step;
  if (packet.type == protocol::kLaunch && packet.fds.size() == 1)
    step.request = launch::read_from_memory(packet.fds[0]);
  packet.close_fds();
  if (!launch::Request::decode(step.request)) throw_error(ErrorKind::kUsage, "the request is none");
  if (steps_.size() >= kMostRunning || last_ >= kMostNumber)
    throw_error(ErrorKind::kUsage, "the script has {} already", steps_.size());
  make_sockets(step);
  Packet answer(protocol::kLaunched);
  answer.fds = {step.theirs.get()};
  if (!protocol::send_packet(connection, answer)) return;
  step.theirs.reset();
  const uint32_t number = ++last_;
  steps_.emplace(number, std::move(step));
  when_readable(*steps_.at(number).here, [this, number] { on_stand_in(number); });
  launch(number, "none");
}

void LaunchedSteps::make_sockets(Step& step) const {
  SocketPair pair(SOCK_SEQPACKET);
  struct stat facts {};
  if (::fstat(pair.there.get(), &facts) != 0) throw_errno("cannot look at a socket");
  step.dev = facts.st_dev;
  step.ino = facts.st_ino;
  step.here = std::make_unique<Socket>(io_, pair.here.release());
  step.theirs = std::move(pair.there);
}

void LaunchedSteps::launch(uint32_t number, const std::string& restart_dir) const {
  const UniqueFd request = launch::put_in_memory(steps_.at(number).request);
  if (!request) throw_errno("cannot make a file in memory");
  Packet packet(protocol::kLaunch);
  packet.set_number("number", number).set("restart_dir", restart_dir);
  packet.set("checkpoint_dir", image_.substr(0, image_.rfind('/')));
  packet.fds = {request.get()};
  if (!protocol::send_packet(launcher_->native_handle(), packet)) throw_errno("the launcher cannot be reached");
  spdlog::info("step {} of the script's MPI launcher: srun is called{}", number, restart_dir == "none" ? "" : " again");
}

// ---- stand-ins and the launcher ------------------------------------------------------------------------------------

void LaunchedSteps::on_stand_in(uint32_t number) {
  const auto found = steps_.find(number);
  if (found == steps_.end() || !found->second.here) return;
  const int socket = found->second.here->native_handle();
  Packet packet;
  Received got = Received::kNothing;
  while ((got = protocol::receive_packet(socket, packet, 0)) == Received::kPacket) {
    packet.close_fds();
    if (packet.type == protocol::kSignal && launcher_)
      protocol::send_packet(launcher_->native_handle(), packet.set_number("number", number));
  }
  if (got == Received::kNothing) return when_readable(*found->second.here, [this, number] { on_stand_in(number); });
  // It was killed: so is srun.
  if (launcher_)
    protocol::send_packet(launcher_->native_handle(),
                          Packet(protocol::kSignal).set_number("number", number).set_number("signal", SIGTERM));
  found->second.here.reset();
}

void LaunchedSteps::on_launcher() {
  if (hear_launcher()) when_readable(*launcher_, [this] { on_launcher(); });
}

// False: it is gone.
bool LaunchedSteps::hear_launcher() {
  if (!launcher_) return false;
  Packet packet;
  Received got = Received::kNothing;
  while ((got = protocol::receive_packet(launcher_->native_handle(), packet, 0)) == Received::kPacket) {
    packet.close_fds();
    if (packet.type == protocol::kLaunched) launcher_pid_ = static_cast<pid_t>(packet.number("pid").value_or(0));
    if (packet.type == protocol::kLaunchEnd)
      ended(static_cast<uint32_t>(packet.number("number").value_or(0)),
            static_cast<int>(packet.number("status").value_or(0)));
  }
  return got == Received::kNothing;
}

void LaunchedSteps::ended(uint32_t number, int status) {
  const auto found = steps_.find(number);
  if (found == steps_.end()) return;
  spdlog::info("step {} of the script's MPI launcher: srun has ended with wait status 0x{:x}", number,
               static_cast<unsigned>(status));
  if (found->second.here)
    protocol::send_packet(found->second.here->native_handle(),
                          Packet(protocol::kLaunchEnd).set_number("status", status));
  // A stand-in that is still to be restored finds the word in its socket.
  found->second.ended = true;
  if (!found->second.theirs) steps_.erase(found);
}

bool LaunchedSteps::is_outside(pid_t pid) const {
  if (launcher_pid_ == 0) return false;
  try {
    return pid == launcher_pid_ || ProcStat::read(pid).session == launcher_pid_;
  } catch (const Error&) {
    return false;  // it has ended
  }
}

// ---- versions and restarts -----------------------------------------------------------------------------------------

std::vector<OuterStreamId> LaunchedSteps::streams() const {
  std::vector<OuterStreamId> all;
  for (const auto& [number, step] : steps_)
    all.push_back({static_cast<int>(number), kLaunchStream, step.dev, step.ino, false});
  return all;
}

void LaunchedSteps::describe(pb::Capsule& capsule) const {
  if (!name_.empty()) capsule.set_launch_socket(name_);
  for (const auto& [number, step] : steps_) {
    pb::LaunchedStep& out = *capsule.add_launched_steps();
    out.set_number(number);
    out.set_request(step.request);
  }
}

void LaunchedSteps::restore(const pb::Capsule& capsule, const std::string& image) {
  name_ = capsule.launch_socket();
  restored_from_ = image;
  for (const pb::LaunchedStep& saved : capsule.launched_steps()) {
    const uint32_t number = saved.number();
    if (number == 0 || number > kMostNumber || steps_.size() >= kMostRunning || steps_.contains(number) ||
        !launch::Request::decode(saved.request()))
      throw_error(ErrorKind::kImage, "launched step {} makes no sense", number);
    Step& step = steps_[number];
    step.request = saved.request();
    make_sockets(step);
    last_ = std::max(last_, number);
  }
}

std::map<int, int> LaunchedSteps::restored_ends() const {
  std::map<int, int> ends;
  for (const auto& [number, step] : steps_)
    if (step.theirs) ends[static_cast<int>(number)] = step.theirs.get();
  return ends;
}

void LaunchedSteps::check_restored() {
  hear_launcher();
  for (const auto& [number, step] : steps_)
    if (step.ended) throw_error(ErrorKind::kGone, "srun has ended for step {} of the script's MPI launcher", number);
}

void LaunchedSteps::restored() {
  std::erase_if(steps_, [](const auto& entry) { return entry.second.ended; });
  for (auto& [number, step] : steps_) {
    step.theirs.reset();
    when_readable(*step.here, [this, number = number] { on_stand_in(number); });
  }
}

}  // namespace icp
