// SPDX-License-Identifier: GPL-2.0-or-later
// icp doctor: what this machine lacks. icp setup: the line that loads the plugin.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "coordinator/icp/answer.h"
#include "coordinator/icp/cli.h"
#include "coordinator/icp/doctor/checks.h"
#include "coordinator/icp/doctor/setup.h"
#include "coordinator/icp/report.h"
#include "coordinator/icp/users.h"

namespace icp {

namespace {

using namespace doctor;

struct PlaceOptions {
  std::string root, config, slurm_conf;

  void add_to(CLI::App& app) {
    app.add_option("--config", config, "icp.yaml (default: $ICP_CONFIG, /etc/slurm-icp/icp.yaml)")->type_name("FILE");
    app.add_option("--slurm-conf", slurm_conf, "slurm.conf (default: $SLURM_CONF, the usual places)")
        ->type_name("FILE");
    app.add_option("--root", root, "All files are below this directory: an image of a node")->type_name("DIR");
  }
  Host host() const {
    Host host = Host::local();
    host.root = root;
    return host;
  }
  std::string config_path() const {
    const char* const variable = std::getenv("ICP_CONFIG");
    if (!config.empty()) return config;
    return variable != nullptr ? variable : "/etc/slurm-icp/icp.yaml";
  }
};

struct DoctorOptions : PlaceOptions {
  std::vector<std::string> roles;
  std::string dir, user;
  bool json = false, attempt = false;

