// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icpstepd/versions.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <thread>

#include "coordinator/checkpoint_files.h"
#include "coordinator/icpstepd/agent_broker.h"
#include "coordinator/icpstepd/cgroups.h"
#include "coordinator/icpstepd/image_choice.h"
#include "coordinator/icpstepd/launched_steps.h"
#include "coordinator/icpstepd/network_exchange.h"
#include "coordinator/icpstepd/site_script.h"
#include "engine/base/error.h"
#include "engine/base/procfs.h"

namespace icp {
namespace {

constexpr int kTransientTries = 8;
constexpr size_t kRecent = 64;
// For a phase in which the processes run: the coordinator's own time-outs end it, or the connection's end.
constexpr std::chrono::hours kLongWait(24);
constexpr std::chrono::minutes kSurveyWait(10);

// A step's standard stream is replaced by the new step's at a restart. /dev/null and its like are not: they are the
// same everywhere, and a program may have opened them by itself for something else.
bool is_outer(const StreamId& stream) {
  constexpr unsigned kMemoryDevices = 1;
  return stream.mode != 0 && !(S_ISCHR(stream.mode) && gnu_dev_major(stream.rdev) == kMemoryDevices);
}

// Failures that another try in a moment would meet again: what is refused stays so until the program does something
// about it, a directory until somebody else does.
bool is_lasting(const Error& error) {
  static constexpr int kLasting[] = {EACCES, EPERM, EROFS, ENOSPC, EDQUOT, ENOENT, ENOTDIR, ENAMETOOLONG};
  return error.kind() == ErrorKind::kRefused || error.kind() == ErrorKind::kPermission ||
         error.kind() == ErrorKind::kImage ||
         (error.kind() == ErrorKind::kSystem &&
          std::find(std::begin(kLasting), std::end(kLasting), error.error_number()) != std::end(kLasting));
}

}  // namespace

std::string counted_bytes(uint64_t processes, uint64_t bytes) {
  static constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit < 4) value /= 1024, unit++;
  return fmt::format("{} process{}, {:.{}f} {}", processes, processes == 1 ? "" : "es", value, unit == 0 ? 0 : 1,
                     kUnits[unit]);
}

SessionConfig Versions::session_config(const std::string& image, const std::vector<TaskStreams>& tasks) const {
  SessionConfig session;
  session.image_path = image;
  session.identity = {facts_.uid, facts_.gid, facts_.groups};
  session.node = facts_.capsule;
  session.job.set_job_id(facts_.job);
  session.job.set_step_id(static_cast<uint32_t>(facts_.step));
  session.job.set_restart_count(facts_.restarts);
  session.job.set_uid(facts_.uid);
  session.job.set_gid(facts_.gid);
  session.job.set_node(facts_.node);
  session.job.set_launched(facts_.launched);
  session.tracker = config_.tracker;
  session.staging_limit = config_.staging_limit;
  session.dedup = config_.dedup;
  session.checkpoint_files = config_.checkpoint_files;
  if (const auto chosen = parse_checkpoint_files(facts_.checkpoint_files)) {
    session.checkpoint_files = chosen->open ? CheckpointFiles::kOpen : CheckpointFiles::kNone;
    // One capsule of the step keeps them, and those of an MPI launcher's further steps do not.
    const bool first = std::any_of(tasks.begin(), tasks.end(), [](const TaskStreams& task) { return task.rank == 0; });
    if (first && facts_.launched == 0) session.directories = chosen->directories;
  }
  session.compression = config_.compression;
  session.whole_ipc_namespace = facts_.private_ipc;
  session.may_be_suspended = true;
  session.network.external = config_.external_tcp;
  for (const TaskStreams& task : tasks) {
    if (!task.cpus.empty()) session.task_cpus[task.rank] = task.cpus;
    if (task.pmi.mode != 0) session.outer.push_back({task.rank, kPmiStream, task.pmi.dev, task.pmi.ino, false});
    for (int fd = 0; fd < 3; fd++) {
      const StreamId& stream = task.streams[static_cast<size_t>(fd)];
      if (is_outer(stream)) session.outer.push_back({task.rank, fd, stream.dev, stream.ino, true});
    }
  }
  return session;
}

