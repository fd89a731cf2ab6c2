// SPDX-License-Identifier: GPL-2.0-or-later
// Messages on one node: plugin <-> icpstepd and icp-proxy <-> icpstepd.
//
// A message is one packet of a SOCK_SEQPACKET socketpair, made before either side is started: there is no name to
// connect to, and the kernel keeps message boundaries. Descriptors travel beside it (SCM_RIGHTS).
//
//   "<type>\0<key>=<value>\0<key>=<value>\0..."
//
// Text, because the plugin lives in slurmstepd and links nothing but the standard library. The proxy runs as the
// job's user, so icpstepd takes what comes from it as hostile: bounded, checked, and believed only about itself.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace icp::protocol {

inline constexpr size_t kMaxPacket = 64 * 1024;  // bytes
inline constexpr size_t kMaxFds = 4;             // descriptors beside one packet

// plugin -> icpstepd, on the step's socket
inline constexpr std::string_view kHello = "hello";         // the step: see StepFacts
inline constexpr std::string_view kTask = "task";           // rank, pid: a task was forked (root says so)
inline constexpr std::string_view kTaskExit = "task-exit";  // rank, status
inline constexpr std::string_view kGoodbye = "goodbye";     // the step ends; icpstepd answers by closing
// a task before exec -> icpstepd, on the socket all tasks inherit; beside it the task's own socket
inline constexpr std::string_view kReady =
    "ready";  // rank, pid, cwd, pmi (the number in PMI_FD), pmix_uri and
              // pmix_name_space (of Slurm's PMIx server, as the task's environment has them); dev0, ino0, mode0, rdev0
              // ... dev2 ..., devpmi ... as fstat(2) says of its streams and of PMI_FD, missing where closed; fd 0: the
              // task's socket
// icpstepd -> the task, on the task's socket
inline constexpr std::string_view kRun =
    "run";  // text: a line for the user, may be missing; exec the user's program. guard: the path of icp-proxy, which
            // the task becomes while a child of it executes the program; may be missing. guard_asks: not empty when it
            // is to ask for other signals than SIGTERM, too. pmix: HOST:PORT where it finds
            // the PMIx server from now on; may be missing. relay: the path of icp-proxy, which the task starts as the
            // relay; fds: its listener and control socket. pmi_relay: the same for PMI; fd 0: the task's connection to the
            // relay, fd 1, of the first task: the relay's control socket. launcher: the path of icp-proxy, which the task of a batch
            // script starts as the launcher; may be missing; fd 0: its control socket. launch_path, launch_socket: see
            // launch/stand_in.h
inline constexpr std::string_view kRestart = "restart";  // exec icp-proxy: proxy (path); launcher and fd 0 as above
inline constexpr std::string_view kFail = "fail";        // text: end the task with this sentence
// icp-proxy -> icpstepd, on the task's socket
inline constexpr std::string_view kStreams = "streams";  // fds: 0, 1, 2 of the task, and that of PMI_FD
inline constexpr std::string_view kSignal = "signal";    // signal: hand it on to the restored processes
// a task that has become a guard, on its socket; from then on kSignal with SIGTERM, which has reached it alone, and
// with guard_asks with others (is_asked_for())
inline constexpr std::string_view kGuards = "guards";  // child: the process that executes the user's program
// icpstepd -> the relay of PMIx or PMI
inline constexpr std::string_view kPmiClient = "pmi-client";    // fd 0: what the next task has as its PMI_FD leads here
inline constexpr std::string_view kPmixServer = "pmix-server";  // uri, name_space; fences of the other nodes as below
inline constexpr std::string_view kPmixAsk = "pmix-ask";        // how far its clients are; it answers:
inline constexpr std::string_view kPmixFences = "pmix-fences";  // f<key>: how many of a kind of fence have ended
// steps that a batch script's MPI launcher starts: launch/launcher.h has these between icpstepd and the launcher.
// Between a stand-in for srun and icpstepd:
//   launch      fd 0: the request; to the agent's named socket
//   launched    the answer; fd 0: the stand-in's socket from then on
//   signal      signal: for srun
//   launch-end  status: srun has ended
inline constexpr std::string_view kLaunch = "launch", kLaunched = "launched", kLaunchEnd = "launch-end";
// icpstepd -> icp-proxy
inline constexpr std::string_view kSay = "say";            // text: a line for the user
inline constexpr std::string_view kRestored = "restored";  // forward: 1 when signals must be handed on
inline constexpr std::string_view kExit = "exit";          // status: end as this wait(2) status says

