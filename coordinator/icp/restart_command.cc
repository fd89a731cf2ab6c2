// SPDX-License-Identifier: GPL-2.0-or-later
// icp restart --dir: puts a tree back, and stands for it until it ends. icp restart JOB: has Slurm do that with a job.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/event_loop.h"
#include "coordinator/icp/format.h"
#include "coordinator/icp/job_operation.h"
#include "coordinator/icp/open_image.h"
#include "coordinator/icp/program.h"
#include "coordinator/icp/users.h"
#include "coordinator/icp/versions.h"
#include "coordinator/map_path.h"

namespace icp {

namespace {

struct RestartOptions {
  JobOptions job;  // of Slurm; if it names none, all the rest is meant
  VersionOptions versions;
  uint32_t version = 0;
  std::string user, pid_file, interval;
  std::string changed = "restore";
  std::vector<std::string> maps;
  std::vector<std::string> addresses;
  bool detach = false, lazy = false;
};

// Waits for all tasks of a capsule, and passes on what they and the user say to each other.
class Attendant {
 public:
  Attendant(RestoredCapsule& capsule, EventLoop& loop, Versions* versions)
      : capsule_(capsule), loop_(loop), versions_(versions), roots_(capsule.roots()), init_(capsule.init_pid()) {
    for (const TaskRoot& root : roots_) {
      try {
        handles_.emplace(root.rank, ProcessHandle(root.pid));
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kGone) throw;  // ended already: its exit is on the way
      }
    }
  }

  // The wait(2) status of the first task, in rank order, that did not succeed; 0 if all did.
  int attend() {
    while (statuses_.size() < roots_.size()) {
      const Event event = loop_.wait(capsule_.event_fd());
      if (event.kind == Event::kReady) {
        take_exits();
      } else if (event.kind == Event::kTimer || (event.signal == SIGUSR1 && versions_ != nullptr)) {
        versions_->take();
      } else {
        forward(event);
      }
    }
    for (const auto& [rank, status] : statuses_)
      if (status != 0) return status;
    return 0;
  }

 private:
  void take_exits() {
    for (const TaskExit& exit : capsule_.take_exits()) statuses_[exit.rank] = exit.status;
    if (statuses_.size() >= roots_.size() || init_.running()) return;
    throw_error(ErrorKind::kGone, "the restored processes were killed with their init, process {}",
                capsule_.init_pid());
  }

  // A key on the terminal is meant for all that run there: the restored processes are in a session of their own,
  // so the terminal itself does not reach them. What a process sends is for the root, as it would be with icp run.
  void forward(const Event& event) {
    if (event.from_kernel) return capsule_.signal_all(event.signal);
    for (const auto& [rank, handle] : handles_) handle.signal(event.signal);
  }

  RestoredCapsule& capsule_;
  EventLoop& loop_;
  Versions* versions_;
  std::vector<TaskRoot> roots_;
  ProcessHandle init_;  // ends with its last task, and all else in the capsule with it
  std::map<int, ProcessHandle> handles_;
  std::map<int, int> statuses_;
};

// Opened before anything is restored, so that a wrong path stops nothing half-way.
UniqueFd open_pid_file(const std::string& path) {
  if (path.empty()) return {};
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!fd) throw_errno("cannot create the pid file {}", path);
  return fd;
}