void Versions::begin(Session session, std::string image) {
  session_ = std::make_unique<Session>(std::move(session));
  image_ = std::move(image);
}

void Versions::run_site_script(int error) const {
  if (config_.site_script.empty()) return;
  start_site_script(config_.site_script, {facts_.uid, facts_.gid, facts_.groups}, facts_.job,
                    protocol::step_name(facts_.step), error, chosen_image_.empty() ? image_ : chosen_image_,
                    [this](pid_t child) { join_step(child, roots()); });
}

// What does not go now goes with a later version.
void Versions::keep_newest() const {
  if (config_.keep == 0 || image_.empty()) return;
  try {
    const ChainResult gone =
        ImageDir::open(image_, {facts_.uid, facts_.gid, facts_.groups}, facts_.capsule).prune(config_.keep);
    if (!gone.removed.empty())
      spdlog::debug("{} old versions removed, {} bytes", gone.removed.size(), gone.bytes_freed);
  } catch (const Error& error) {
    spdlog::log(error.kind() == ErrorKind::kBusy ? spdlog::level::debug : spdlog::level::warn,
                "old versions stay for now: {}", error.what());
  }
}

// A batch script that runs srun cannot be checkpointed meanwhile, and its steps are what counts: restarting a script
// after its first step would make Slurm number the next ones from 0 again.
bool Versions::script_has_steps() const {
  if (facts_.step != protocol::kBatchStep) return false;
  return job_has_steps();
}

// `scontrol suspend`, preemption or gang scheduling: the step is stopped, then frozen where there is a freezer. Who
// stops a frozen process waits until it is thawed, hence no version then. The step does nothing meanwhile: of one that
// is only stopped one version is enough.
Suspension Versions::suspension() {
  const Suspension now = suspension_of(roots());
  if (now == Suspension::kNone) suspended_taken_ = suspended_told_ = false;
  const std::vector<TaskRoot> tasks = session_->roots();
  const bool first = std::any_of(tasks.begin(), tasks.end(), [](const TaskRoot& task) { return task.rank == 0; });
  if (now == Suspension::kFrozen && first && !std::exchange(suspended_told_, true))
    notices_.say(fmt::format("slurm-icp: step {}.{}: it is suspended: no versions until it goes on", facts_.job,
                             protocol::step_name(facts_.step)));
  return now;
}

// Called while they are stopped. Returns when Slurm has ended them, throws when they are to run on.
void Versions::hold_until_ended(Hold& hold) const {
  constexpr std::chrono::milliseconds kLook(50);
  constexpr int kMostLooks = 40;  // when some have ended: who is killed lets nobody wait that its tracer holds
  const auto there = [this] {
    const std::vector<pid_t> pids = roots();
    return std::count_if(pids.begin(), pids.end(), [](pid_t pid) {
      try {
        const char state = ProcStat::read(pid).state;
        return state != 'Z' && state != 'X';
      } catch (const Error&) {
        return false;
      }
    });
  };
  const auto all = there();
  hold.begun();
  for (int looks = 0; looks < kMostLooks && hold.goes_on();) {
    if (!session_->alive()) return;
    if (there() < all) looks++;
    std::this_thread::sleep_for(kLook);
  }
  if (!session_->alive()) return;
  hold.over = true;
  throw_error(ErrorKind::kRefused, "the processes were not ended, and run on");  // not to be tried again
}

bool Versions::take(Hold* hold) {
  if (!session_) return false;
  try {
    if (!session_->alive()) return false;
    const Suspension suspended = suspension();
    if (suspended == Suspension::kFrozen || (suspended == Suspension::kStopped && suspended_taken_)) {
      spdlog::debug("the step is suspended: no version until it goes on");
      return false;
    }
    CheckpointOptions options;
    options.kill = options.soon = hold != nullptr;
    if (hold != nullptr) {
      options.committed = [&](const CheckpointResult& result) {
        report(result);
        hold_until_ended(*hold);
      };
    }
    const CheckpointResult result = session_->checkpoint(options);
    if (hold == nullptr) report(result);
    suspended_taken_ = suspended == Suspension::kStopped;
    keep_newest();
    return false;
  } catch (const Error& error) {
    if (hold != nullptr && hold->over) return false;
    return failed(error);
  }
}

