// SPDX-License-Identifier: GPL-2.0-or-later
// libicp for C++17 programs: checkpoint, restart and look at versions, without a command line to write and read.
//
// Each call runs the program icp (icp(1)) with the caller's rights and waits for it: what it may do, refuse and cost is
// what icp may. It is found in $ICP_PROGRAM, which is not looked at in set-user-id programs, and else where it was
// installed. All functions are thread-safe, block until icp has ended, and throw slurm_icp::Error. icp_c.h has the
// same for C.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#define ICP_PUBLIC __attribute__((visibility("default")))

namespace slurm_icp {

enum class ErrorKind {
  kSystem = 1,  // a system call failed, or icp could not be run
  kRefused,     // something cannot be checkpointed; nothing was stopped
  kBusy,        // a transient condition: try again
  kImage,       // an image is damaged, or does not fit this machine
  kPermission,  // the caller may not do this
  kUsage,       // a wrong argument
  kGone,        // there is no such process or version
};

class ICP_PUBLIC Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& text, std::string hint = {})
      : std::runtime_error(text), kind_(kind), hint_(std::move(hint)) {}
  ErrorKind kind() const { return kind_; }
  const std::string& hint() const { return hint_; }  // what the user can do, may be empty

 private:
  ErrorKind kind_;
  std::string hint_;
};

// Something that would prevent a checkpoint now.
struct Finding {
  pid_t pid = 0;
  std::string command;     // name of the process
  std::string where;       // "descriptor 5", "thread 71", an address; may be empty
  std::string what, hint;  // the reason, and what to do about it
  bool transient = false;  // may be gone in a moment
};

struct Version {
  uint32_t number = 0;         // from 1
  uint64_t taken_unix_ns = 0;  // 0 in what checkpoint() returns
  bool full = false;           // holds every page; else those written since the version before
  uint32_t processes = 0;
  uint64_t pages_written = 0, pages_total = 0;  // of 4096 bytes
  uint64_t bytes_written = 0;
  uint64_t stop_ns = 0;               // how long no process ran
  std::string error;                  // list(): not empty when it cannot be read, and all else is 0 then
  std::vector<std::string> warnings;  // checkpoint(): what is not in it, sentence by sentence
};

struct CheckpointOptions {
  bool kill = false;        // kill the processes once the version is committed
  uint32_t keep = 0;        // keep only so many versions, the newest; 0: all
  std::string compression;  // "none", "lz4", "zstd"; empty: "none"
};

struct RestartOptions {
  uint32_t version = 0;       // 0: the latest
  bool lazy = false;          // start before all memory is loaded
  std::string changed_files;  // "restore", "refuse", "accept"; empty: "restore"
};

struct VerifyOptions {
  uint32_t version = 0;  // 0: all
  bool restore = false;  // put each together, too, up to the moment before anything runs
};

struct Verdict {
  uint32_t version = 0;
  bool whole = false;                 // every byte was read, and is what was written
  std::vector<std::string> problems;  // whole, and not empty: why it does not restore
};

// What would prevent a checkpoint of the tree below `root` now; empty: nothing. Stops nothing.
ICP_PUBLIC std::vector<Finding> check(pid_t root);
// One version of the tree below `root`, which the caller must not belong to, in `dir`, made if missing.
ICP_PUBLIC Version checkpoint(pid_t root, const std::string& dir, const CheckpointOptions& options = {});
// Restores the tree, with the caller's standard streams, and returns the pid of its root, which is not a child of the
// caller: wait for it with pidfd_open(2).
ICP_PUBLIC pid_t restart(const std::string& dir, const RestartOptions& options = {});
// The versions in `dir`, oldest first; none when there is none yet.
ICP_PUBLIC std::vector<Version> list(const std::string& dir);
// Reads every byte of them.
ICP_PUBLIC std::vector<Verdict> verify(const std::string& dir, const VerifyOptions& options = {});

}  // namespace slurm_icp
