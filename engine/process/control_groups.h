// SPDX-License-Identifier: GPL-2.0-or-later
// Control groups that processes and threads of a job have been put into, other than the job's own: found before a stop,
// saved, and joined again at a restart with the rights of who restores. One that is gone is made again with its
// settings. Versions 1 and 2. What cannot be joined again is said by name; the processes then stay in the job's.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/image/image.pb.h"
#include "engine/process/stopped_tree.h"

namespace icp {

// Paths by hierarchy, the third and second column of /proc/PID/cgroup.
using GroupPaths = std::map<std::string, std::string>;
GroupPaths parse_groups(const std::string& text);
// Of a process, empty when it has ended.
GroupPaths groups_of(pid_t pid);

// Where a control group's directory is, below one of the mounts this process sees. Empty: it sees none.
class GroupMounts {
 public:
  GroupMounts();
  std::string directory(const std::string& hierarchy, const std::string& path) const;

 private:
  struct Mount {
    std::set<std::string> names;  // controllers, "name=..."; empty: version 2
    std::string root, point;
  };
  std::vector<Mount> mounts_;
};

class ControlGroups {
 public:
  // Groups that are the job's: those of this process or a task. Below them, and elsewhere, are others.
  void add_base(GroupPaths base);
  // Looks where the processes are. Stops nothing; says once what a restart could not join again.
  void note(const std::vector<ProcessRef>& processes);
  // Fills in what note() has found; `states` in the order of the processes. Looks at those that have come since.
  void capture(const std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
               pb::Capsule& capsule);

 private:
  struct Placed {
    uint64_t start_time = 0;
    std::vector<uint32_t> groups;                    // ControlGroup.id
    std::map<pid_t, std::vector<uint32_t>> threads;  // the agent's numbers; only those with others than their process
    std::optional<uint32_t> login_uid;
    bool nothing() const { return groups.empty() && threads.empty() && !login_uid; }
  };
  void note(const ProcessRef& process);
  std::vector<uint32_t> ids_of(const ProcessRef& process, const std::string& text);
  std::string base_of(const std::string& hierarchy, const std::string& path) const;
  std::optional<uint32_t> id_of(const ProcessRef& process, const std::string& hierarchy, const std::string& path);
  uint32_t add(const std::string& hierarchy, const std::string& path, const std::string& base,
               const std::string& directory);
  void add_below(const pb::ControlGroup& group, const std::string& directory, int depth);

  std::vector<GroupPaths> bases_;
  std::map<std::string, std::vector<uint32_t>> known_texts_;
  std::map<std::pair<std::string, std::string>, std::optional<uint32_t>> known_;  // by hierarchy and path
  std::vector<pb::ControlGroup> groups_;                                          // number - 1
  std::set<std::string> told_;
  std::map<pid_t, Placed> placed_;
  std::optional<GroupMounts> mounts_;
  std::optional<std::string> own_login_uid_;
};

// A restart's part.
class ControlGroupRestore {
 public:
  // `here`: a process that is where the job is to be. `dry`: nothing is made or joined.
  ControlGroupRestore(const pb::Capsule& capsule, pid_t here, bool dry);
  ~ControlGroupRestore();  // removes what it has made, unless kept
  ControlGroupRestore(const ControlGroupRestore&) = delete;
  ControlGroupRestore& operator=(const ControlGroupRestore&) = delete;

  // `pid`: the agent's number of a process, which is where the job is; before it has memory, that is charged there.
  void place(const pb::Process& state, pid_t pid);
  void place_thread(const pb::Process& process, const pb::Thread& state, pid_t tid);
  // Nothing is removed any more; files get the modes and owners that the program had given them.
  void keep();

 private:
  std::string target(const pb::ControlGroup& group, const GroupPaths& here) const;
  bool make(const pb::ControlGroup& group, const std::string& path);
  bool join(uint32_t id, const GroupPaths& here, pid_t pid, bool thread, const std::string& name);

  const bool dry_;
  std::map<uint32_t, const pb::ControlGroup*> groups_;
  GroupMounts mounts_;
  std::map<uint32_t, GroupPaths> places_;  // of the job, by process
  struct Made {
    std::string directory;
    const pb::ControlGroup* group;
  };
  std::vector<Made> made_;
};

// /proc/PID/loginuid, which only the process itself can set: once, or with CAP_AUDIT_CONTROL.
void restore_login_uid(RemoteProcess& remote, const pb::Process& state);

}  // namespace icp
