// SPDX-License-Identifier: GPL-2.0-or-later
#include <fmt/format.h>

#include <algorithm>
#include <sstream>
#include <vector>

#include "coordinator/icp/doctor/checks.h"

namespace icp::doctor {

namespace {

bool under_systemd(const Host& host) { return host.exists("/run/systemd/system"); }

// The last value of `key` in a systemd file and its drop-ins, the way systemd reads them; empty when it is not set.
std::string systemd_value(const Host& host, const std::vector<std::string>& files, const std::string& key) {
  std::string value;
  for (const std::string& file : files) {
    std::istringstream text(host.read(file).value_or(""));
    for (std::string line; std::getline(text, line);)
      if (line.starts_with(key + "=")) value = line.substr(key.size() + 1);
  }
  return value.substr(0, value.find_last_not_of(" \t\r") + 1);
}

bool is_yes(const std::string& value) {
  return value == "yes" || value == "true" || value == "1" || value == "on" || value == "Yes" || value == "YES";
}

// The main file that counts, and all drop-ins: by their names, whatever directory they are in.
std::vector<std::string> systemd_files(const Host& host, const std::string& name,
                                       const std::vector<std::string>& directories) {
  std::vector<std::string> files, drop_ins;
  for (const std::string& directory : directories) {
    if (const std::string path = directory + "/" + name; files.empty() && host.exists(path)) files.push_back(path);
    for (const std::string& path : host.matching(directory + "/" + name + ".d/*.conf")) drop_ins.push_back(path);
  }
  const auto base = [](const std::string& path) { return path.substr(path.rfind('/') + 1); };
  std::stable_sort(drop_ins.begin(), drop_ins.end(),
                   [&](const std::string& a, const std::string& b) { return base(a) < base(b); });
  files.insert(files.end(), drop_ins.begin(), drop_ins.end());
  return files;
}

void check_delegation(const Host& host, Diagnosis& diagnosis) {
  const std::vector<std::string> files =
      systemd_files(host, "slurmd.service",
                    {"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
                     "/usr/lib/systemd/system", "/lib/systemd/system"});
  if (!under_systemd(host) || files.empty())
    return diagnosis.ok("system.delegation", "slurmd is not a unit of systemd here");
  const std::string value = systemd_value(host, files, "Delegate");
  if (value.empty() || value == "no" || value == "false" || value == "0")
    return diagnosis.warning("system.delegation",
                             fmt::format("{} has no Delegate=yes: systemd may move jobs' processes", files.front()),
                             "systemctl edit slurmd: [Service] Delegate=yes; then restart slurmd");
  diagnosis.ok("system.delegation", "slurmd's cgroup is its own (Delegate=" + value + ")");
}

void check_cgroups(const Host& host, Diagnosis& diagnosis) {
  if (host.exists("/sys/fs/cgroup/cgroup.controllers")) {
    const std::string controllers = " " + host.word("/sys/fs/cgroup/cgroup.controllers") + " ";
    for (const char* const wanted : {"memory", "cpuset"})
      if (controllers.find(fmt::format(" {} ", wanted)) == std::string::npos)
        return diagnosis.warning(
            "system.cgroup", fmt::format("version 2 without the {} controller", wanted),
            "Slurm's task/cgroup cannot limit it; look at the kernel's command line (cgroup_disable=)");
    diagnosis.ok("system.cgroup", "version 2");
    return check_delegation(host, diagnosis);
  }
  if (host.exists("/sys/fs/cgroup/freezer")) return diagnosis.ok("system.cgroup", "version 1");
  diagnosis.warning("system.cgroup", "no control groups are mounted on /sys/fs/cgroup",
                    "proctrack/cgroup cannot work: mount them, as systemd does");
}

void check_remove_ipc(const Host& host, const Config& config, Diagnosis& diagnosis) {
  if (!under_systemd(host)) return;
  const std::string value = systemd_value(
      host,
      systemd_files(host, "logind.conf",
                    {"/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd"}),
      "RemoveIPC");
  const bool removes = value.empty() || is_yes(value);  // systemd's own default
  if (!removes) return diagnosis.ok("system.remove_ipc", "logind leaves System V objects alone");
  if (config.ipc == IpcPolicy::kPrivate)
    return diagnosis.ok("system.remove_ipc", "RemoveIPC=yes does not reach jobs (ipc: private)");
  diagnosis.warning("system.remove_ipc",
                    "logind removes a user's System V objects when the user's last session ends, jobs' among them",
                    "RemoveIPC=no in /etc/systemd/logind.conf, then systemctl restart systemd-logind; or ipc: private");
}

}  // namespace

void check_system(const Host& host, const Config& config, Diagnosis& diagnosis) {
  check_cgroups(host, diagnosis);
  check_remove_ipc(host, config, diagnosis);
}

}  // namespace icp::doctor
