// SPDX-License-Identifier: GPL-2.0-or-later
// Where a step's image is, and whether the step goes on from one.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/config.h"
#include "coordinator/map_path.h"
#include "coordinator/protocol/packet.h"
#include "engine/base/identity.h"

namespace icp {

// <checkpoint-dir>/<job>.<step>; relative directories are below `cwd`.
std::string own_image_path(const protocol::StepFacts& facts, const Config& config, const std::string& cwd);
// <directory>/<job>.<step>
std::string image_path_in(const std::string& directory, const protocol::StepFacts& facts);

struct StartPlan {
  enum Kind { kFresh, kRestart, kFail };
  Kind kind = kFresh;
  std::string image;                 // kRestart
  std::vector<uint32_t> versions;    // kRestart: to be tried in this order
  bool one_version = false;          // kRestart: the user has named it, no other will do
  std::vector<std::string> damaged;  // newer than versions.front(): "version 7: why", newest first
  PathMap path_map;                  // kRestart: see map_path.h
  std::string text;                  // kFail: why; kFresh: what the user should know, may be empty
  bool lost = false;                 // kFresh: there were versions, and none can be read
};

// Decides once, before the first task runs. `restarts` is how often Slurm has requeued the job.
//  - --restart-dir=D: D is an image; or D holds <job>.<step> of this job, or one image of this step of another job.
//    D:7 or D/v000007: that version of such an image, and no other.
//    D with images of other steps only: the step starts afresh, and says so.
//  - after a requeue, of a step with an interval or moments, or that was vacated: its own image, unless it is marked
//    completed. That
//    goes before --restart-dir, which says where the job's first run began, unless the directory was `chosen` for this
//    run (icp restart).
StartPlan plan_start(const protocol::StepFacts& facts, const std::string& own_image, const std::string& cwd,
                     uint32_t restarts, bool chosen = false);

// A step that ended by itself with status 0 must not be restarted when its job is requeued later: its image is marked
// with a file. Errors are logged.
// Of several capsules each marks its own end; the step has ended when all have that took the latest version.
void mark_completed(const std::string& image, const protocol::StepFacts& facts);
// A step of the batch script's MPI launcher that was killed: the script, whose image this is, has not completed
// although its launcher may end with 0 then (Open MPI 5 does), before or after this is marked. Forgotten by the next
// such step.
void mark_cut(const std::string& image, const std::string& capsule, const Identity& identity);
void unmark_completed(const std::string& image, const Identity& identity);
bool is_completed(const std::string& image, const Identity& identity);

// A step that was ended after a version (scontrol checkpoint vacate, requeue) goes on from there when its job starts
// again, also without an interval: its image is marked with another file until it has been restored. `where` is the
// image that holds that version.
void mark_vacated(const std::string& image, const Identity& identity, const std::string& where);
void unmark_vacated(const std::string& image, const Identity& identity);

// Processes that were killed after they had run on from their last version: what they did then is lost, and the restart
// says how much. Nothing is marked where the node died, too.
void mark_end(const std::string& image, const Identity& identity, uint64_t unix_ms);
void unmark_end(const std::string& image, const Identity& identity);
uint64_t end_of_last_run(const std::string& image, const Identity& identity);  // 0: not marked

// Of a step that asked for versions by themselves: after a requeue, and without any command.
bool goes_on_by_itself(const protocol::StepFacts& facts);

// Makes the directory that will hold the image (and those above it, 0700, as the user); an image that is there
// already is of an earlier job with the same number unless `keep`, and is moved aside. Throws Error.
void prepare_image_path(const std::string& image, const Identity& identity, bool keep);

// Any number that is taken in the image, and the latest one this node has committed; 0 when there is none, or no image.
std::pair<uint32_t, uint32_t> highest_versions(const std::string& image, const protocol::StepFacts& facts);

Identity identity_of(const protocol::StepFacts& facts);

}  // namespace icp