// What the step's connections to the other nodes are, asked in the round under way.
std::vector<ConnectionEnd> Versions::connections_inside(const std::vector<ConnectionEnd>& ends, bool stopped) {
  if (!stopped) {
    if (ends.empty() && surveyed_) return {};
    net::Survey question;
    question.set_round(round_->round());
    *question.mutable_ends() = to_message(ends);
    surveyed_ = true;
    return inside(ends, from_message(link_->survey(question, kSurveyWait, while_it_runs()).ends()));
  }
  net::ToCoordinator message;
  net::PhaseDone& done = *message.mutable_done();
  done.set_round(round_->round());
  done.set_phase(net::STOP);
  *done.mutable_ends() = to_message(ends);
  link_->say(message);
  const std::chrono::milliseconds timeout(round_->stop_timeout_ms());
  return inside(ends, from_message(link_->wait_go(round_->round(), net::COLLECT, timeout, while_it_runs()).ends()));
}

// Where the version goes. Throws Error; with a number in `done` when the coordinator must take a higher one.
std::string Versions::choose_image(const net::BeginRound& begin, net::PhaseDone& done) const {
  if (begin.image_dir().empty()) return image_;
  if (!begin.image_dir().starts_with('/') || begin.image_dir().find('\0') != std::string::npos) {
    throw_error(ErrorKind::kUsage, "{} is not an absolute path", begin.image_dir());
  }
  std::string image = image_path_in(begin.image_dir(), facts_);
  prepare_image_path(image, identity_of(facts_), true);
  const uint32_t highest = highest_versions(image, facts_).first;
  if (highest >= begin.version()) {
    done.set_highest_version(highest);
    throw_error(ErrorKind::kBusy, "{} has a version {} already", image, highest);
  }
  return image;
}

// Slurm may be quicker, when the job is requeued or cancelled: then they have ended as they should.
void Versions::wait_for_kill(CoordinatorLink& link, uint64_t round, std::chrono::milliseconds timeout) const {
  try {
    link.wait_go(round, net::FINISH, timeout, while_it_runs());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kGone) throw;
  }
}

// For a wait in which the processes run, or are stopped: their end ends it. One that was killed while it is traced is
// gone for its parent, and for Slurm, when its tracer lets go.
CoordinatorLink::Wanted Versions::while_it_runs() const {
  return [this] {
    if (!session_->alive()) throw_error(ErrorKind::kGone, "the step's processes have ended");
  };
}

// Why there is no version to be taken although all is well; null: there is one.
const char* Versions::nothing_to_save() {
  if (!session_ || !session_->alive()) return "the step's processes have ended";
  if (script_has_steps()) return "the batch script runs steps: they are checkpointed, it is not";
  if (suspension() == Suspension::kFrozen) return "the step is suspended: a version is taken when it goes on";
  return nullptr;
}

// A step that the script's MPI launcher has started belongs to each version as long as it runs.
void Versions::check_launched(const net::BeginRound& begin) const {
  if (facts_.step != protocol::kBatchStep) return;
  std::set<uint32_t> there;
  for (const std::string& node : begin.nodes()) there.insert(launch_in_name(node));
  there.erase(0);
  if (there.size() != launched_()) throw_error(ErrorKind::kBusy, "a step of the script's MPI launcher begins or ends");
}