  bool is(const char* role) const { return std::find(roles.begin(), roles.end(), role) != roles.end(); }
};

// Nagios' numbers, which other monitoring knows, too. A wrong command line ends with 2 as well: nothing is known then.
enum DoctorExit : int { kHealthy = 0, kWarnings = 1, kErrors = 2 };

Identity patient(const DoctorOptions& options) {
  if (!options.user.empty()) return identity_to_work_as(options.user);
  const char* const sudo = std::getenv("SUDO_USER");
  return ::geteuid() == 0 && sudo != nullptr ? user_identity(sudo) : caller_identity();
}

// What this machine seems to be, where it was not said.
void find_roles(const Host& host, DoctorOptions& options) {
  if (!options.roles.empty()) return;
  const auto here = [&](const char* name) {
    return host.exists(std::string("/usr/sbin/") + name) || host.exists(std::string("/usr/local/sbin/") + name) ||
           host.exists(std::string("/opt/slurm/sbin/") + name);
  };
  if (here("slurmd")) options.roles.push_back("node");
  if (here("icpctld")) options.roles.push_back("coordinator");
  if (options.roles.empty()) options.roles.push_back(host.matching("/usr/*/srun").empty() ? "alone" : "login");
}

void look_at_directory(const DoctorOptions& options, const Config& config, const Identity& user, Diagnosis& diagnosis) {
  std::string path = options.dir.empty() ? config.checkpoint_dir : options.dir;
  if (path.empty()) return;
  bool write = true;
  if (const size_t sign = path.find("%u"); sign != std::string::npos) {
    write = user.uid != 0;  // root's own directory there says nothing of users'
    path = write ? path.replace(sign, 2, user_name(user.uid)) : path.substr(0, sign);
  }
  check_directory(probe_directory(path, user, write), diagnosis);
}

void examine(const Host& host, const DoctorOptions& options, const Identity& user, Diagnosis& diagnosis) {
  const bool slurm = options.is("node") || options.is("login") || options.is("coordinator");
  if (!options.is("login")) check_kernel(host, diagnosis);
  Config config;
  if (slurm) config = check_config(host, options.config_path(), diagnosis);
  if (options.is("node")) check_system(host, config, diagnosis);
  if (options.is("node") || options.is("login")) {
    const SlurmChecks what{SlurmConf::find(host, options.slurm_conf), options.config_path(), options.is("node")};
    const std::string icpstepd = check_slurm(host, what, diagnosis);
    if (what.node) check_installation(host, icpstepd, diagnosis);
  }
  if (options.is("coordinator"))
    check_coordinator_machine(host, SlurmConf::find(host, options.slurm_conf), config, diagnosis);
  if (slurm) check_services(host, config, diagnosis);
  look_at_directory(options, config, user, diagnosis);
}

std::string own_path() {
  std::string path(4096, '\0');
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length <= 0) throw_errno("cannot find out which program this is");
  path.resize(static_cast<size_t>(length));
  return path;
}

int run_doctor(DoctorOptions options) {
  const Host host = options.host();
  find_roles(host, options);
  const Identity user = patient(options);
  Diagnosis diagnosis;
  examine(host, options, user, diagnosis);
  if (options.attempt) {
    const char* const temporary = std::getenv("TMPDIR");
    try_run(own_path(),
            !options.dir.empty()   ? options.dir
            : temporary != nullptr ? temporary
                                   : "/tmp",
            user, diagnosis);
  }
  if (options.json) {
    print_json(json_of(diagnosis));
  } else {
    for (const Check& check : diagnosis.checks()) fmt::print("{}\n", line_of(check));
    fmt::print("{}\n", summary_of(diagnosis));
  }
  const Level worst = diagnosis.worst();
  return worst == Level::kError ? kErrors : worst == Level::kWarning ? kWarnings : kHealthy;
}

struct SetupCommand : PlaceOptions {
  std::string plugin = "spank_icp.so", icpstepd;
  bool required = false, force = false;
};

void print_changes(const std::vector<std::string>& done, const char* none) {
  for (const std::string& sentence : done) fmt::print("{}\n", printable(sentence));
  if (done.empty()) fmt::print("{}\n", none);
}

// A line for a plugin that Slurm cannot load breaks nothing with `optional`, and does nothing either.
void check_before(const Host& host, const SetupOptions& options, const std::string& config) {
  const std::string plugin = find_plugin(host, options.conf, options.plugin);
  if (plugin.empty())
    throw Error(ErrorKind::kRefused, fmt::format("{} is in none of Slurm's plugin directories", options.plugin), 0,
                "install slurm-icp-plugin, name its path with --plugin, or use --force");
  const PluginFacts facts = plugin_facts(host.at(plugin));
  const auto here = slurm_version(host);
  if (here && !here->same_abi(SlurmVersion::of_number(facts.slurm)))
    throw Error(ErrorKind::kRefused,
                fmt::format("{} is for Slurm {}, here is {}", plugin, SlurmVersion::of_number(facts.slurm).text(),
                            here->text()),
                0, "install the plugin that was built against this Slurm, or use --force");
  Diagnosis diagnosis;
  check_config(host, config, diagnosis);
  check_installation(host, options.icpstepd.empty() ? ICP_LIBEXEC_DIR "/icpstepd" : options.icpstepd, diagnosis);
  for (const Check& check : diagnosis.checks())
    if (check.level == Level::kError) throw Error(ErrorKind::kRefused, check.text, 0, check.hint + ", or use --force");
}

int enable(const SetupCommand& command) {
  const Host host = command.host();
  SetupOptions options{SlurmConf::find(host, command.slurm_conf), command.plugin, command.config_path(),
                       command.icpstepd, command.required};
  if (!command.force) check_before(host, options, options.config);
  print_changes(enable_plugin(host, options), "enabled already");
  return kExitOk;
}

int disable(const SetupCommand& command) {
  const Host host = command.host();
  print_changes(disable_plugin(host, SlurmConf::find(host, command.slurm_conf)), "not enabled");
  return kExitOk;
}

void add_setup_command(Cli& cli) {
  auto options = std::make_shared<SetupCommand>();
  CLI::App* app = cli.app.add_subcommand("setup", "Make Slurm load the plugin on this machine, or stop doing so");
  app->require_subcommand(1);
  CLI::App* on = app->add_subcommand("enable", "Write plugstack.conf.d/icp.conf, and have plugstack.conf include it");
  options->add_to(*on);
  on->add_option("--plugin", options->plugin, "The plugin, a name or a path")->type_name("FILE");
  on->add_option("--icpstepd", options->icpstepd, "The step agent")->type_name("FILE");
  on->add_flag("--required", options->required, "Without the plugin no job runs");
  on->add_flag("--force", options->force, "Whatever is missing");
  on->footer("Jobs that start afterwards have it. slurmd cleans up after jobs once it has been restarted.");
  on->callback([&cli, options] { cli.chosen = [options] { return enable(*options); }; });
  CLI::App* off = app->add_subcommand("disable", "Remove what enable has written");
  options->add_to(*off);
  off->callback([&cli, options] { cli.chosen = [options] { return disable(*options); }; });
}

void add_trial_program(Cli& cli) {
  struct Trial {
    std::string file;
    uint32_t steps = 0;
  };
  const auto trial = std::make_shared<Trial>();
  CLI::App* app = cli.app.add_subcommand("trial-program", "What icp doctor --try saves and restarts");
  app->group("");  // not for people
  app->add_option("FILE", trial->file)->required();
  app->add_option("STEPS", trial->steps)->required();
  app->callback([&cli, trial] { cli.chosen = [trial] { return trial_program(trial->file, trial->steps); }; });
}

}  // namespace

void add_doctor_command(Cli& cli) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* app = cli.app.add_subcommand("doctor", "Say what this machine lacks, and what to do");
  app->add_option("--role", options->roles, "node, login, coordinator or alone (no Slurm); may be repeated")
      ->check(CLI::IsMember({"node", "login", "coordinator", "alone"}))
      ->type_name("ROLE");
  app->add_option("--dir", options->dir, "A directory for images (default: checkpoint_dir in icp.yaml)")
      ->type_name("DIR");
  app->add_option("--user", options->user, "Whose jobs (default: the caller's)")->type_name("NAME");
  app->add_flag("--try", options->attempt, "Take a small program through checkpoint, SIGKILL and restart");
  app->add_flag("--json", options->json, "Print JSON");
  options->add_to(*app);
  app->footer("Exits with 0 if all is well, 1 with warnings, 2 with errors.");
  app->callback([&cli, options] { cli.chosen = [options] { return run_doctor(*options); }; });
  add_setup_command(cli);
  add_trial_program(cli);
}

}  // namespace icp
