// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/file_table.h"

#include "engine/base/error.h"
#include "engine/files/controlling_terminal.h"
#include "engine/files/file_kind.h"
#include "engine/files/file_lock.h"
#include "engine/files/file_owner.h"
#include "engine/files/file_scan.h"
#include "engine/files/kept_files.h"

namespace icp {
namespace {

template <typename Each>
void for_each_kind(FileScan& scan, Each each) {
  for (const FileKind* kind : file_kinds()) {
    std::vector<Description*> all;
    for (const auto& description : scan.descriptions()) {
      if (description->kind == kind) all.push_back(description.get());
    }
    if (!all.empty()) each(*kind, Descriptions(all));
  }
}

// All kinds have looked: asks the other capsules about what leads there.
void survey(FileScan& scan, const NetworkScope& network) {
  scan.inet.external = network.external;
  scan.inet.held = network.held;
  scan.inet.several = network.inside_job != nullptr;
  for_each_kind(scan, [&](const FileKind& kind, Descriptions all) { kind.survey(scan, all); });
  if (!network.inside_job) return;
  for (const ConnectionEnd& end : network.inside_job(scan.inet.open_ends, !scan.checking())) {
    scan.inet.inside.emplace(end.local, end.remote);
  }
}

void check(FileScan& scan) {
  for_each_kind(scan, [&](const FileKind& kind, Descriptions all) { kind.check(scan, all); });
  for (const auto& description : scan.descriptions()) {
    if (description->outer) continue;
    check_locks(scan, *description);
    check_owner(scan, *description);
  }
}

// Which task each process descends from, where the tree tells.
std::vector<std::optional<int>> ranks_of(const std::vector<pb::Process*>& states, const pb::Capsule& capsule) {
  std::map<uint32_t, int> ranks;
  for (const pb::Task& task : capsule.tasks()) ranks.emplace(task.pid(), task.rank());
  std::vector<std::optional<int>> result;
  for (const pb::Process* state : states) {  // parents come before children
    auto rank = ranks.find(state->pid());
    if (rank == ranks.end() && (rank = ranks.find(state->ppid())) != ranks.end()) {
      rank = ranks.emplace(state->pid(), rank->second).first;
    }
    result.push_back(rank == ranks.end() ? std::nullopt : std::optional(rank->second));
  }
  return result;
}

}  // namespace

void check_files(const std::vector<ProcessRef>& processes, const std::vector<OuterStreamId>& outer, Findings& findings,
                 const NetworkScope& network) {
  check_files(processes, outer, findings, network, nullptr);
}

void check_files(const std::vector<ProcessRef>& processes, const std::vector<OuterStreamId>& outer, Findings& findings,
                 const NetworkScope& network, KeptFiles* kept) {
  FileScan scan(processes, outer, &findings);
  scan.run();
  survey(scan, network);
  check(scan);
  if (kept != nullptr && findings.empty()) kept->look(scan);
}

void capture_files(std::vector<StoppedProcess>& processes, const std::vector<pb::Process*>& states,
                   const std::vector<OuterStreamId>& outer, const ObjectResolver& objects, pb::Capsule& capsule,
                   const NetworkScope& network, KeptFiles* kept) {
  KeptFiles only_now;
  std::vector<ProcessRef> refs;
  for (const StoppedProcess& process : processes) refs.push_back(process.ref);
  FileScan scan(std::move(refs), outer, nullptr);
  scan.kept = kept != nullptr ? kept : &only_now;
  scan.set_ranks(ranks_of(states, capsule));
  scan.run();

  capsule.clear_files();
  for (size_t i = 0; i < states.size(); ++i) {
    states[i]->clear_fds();
    states[i]->clear_posix_locks();
    if (const auto parent = scan.shares_table(i)) states[i]->set_files_of(states[*parent]->pid());
  }
  for (const auto& description : scan.descriptions()) {
    description->message = capsule.add_files();
    description->message->set_id(description->id);
    description->message->set_flags(description->info.flags);
    description->message->set_position(description->info.position);
    for (const FdUse& use : description->uses) {
      if (use.process >= states.size()) continue;  // on its way through a Unix socket
      pb::FileDescriptor& fd = *states[use.process]->add_fds();
      fd.set_fd(use.fd);
      fd.set_file(description->id);
      fd.set_cloexec(use.cloexec);
    }
  }
  survey(scan, network);
  check(scan);
  for_each_kind(scan, [&](const FileKind& kind, Descriptions all) { kind.capture(scan, objects, all); });
  for (const auto& description : scan.descriptions()) {
    if (description->outer) continue;
    capture_locks(*description, states);
    capture_owner(scan, *description, states);
  }
  capture_controlling_terminals(scan, processes, states);
}

}  // namespace icp
