// SPDX-License-Identifier: GPL-2.0-or-later
// The small text files of a job's ledger: facts, pids, objects.
//
// All are written by root in directories that only root can enter. Lines are appended by one write() each batch, by
// the agents of several steps at once; a line cut off by a crash is ignored, and the next writer starts a new one.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/sysv/ipc_list.h"
#include "engine/sysv/shm_events.h"

namespace icp {

enum class IpcMode { kPrivate, kHost };  // a namespace of the job's own, or the node's

struct LedgerFacts {
  uint32_t job = 0, restart = 0;
  uid_t uid = 0;  // of the job
  IpcMode mode = IpcMode::kPrivate;
  int64_t since = 0;            // unix seconds: start of the job's first step on this node
  uint64_t host_namespace = 0;  // inode of the IPC namespace that the steps came from
  std::string boot_id;          // pids, ids and namespaces mean nothing after a reboot
  friend bool operator==(const LedgerFacts&, const LedgerFacts&) = default;
};

// The running kernel's /proc/sys/kernel/random/boot_id.
std::string current_boot_id();
// Writes <directory>/facts by rename.
void write_facts(const std::string& directory, const LedgerFacts& facts);
// Empty when the file is missing or not whole.
std::optional<LedgerFacts> read_facts(const std::string& directory);

// A pid while one process of the job had it.
struct PidSpan {
  pid_t pid = 0;
  uint64_t start_ticks = 0;    // since boot
  int64_t begin = 0;           // unix seconds
  std::optional<int64_t> end;  // when it was first missed; none: was there at the last look
  friend bool operator==(const PidSpan&, const PidSpan&) = default;
};
// Time (unix seconds) of `ticks` since boot.
int64_t unix_time_of(uint64_t start_ticks);
std::string pid_line(const PidSpan& span);
// Latest state of each (pid, start).
std::vector<PidSpan> read_pids(const std::string& directory);

std::string object_line(const IpcObject& object);
// kind, id, key, uid, creator and create_time only.
std::vector<IpcObject> read_objects(const std::string& directory);
// Whether two descriptions can only be of the same object: ids and pids are used again, times pass.
bool same_object(const IpcObject& a, const IpcObject& b);

// Whether the object is the segment that was made then: ids are used again after some thousand others, pids, too.
bool is_of(const IpcObject& object, const ShmCreation& made);

// Appends whole lines to <directory>/<name>.
// Where there is no room for them the file stays as it is: false.
bool append_lines(const std::string& directory, const char* name, const std::string& lines);

// Whether the job made the object, as far as the kernel tells: created after the job's begin, owned by its user, and
// shm: by one of the spans' processes; sem and msg (which keep no creator): used by such processes only. Objects that
// merely could be the job's are not.
bool made_by(const IpcObject& object, const LedgerFacts& facts, const std::vector<PidSpan>& spans);

}  // namespace icp