// One message. Keys hold letters, digits and '_'; values hold anything but NUL.
struct Packet {
  std::string type;
  std::map<std::string, std::string, std::less<>> fields;
  std::vector<int> fds;  // received descriptors, close-on-exec, the receiver's to close; or those to send

  Packet() = default;
  explicit Packet(std::string_view name) : type(name) {}
  Packet& set(std::string_view key, std::string_view value);
  Packet& set_number(std::string_view key, int64_t value);
  std::string get(std::string_view key) const;                // empty when missing
  std::optional<int64_t> number(std::string_view key) const;  // nothing when missing or not a decimal number
  void close_fds();
};

std::string encode(const Packet& packet);
// Nothing when it is no message.
std::optional<Packet> decode(std::string_view bytes);

// Sends without ever raising SIGPIPE. False with errno set when the peer is gone or the packet too long, and, unless
// `timeout_ms` is -1, when the peer has not made room for it in time (EAGAIN).
bool send_packet(int socket, const Packet& packet, int timeout_ms = -1);

enum class Received { kPacket, kNothing, kClosed, kBroken };
// Receives one packet. `timeout_ms` -1 waits for ever, 0 does not wait (kNothing). kBroken: an error or no message.
Received receive_packet(int socket, Packet& packet, int timeout_ms);

// What the plugin says of a step. Numbers are Slurm's.
struct StepFacts {
  uint32_t job = 0;
  int32_t step = 0;  // Slurm's: -5 is the batch step, -4 the extern step
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
  std::string node;
  uint32_t nodes = 1;  // of the job
  uint32_t local_tasks = 1, total_tasks = 1;
  uint32_t restarts = 0;         // how often the job was requeued
  std::string interval;          // as the user typed it; empty: no versions by themselves
  std::string checkpoint_dir;    // empty: the configuration's, else the working directory
  std::string restart_dir;       // empty: the step's own after a requeue; "none": start afresh
  std::string map_path;          // see map_path.h; for a restart from restart_dir
  std::string checkpoint_files;  // see checkpoint_files.h; empty: the configuration's
  std::string checkpoint_on;     // when, beside the interval: words and commas; see checkpoint_moments.h
  static constexpr uint32_t kNoRequeueMax = UINT32_MAX;
  uint32_t requeue_max = kNoRequeueMax;  // how often the job may be requeued; kNoRequeueMax: the configuration's number
  bool verbose = false;                  // srun -v
  std::string slurm_conf;                // directory of slurm.conf
  bool private_ipc = false;              // the job has an IPC namespace of its own on this node
  uint32_t launched = 0;  // started by the batch script's MPI launcher, as the script's so many-th step: see launch/

  // Not said by the plugin: what the agent saves and restores of the step. A node of a fresh step is one capsule; a
  // restored one keeps the name that it has in its image, and a node may have several of them.
  std::string capsule;
  uint32_t capsules = 1;  // of the step, on all nodes

  Packet to_packet() const;
  static std::optional<StepFacts> from_packet(const Packet& packet);
};

inline constexpr int32_t kBatchStep = -5, kExternStep = -4;
// The step to whose versions its capsules belong: its own, or the batch script that has launched it.
inline int32_t step_of_versions(const StepFacts& facts) { return facts.launched == 0 ? facts.step : kBatchStep; }
// "batch", "extern", or the number.
std::string step_name(int32_t step);

}  // namespace icp::protocol