void write_pid(const UniqueFd& fd, const std::string& path, pid_t pid) {
  if (!fd) return;
  const std::string text = fmt::format("{}\n", pid);
  if (write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    throw_errno("cannot write the pid file {}", path);
}

// truncate and fail: as --grown had it, before it knew of more changes than growing.
ChangedFiles changed_from(const std::string& text) {
  if (text == "restore" || text == "truncate") return ChangedFiles::kRestore;
  if (text == "refuse" || text == "fail") return ChangedFiles::kRefuse;
  if (text == "accept") return ChangedFiles::kAccept;
  throw_error(ErrorKind::kUsage, "--changed-files: \"{}\" is none of restore, refuse and accept", text);
}

std::pair<std::string, std::string> address_pair(const std::string& text) {
  const size_t sign = text.find('=');
  if (sign == std::string::npos) throw_error(ErrorKind::kUsage, "--address: \"{}\" is not OLD=NEW", text);
  return {text.substr(0, sign), text.substr(sign + 1)};
}

PathMap more_pairs(PathMap all, const std::string& text) {
  const auto pairs = parse_map_path(text);
  if (!pairs || text.empty()) throw_error(ErrorKind::kUsage, "--map-path: \"{}\" is not {}", text, kMapPathGrammar);
  for (const auto& pair : *pairs) {
    for (const auto& known : all)
      if (known.first == pair.first) throw_error(ErrorKind::kUsage, "--map-path: {} is given twice", pair.first);
    all.push_back(pair);
  }
  return all;
}

// All tasks of the image get icp's own standard streams.
RestoreOptions restore_options(const RestartOptions& options) {
  RestoreOptions restore;
  restore.image_path = options.versions.dir;
  restore.version = options.version;
  restore.node = options.versions.node;
  restore.identity = options.user.empty() ? reader_of(options.versions.dir) : identity_to_work_as(options.user);
  work_as(restore.identity);
  restore.track = !options.interval.empty();
  restore.tracker = tracker_from(options.versions.tracker);
  restore.changed = changed_from(options.changed);
  for (const std::string& pair : options.addresses) restore.network.addresses.push_back(address_pair(pair));
  for (const std::string& pairs : options.maps) restore.path_map = more_pairs(std::move(restore.path_map), pairs);
  restore.lazy = options.lazy;
  const ImageDir image = open_image(restore.image_path, restore.identity, restore.node);
  if (restore.version == 0) restore.version = image.latest().value_or(0);
  if (restore.version == 0)
    throw_error(ErrorKind::kGone, "there is no version of node {} in {}", image.node(), restore.image_path);
  if (options.user.empty()) restore.image_path = check_roots_image(restore.image_path, restore.identity);
  const ImageDir checked = ImageDir::open(restore.image_path, restore.identity, restore.node);
  const pb::Capsule capsule = checked.open_version(restore.version).read_state();
  for (const pb::Task& task : capsule.tasks())
    restore.streams[task.rank()] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
  return restore;
}

RestoredCapsule restore(const RestoreOptions& options, const Reporter& reporter) {
  const auto start = std::chrono::steady_clock::now();
  RestoredCapsule capsule = RestoredCapsule::restore(options);
  const std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - start;
  const pb::Manifest& manifest = capsule.manifest();
  reporter.note(
      fmt::format("restarted version {} of {}, {}, {}, in {}", capsule.version(), local_time(manifest.taken_unix_ns()),
                  counted(manifest.stats().processes(), "process", "processes"),
                  counted(manifest.stats().pages_total(), "page"), human_time(static_cast<uint64_t>(taken.count()))));
  return capsule;
}

// Goes on from the version that was restored, in the same directory.
std::unique_ptr<Versions> continued(RestoredCapsule& capsule, const RestartOptions& options,
                                    const RestoreOptions& restored, Reporter& reporter) {
  VersionOptions versions = options.versions;
  if (versions.node.empty()) versions.node = capsule.manifest().job().node();
  SessionConfig config = session_config(versions, restored.identity, capsule.manifest().job().command());
  const auto open = [&capsule](SessionConfig session) { return capsule.continue_session(std::move(session)); };
  return std::make_unique<Versions>(std::move(config), open, reporter, options.versions.keep);
}

int restart_detached(const RestartOptions& options, const Cli& cli) {
  const UniqueFd pid_file = open_pid_file(options.pid_file);
  RestoredCapsule capsule = restore(restore_options(options), Reporter(cli.verbosity));
  const std::vector<TaskRoot> roots = capsule.roots();
  if (roots.empty()) throw_error(ErrorKind::kGone, "the restored processes have ended already");
  write_pid(pid_file, options.pid_file, roots.front().pid);
  capsule.detach();
  if (options.job.json) {
    print_json({{"pid", roots.front().pid}, {"version", capsule.version()}});
  } else if (!pid_file) {
    fmt::print("{}\n", roots.front().pid);
  }
  return kExitOk;
}

// The wait(2) status to end with.
int restart_and_wait(const RestartOptions& options, const Cli& cli, std::chrono::milliseconds interval) {
  Reporter reporter(cli.verbosity);
  const UniqueFd pid_file = open_pid_file(options.pid_file);
  const RestoreOptions what = restore_options(options);
  EventLoop loop({SIGUSR1, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2});
  RestoredCapsule capsule = restore(what, reporter);
  std::unique_ptr<Versions> versions;
  if (interval.count() > 0) {
    versions = continued(capsule, options, what, reporter);
    loop.start_timer(interval);
  }
  if (const auto roots = capsule.roots(); !roots.empty()) write_pid(pid_file, options.pid_file, roots.front().pid);
  return Attendant(capsule, loop, versions.get()).attend();
}

int restart(const RestartOptions& options, const Cli& cli) {
  if (!options.job.job.empty()) return carry_out(net::OP_RESTART, "restart", options.job, cli);
  if (options.versions.dir.empty())
    throw_error(ErrorKind::kUsage, "a JOB of Slurm, or --dir with an image, is required; see icp restart --help");
  if (options.job.json && !options.detach)
    throw_error(ErrorKind::kUsage, "--json goes with a JOB or with --detach; the program's own output is printed else");
  if (options.detach) return restart_detached(options, cli);
  const auto interval = options.interval.empty() ? std::chrono::milliseconds(0) : interval_from(options.interval);
  int status = 0;
  try {
    status = restart_and_wait(options, cli, interval);
  } catch (const Error& error) {
    print_error(sentence(error));
    return error.kind() == ErrorKind::kUsage ? kExitUsage : kExitNotStarted;
  }
  exit_as(status);
}

}  // namespace

