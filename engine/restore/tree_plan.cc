// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/restore/tree_plan.h"

#include <signal.h>

#include <algorithm>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr uint32_t kInit = 1;
constexpr uint32_t kAnySession = 0;
constexpr uint32_t kMostPid = 4u << 20;  // PID_MAX_LIMIT of 64-bit kernels

class Planner {
 public:
  explicit Planner(const pb::Capsule& capsule) {
    for (const pb::Process& process : capsule.processes()) add(process);
    for (const auto& [pid, process] : processes_) check_ancestry(pid);
    for (const auto& [pid, process] : processes_) {
      const uint32_t parent = parent_of(pid), session = session_of(pid);
      children_[parent].push_back(pid);
      if (session != pid && (parent == kInit || session_of(parent) != session)) entries_[session].insert(parent);
    }
    for (const auto& [pid, process] : processes_) find_birth_session(pid);
  }

  std::vector<TreeStep> plan() {
    for (const auto& [pid, process] : processes_) make_dead_leader(session_of(pid));
    std::vector<uint32_t> waiting = children_[kInit];
    while (!waiting.empty()) {
      const size_t before = waiting.size();
      std::erase_if(waiting, [this](uint32_t pid) { return try_create_child_of_init(pid); });
      if (waiting.size() == before)
        throw_error(ErrorKind::kRefused, "process {} is in session {}, which cannot be joined again", waiting[0],
                    session_of(waiting[0]));
    }
    join_groups();
    for (auto helper = helpers_.rbegin(); helper != helpers_.rend(); ++helper)
      steps_.push_back({TreeStep::kEndHelper, helper->second, helper->first, 0});
    return std::move(steps_);
  }

 private:
  const pb::Process& at(uint32_t pid) const { return *processes_.at(pid); }
  bool exists(uint32_t pid) const { return processes_.contains(pid); }
  uint32_t parent_of(uint32_t pid) const { return at(pid).ppid(); }
  // 0: the session (or group) of something outside of the namespace; init's own stands for it.
  uint32_t session_of(uint32_t pid) const { return at(pid).sid() == 0 ? kInit : at(pid).sid(); }
  uint32_t group_of(uint32_t pid) const { return at(pid).pgid() == 0 ? kInit : at(pid).pgid(); }
  bool leads_session(uint32_t pid) const { return session_of(pid) == pid; }

  // A session whose leader has ended, all of which comes from one parent outside of it: that parent. 0: another one.
  uint32_t foster_parent(uint32_t session) const {
    const auto entries = entries_.find(session);
    const bool one = session != kInit && !exists(session) && entries != entries_.end() && entries->second.size() == 1;
    return one && *entries->second.begin() != kInit ? *entries->second.begin() : 0;
  }
  // Its parent, a subreaper, has got it from one that has ended.
  bool is_fostered(uint32_t pid) const {
    const uint32_t parent = parent_of(pid), session = session_of(pid);
    if (parent == kInit || session == pid || session == session_of(parent)) return false;
    return exists(session) ? parent_of(session) == parent : foster_parent(session) == parent;
  }

  void add(const pb::Process& process) {
    if (process.pid() <= kInit || process.pid() > kMostPid || process.sid() > kMostPid || process.pgid() > kMostPid)
      throw_error(ErrorKind::kImage, "process number {} (session {}, group {}) is out of range", process.pid(),
                  process.sid(), process.pgid());
    if (!processes_.emplace(process.pid(), &process).second)
      throw_error(ErrorKind::kImage, "process number {} occurs twice", process.pid());
    used_.insert({process.pid(), process.sid(), process.pgid()});
    for (const pb::Thread& thread : process.threads()) {
      if (thread.tid() <= kInit || thread.tid() > kMostPid ||
          (thread.tid() != process.pid() && !used_.insert(thread.tid()).second))
        throw_error(ErrorKind::kImage, "thread number {} of process {} is taken or out of range", thread.tid(),
                    process.pid());
    }
  }

  void check_ancestry(uint32_t pid) const {
    size_t steps = 0;
    for (uint32_t at_pid = pid; at_pid != kInit; at_pid = parent_of(at_pid)) {
      if (!exists(at_pid))
        throw_error(ErrorKind::kImage, "process {} has an ancestor {} that is not in the image", pid, at_pid);
      if (++steps > processes_.size()) throw_error(ErrorKind::kImage, "process {} is its own ancestor", pid);
    }
  }

  // The session a process must be forked in. A leader may be forked anywhere, unless a child of it is in another
  // session: then the child was born before the setsid(), in the session its parent had at that time.
  uint32_t find_birth_session(uint32_t pid) {
    if (const auto known = birth_.find(pid); known != birth_.end()) return known->second;
    uint32_t birth = kAnySession;
    if (!leads_session(pid)) {
      birth = session_of(pid);
    } else {
      for (const uint32_t child : children_[pid]) {
        const uint32_t wanted = find_birth_session(child);
        if (wanted == kAnySession || wanted == pid || is_fostered(child)) continue;
        if (birth != kAnySession && birth != wanted)
          throw_error(ErrorKind::kRefused, "children of process {} are in sessions {} and {}, which no fork can repeat",
                      pid, birth, wanted);
        birth = wanted;
      }
    }
    birth_[pid] = birth;
    return birth;
  }