std::string Versions::take(const net::BeginRound& begin, CoordinatorLink& link, Hold* hold) {
  net::ToCoordinator message;
  net::PhaseDone& done = *message.mutable_done();
  done.set_round(begin.round());
  const auto done_with = [&](net::Phase phase) {
    done.set_phase(phase);
    link.say(message);
  };
  std::string image;
  try {
    if (const char* const why = nothing_to_save()) {
      done.set_error(why);
      done.set_expected(true);
      done_with(net::NONE);
      return {};
    }
    round_ = &begin;
    link_ = &link;
    surveyed_ = false;
    CheckpointOptions options;
    check_launched(begin);
    image = choose_image(begin, done);
    if (image != image_) options.image_path = chosen_image_ = image;
    options.kill = begin.kill() || hold != nullptr;
    options.soon = hold != nullptr;
    options.version = begin.version();
    const std::chrono::milliseconds stopped(begin.stop_timeout_ms());
    // Alone there is nobody to wait for. Of several nodes, the end of the phase STOP is said by connections_inside().
    if (!begin.alone()) {
      options.nodes.assign(begin.nodes().begin(), begin.nodes().end());
      options.inside_job = [this](const std::vector<ConnectionEnd>& ends, bool is_stopped) {
        return connections_inside(ends, is_stopped);
      };
      options.gate = [&](CheckpointOptions::Phase phase) {
        using Phase = CheckpointOptions::Phase;
        switch (phase) {
          case Phase::kPrepared:
            done_with(net::PREPARE);
            link.wait_go(begin.round(), net::STOP, kLongWait, while_it_runs());
            return;
          case Phase::kStopped:
            return;
          case Phase::kCollected:
            done_with(net::COLLECT);
            link.wait_go(begin.round(), net::WRITE, stopped, while_it_runs());
            return;
          case Phase::kWritten:
            done_with(net::WRITE);
            link.wait_go(begin.round(), net::COMMIT, kLongWait, while_it_runs());
            return;
        }
      };
    }
    options.committed = [&](const CheckpointResult& result) {
      report(result);
      *done.mutable_numbers() = recent_.back();
      done_with(net::COMMIT);
      // Killed only when all nodes have committed: else the job goes on, here too.
      if (begin.kill()) wait_for_kill(link, begin.round(), stopped);
      if (hold != nullptr) hold_until_ended(*hold);
    };
    session_->checkpoint(options);
    keep_newest();
  } catch (const Error& error) {
    if (hold != nullptr && hold->over) {
      if (link.given_up(begin.round())) image.clear();
      return end_round(image);
    }
    done.set_error(error.what());
    done.set_hint(error.hint());
    done.set_transient(!is_lasting(error));
    done_with(net::NONE);
    // A number that was too low is another matter: it is tried again at once.
    if (done.highest_version() == 0) failed(error);
    image.clear();
  }
  return end_round(image);
}

std::string Versions::end_round(const std::string& image) {
  round_ = nullptr;
  chosen_image_.clear();
  return image;
}

void Versions::report(const CheckpointResult& result) {
  transient_failures_ = 0;
  notices_.all_is_well();
  const auto& stats = result.stats;
  net::VersionNumbers numbers;
  numbers.set_version(result.version);
  numbers.set_taken_unix_ns(result.taken_unix_ns);
  numbers.set_stop_ns(stats.stop_ns());
  numbers.set_total_ns(stats.total_ns());
  numbers.set_bytes(stats.bytes_written());
  numbers.set_pages(stats.pages_written());
  numbers.set_processes(stats.processes());
  numbers.set_full(stats.full());
  numbers.set_tracker(stats.tracker());
  if (recent_.size() == kRecent) recent_.pop_front();
  recent_.push_back(numbers);
  const std::string size = counted_bytes(stats.processes(), stats.bytes_written());
  const double stop_ms = static_cast<double>(stats.stop_ns()) / 1e6;
  spdlog::info("version {}{}: {}, {} pages, stopped {:.1f} ms, {:.3f} s in all, {}", result.version,
               stats.full() ? " (full)" : "", size, stats.pages_written(), stop_ms,
               static_cast<double>(stats.total_ns()) / 1e9, stats.tracker());
  run_site_script(0);
  if (!facts_.verbose) return;
  notices_.say(fmt::format("slurm-icp: step {}.{}: version {}: {}, stopped for {:.1f} ms", facts_.job,
                           protocol::step_name(facts_.step), result.version, size, stop_ms));
}

bool Versions::failed(const Error& error) {
  if (error.kind() == ErrorKind::kGone && !session_->alive()) return false;
  spdlog::warn("no version: {}", with_hint(error));
  // What does not last may be a matter of the moment, which only several failures in a row disprove.
  if (!is_lasting(error) && ++transient_failures_ <= kTransientTries) return true;
  transient_failures_ = 0;
  if (script_has_steps()) return false;  // the script began its first step just now
  run_site_script(error.error_number() != 0 ? error.error_number() : EAGAIN);
  notices_.complain(fmt::format(
      "slurm-icp: step {}.{}: no checkpoint could be taken: {} (the job runs on; tried again at every interval)",
      facts_.job, protocol::step_name(facts_.step), with_hint(error)));
  return false;
}

}  // namespace icp