void add_restart_command(Cli& cli) {
  auto options = std::make_shared<RestartOptions>();
  CLI::App* app = cli.app.add_subcommand("restart", "Restore a process tree and wait for it; or restart a Slurm job");
  CLI::Option* job = options->job.add_job(*app);
  const std::vector<CLI::Option*> with_job{
      options->job.add_image_dir(*app),
      app->add_flag("--stick-to-nodes", options->job.stick_to_nodes, "On the same nodes as before"),
      options->job.add_config(*app)};
  for (CLI::Option* option : with_job) option->needs(job);

  options->versions.add_dir(*app, "Directory of the versions")->required(false)->excludes(job);
  app->add_option("--version", options->version, "The version (default: the latest)")
      ->check(check_positive)
      ->type_name("N")
      ->excludes(job);
  CLI::Option* detach =
      app->add_flag("--detach", options->detach, "Do not wait; print the pid of the root")->excludes(job);
  options->job.add_json(*app)->description("With JOB or --detach: print JSON");
  app->add_flag("--lazy", options->lazy, "Start before all memory is loaded (lazy restart)")->excludes(job);
  app->add_option("--pid-file", options->pid_file, "Write the pid of the root into this file")
      ->type_name("FILE")
      ->excludes(job);
  app->add_option("--interval", options->interval, "Go on taking versions into DIR")
      ->type_name("T")
      ->excludes(detach)
      ->excludes(job);
  app->add_option("--changed-files,--grown", options->changed,
                  "A file open for writing that changed since gets back what it held, or the restart is refused "
                  "(restore); is always refused (refuse); or stays (accept)")
      ->type_name("HOW")
      ->excludes(job);
  app->add_option("--address", options->addresses, "What was at internet address OLD is at NEW now; may be repeated")
      ->type_name("OLD=NEW")
      ->excludes(job);
  app->add_option("--map-path", options->maps, "What was at path OLD is at NEW; may be repeated")
      ->type_name("OLD=NEW")
      ->excludes(job);
  app->add_option("--user", options->user, "Restart as this user (default: the owner of DIR)")
      ->type_name("NAME")
      ->excludes(job);
  options->versions.add_to(*app);
  options->versions.add_chain(*app);
  app->footer(
      "With --dir: exits as the root process did; 125 if it could not be restarted. With --detach: 0, or the usual "
      "codes.\nWith JOB: has Slurm put a finished or vacated batch job back, under its old number.");
  app->callback([&cli, options] { cli.chosen = [&cli, options] { return restart(*options, cli); }; });
}

}  // namespace icp