  uint32_t free_number() {
    while (!used_.insert(next_free_).second) ++next_free_;
    return next_free_;
  }

  void make_dead_leader(uint32_t session) {
    if (foster_parent(session) == 0) make_dead_leader(session, kInit);
  }
  void make_dead_leader(uint32_t session, uint32_t parent) {
    if (session == kInit || exists(session) || in_session_.contains(session)) return;
    steps_.push_back({TreeStep::kForkHelper, parent, session, 0, SIGCHLD});
    steps_.push_back({TreeStep::kSetsid, 0, session, 0});
    helpers_.emplace_back(session, parent);
    in_session_[session] = session;
  }

  bool try_create_child_of_init(uint32_t pid) {
    const uint32_t birth = birth_[pid];
    if (birth == kAnySession || birth == kInit) {
      steps_.push_back({TreeStep::kFork, kInit, pid, 0});
    } else {
      const auto leader = in_session_.find(birth);
      if (leader == in_session_.end()) return false;  // the leader is yet to be made
      if (!exists(birth) || parent_of(birth) == kInit) {
        steps_.push_back({TreeStep::kForkSibling, leader->second, pid, 0});
      } else {
        // An orphan of a session whose leader has a parent: born to a helper, whose end hands it to init.
        const uint32_t helper = free_number();
        steps_.push_back({TreeStep::kForkHelper, leader->second, helper, 0});
        steps_.push_back({TreeStep::kFork, helper, pid, 0});
        helpers_.emplace_back(helper, leader->second);
      }
    }
    grow(pid);
    return true;
  }

  // The process exists: its children before its setsid(), the setsid(), the other children.
  void grow(uint32_t pid) {
    std::vector<uint32_t> late, fostered;
    for (const uint32_t child : children_[pid]) {
      const uint32_t wanted = birth_[child];
      if (is_fostered(child)) {
        fostered.push_back(child);
      } else if (wanted == kAnySession || wanted == session_of(pid)) {
        late.push_back(child);
      } else if (leads_session(pid) && wanted == birth_[pid]) {
        create_child(pid, child);
      } else {
        throw_error(ErrorKind::kRefused,
                    "process {} is in session {} but its parent {} is in session {}, which no fork can repeat", child,
                    session_of(child), pid, session_of(pid));
      }
    }
    if (leads_session(pid)) {
      steps_.push_back({TreeStep::kSetsid, 0, pid, 0});
      in_session_[pid] = pid;
    }
    for (const uint32_t child : late) create_child(pid, child);
    for (const uint32_t child : fostered) {
      make_dead_leader(session_of(child), pid);
      steps_.push_back({TreeStep::kForkSibling, session_of(child), child, 0});
      grow(child);
    }
  }

  void create_child(uint32_t parent, uint32_t pid) {
    steps_.push_back({TreeStep::kFork, parent, pid, 0});
    grow(pid);
  }

  void join_groups() {
    std::set<uint32_t> groups{kInit};
    for (const auto& [pid, process] : processes_) {
      if (leads_session(pid)) {
        groups.insert(pid);  // setsid() made it
      } else if (group_of(pid) == pid) {
        steps_.push_back({TreeStep::kSetpgid, 0, pid, pid});
        groups.insert(pid);
      }
    }
    for (const auto& [session, maker] : in_session_) groups.insert(session);
    for (const auto& [pid, process] : processes_) {
      const uint32_t group = group_of(pid);
      if (group == pid || leads_session(pid)) continue;
      if (groups.insert(group).second) {  // its leader has ended
        steps_.push_back({TreeStep::kForkHelper, pid, group, 0});
        steps_.push_back({TreeStep::kSetpgid, 0, group, group});
        helpers_.emplace_back(group, pid);
      }
      steps_.push_back({TreeStep::kSetpgid, 0, pid, group});
    }
  }

  std::map<uint32_t, const pb::Process*> processes_;
  std::map<uint32_t, std::vector<uint32_t>> children_;
  std::map<uint32_t, std::set<uint32_t>> entries_;  // session -> parents outside of it of its members
  std::map<uint32_t, uint32_t> birth_;
  std::map<uint32_t, uint32_t> in_session_;             // session -> its leader, once it leads
  std::vector<std::pair<uint32_t, uint32_t>> helpers_;  // helper, its parent
  std::set<uint32_t> used_;
  uint32_t next_free_ = 2;
  std::vector<TreeStep> steps_;
};

}  // namespace

std::vector<TreeStep> plan_tree(const pb::Capsule& capsule) { return Planner(capsule).plan(); }

}  // namespace icp
