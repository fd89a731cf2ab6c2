// SPDX-License-Identifier: GPL-2.0-or-later
#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "coordinator/icp/doctor/checks.h"

namespace icp::doctor {

namespace {

constexpr const char* kDefaultAgent = ICP_LIBEXEC_DIR "/icpstepd";

// What editors and package tools leave beside a file: an include of "*" takes it for one more.
bool is_leftover(const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  const auto ends = [&](const char* end) { return name.ends_with(end); };
  return name.starts_with('#') || name.starts_with('.') || ends("~") || ends(".swp") || ends(".bak") || ends(".orig") ||
         ends(".dpkg-old") || ends(".dpkg-new") || ends(".dpkg-dist") || ends(".rpmsave") || ends(".rpmnew") ||
         ends(".rpmorig") || ends(".save");
}

void check_leftovers(const Plugstack& stack, Diagnosis& diagnosis) {
  for (const std::string& file : stack.files)
    if (is_leftover(file))
      diagnosis.error("slurm.plugstack", fmt::format("{} is included, and looks like what an editor left", file),
                      "remove it: its lines count, and a wrong one fails every job");
  for (const std::string& wrong : stack.wrong)
    diagnosis.error("slurm.plugstack", wrong, "correct or remove that line: Slurm refuses the whole file");
}

// The values of config= and icpstepd= in our line; what is wrong with the others.
struct Arguments {
  std::string config = "/etc/slurm-icp/icp.yaml", icpstepd = kDefaultAgent, wrong;
};

Arguments arguments_of(const PluginLine& line) {
  Arguments values;
  for (const std::string& argument : line.arguments) {
    const size_t sign = argument.find('=');
    const std::string key = argument.substr(0, sign),
                      value = sign == std::string::npos ? "" : argument.substr(sign + 1);
    if (key != "config" && key != "icpstepd") {
      values.wrong = fmt::format("unknown argument '{}'", argument);
    } else if (!value.starts_with('/')) {
      values.wrong = fmt::format("'{}' needs an absolute path", argument);
    } else {
      (key == "config" ? values.config : values.icpstepd) = value;
    }
  }
  return values;
}

void check_plugin(const Host& host, const SlurmChecks& what, const PluginLine& line, Diagnosis& diagnosis) {
  const std::string place = fmt::format("{}:{}", line.file, line.number);
  const std::string plugin = find_plugin(host, what.conf, line.plugin);
  if (plugin.empty()) {
    const std::string text = fmt::format("{}: {} is in none of Slurm's plugin directories", place, line.plugin);
    return diagnosis.error("slurm.plugin", line.required ? text + ": no job can run" : text,
                           "install slurm-icp-plugin, or name its path");
  }
  const PluginFacts facts = plugin_facts(host.at(plugin));
  if (facts.slurm == 0)
    return diagnosis.error("slurm.plugin", plugin + " is not a Slurm plugin", "install slurm-icp-plugin again");
  const SlurmVersion built = SlurmVersion::of_number(facts.slurm);
  const auto here = slurm_version(host);
  if (!here)
    diagnosis.warning("slurm.plugin",
                      fmt::format("{} is for Slurm {}; which one is here cannot be found out", plugin, built.text()),
                      "put slurmd or sinfo into PATH");
  else if (!here->same_abi(built))
    diagnosis.error("slurm.plugin",
                    fmt::format("{} is for Slurm {}.{:02}, here is {}", plugin, built.major, built.minor, here->text()),
                    fmt::format("install the plugin that was built against Slurm {}.{:02}", here->major, here->minor));
  else
    diagnosis.ok("slurm.plugin", fmt::format("{} is for Slurm {}, here is {}", plugin, built.text(), here->text()));
  if (facts.release != ICP_VERSION)
    diagnosis.error("slurm.plugin_release",
                    fmt::format("{} is of slurm-icp {}, icp of {}", plugin,
                                facts.release.empty() ? "(unknown)" : facts.release, ICP_VERSION),
                    "install the same slurm-icp everywhere; new jobs have it at once");
}

std::string check_plugstack(const Host& host, const SlurmChecks& what, Diagnosis& diagnosis) {
  const Plugstack stack = Plugstack::read(host, plugstack_path(what.conf));
  check_leftovers(stack, diagnosis);
  const std::vector<PluginLine> lines = stack.ours();
  if (lines.empty()) {
    diagnosis.error("slurm.plugstack", fmt::format("no line for spank_icp.so in {}", stack.path),
                    "icp setup enable writes one");
    return kDefaultAgent;
  }
  const PluginLine& line = lines.front();
  const Arguments values = arguments_of(line);
  const std::string place = fmt::format("{}:{}", line.file, line.number);
  if (lines.size() > 1)
    diagnosis.error("slurm.plugstack",
                    fmt::format("{} and {}:{} both load spank_icp.so", place, lines[1].file, lines[1].number),
                    "remove one of them: options would be there twice");
  else if (!values.wrong.empty())
    diagnosis.error("slurm.plugstack", fmt::format("{}: {}", place, values.wrong),
                    "known are config=FILE and icpstepd=FILE; the default holds meanwhile");
  else if (line.required)
    diagnosis.warning("slurm.plugstack", fmt::format("{}: required: without the plugin no job runs", place),
                      "use optional, as icp setup enable does");
  else
    diagnosis.ok("slurm.plugstack", fmt::format("{} loads spank_icp.so", place));
  if (values.config != what.config)
    diagnosis.warning("slurm.plugstack_config",
                      fmt::format("{}: jobs use {}, and {} was looked at", place, values.config, what.config),
                      fmt::format("icp doctor --config {}", values.config));
  check_plugin(host, what, line, diagnosis);
  return values.icpstepd;
}

void check_proctrack(const SlurmConf& conf, Diagnosis& diagnosis) {
  const std::string kind = conf.get("ProctrackType");
  if (kind.empty() || kind == "proctrack/cgroup") return diagnosis.ok("slurm.proctrack", "proctrack/cgroup");
  diagnosis.warning(
      "slurm.proctrack",
      fmt::format("{}: orphans of a job are found only through their ancestors, and its agent may outlive "
                  "what Slurm knows of it",
                  kind),
      "ProctrackType=proctrack/cgroup in slurm.conf");
}

void check_kill_wait(const SlurmConf& conf, Diagnosis& diagnosis) {
  unsigned seconds = 30;  // Slurm's default
  const std::string text = conf.get("KillWait");
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  const std::string found = fmt::format("KillWait is {} s", seconds);
  if (seconds >= 10) return diagnosis.ok("slurm.kill_wait", found);
  diagnosis.warning("slurm.kill_wait",
                    found + ": a version that is being written when a job is told to end is lost as a rule",
                    "KillWait=30 in slurm.conf; the version before stays in any case");
}

void check_requeue(const SlurmConf& conf, Diagnosis& diagnosis) {
  if (conf.get("JobRequeue") != "0")
    return diagnosis.ok("slurm.requeue", "batch jobs are requeued when their node dies, and go on by themselves");
  diagnosis.warning("slurm.requeue", "JobRequeue=0: a job whose node dies is not requeued",
                    "JobRequeue=1 in slurm.conf, or sbatch --requeue for each job");
}

void check_node_settings(const SlurmConf& conf, Diagnosis& diagnosis) {
  check_proctrack(conf, diagnosis);
  check_kill_wait(conf, diagnosis);
  check_requeue(conf, diagnosis);
}

}  // namespace

std::string check_slurm(const Host& host, const SlurmChecks& what, Diagnosis& diagnosis) {
  if (!what.conf)
    diagnosis.warning("slurm.conf", "no slurm.conf is found", "name it: --slurm-conf FILE, or SLURM_CONF");
  else if (!host.read(what.conf->path()))
    diagnosis.error("slurm.conf", what.conf->path() + " cannot be read", "name the right one with --slurm-conf");
  else
    diagnosis.ok("slurm.conf", what.conf->path());
  const std::string agent = check_plugstack(host, what, diagnosis);
  if (what.conf && what.node) check_node_settings(*what.conf, diagnosis);
  return agent;
}

void check_coordinator_machine(const Host& host, const std::optional<SlurmConf>& conf, const Config& config,
                               Diagnosis& diagnosis) {
  const std::string slurm_user = conf ? conf->get("SlurmUser") : "";
  if (const std::string user = slurm_user.empty() ? "root" : slurm_user.substr(0, slurm_user.find('('));
      conf && lower(user) != lower(config.coordinator_user))
    diagnosis.error(
        "coordinator.user",
        fmt::format("icpctld runs as {} (coordinator_user), and SlurmUser is {}", config.coordinator_user, user),
        "make them the same: else it cannot requeue or end jobs of others");
  else
    diagnosis.ok("coordinator.user", "icpctld runs as " + config.coordinator_user);
  struct stat info {};
  const passwd* const user = ::getpwnam(config.coordinator_user.c_str());
  if (user == nullptr)
    diagnosis.error("coordinator.state", fmt::format("there is no user {}", config.coordinator_user),
                    "create it, or set coordinator_user in icp.yaml");
  else if (::stat(host.at(config.state_dir).c_str(), &info) != 0)
    diagnosis.ok("coordinator.state", config.state_dir + " is made when icpctld starts for the first time");
  else if (info.st_uid != user->pw_uid)
    diagnosis.error(
        "coordinator.state",
        fmt::format("{} belongs to user {}, not {}", config.state_dir, info.st_uid, config.coordinator_user),
        fmt::format("chown -R {} {}", config.coordinator_user, config.state_dir));
  else
    diagnosis.ok("coordinator.state", config.state_dir);
}

}  // namespace icp::doctor
