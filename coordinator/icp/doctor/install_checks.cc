// SPDX-License-Identifier: GPL-2.0-or-later
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include "coordinator/icp/doctor/checks.h"
#include "engine/base/error.h"

namespace icp::doctor {

namespace {

// Root runs it: nobody else may be able to change it, or to put another file in its place. Empty: nobody can.
std::string changeable(const Host& host, std::string path) {
  while (!path.empty()) {
    struct stat info {};
    if (::stat(host.at(path).c_str(), &info) != 0) return "";
    if (info.st_uid != host.administrator && info.st_uid != 0)
      return fmt::format("{} belongs to user {}", path, info.st_uid);
    if ((info.st_mode & S_IWOTH) != 0 && (info.st_mode & S_ISVTX) == 0)
      return fmt::format("{} can be written by everybody", path);
    path.resize(path.rfind('/'));
  }
  return "";
}

}  // namespace

Config check_config(const Host& host, const std::string& path, Diagnosis& diagnosis) {
  const auto text = host.read(path);
  if (!text) {
    if (host.exists(path))
      diagnosis.error("config.icp_yaml", fmt::format("{} cannot be read", path), "everybody has to be able to read it");
    else
      diagnosis.ok("config.icp_yaml", fmt::format("{} is not there: all defaults", path));
    return {};
  }
  try {
    Config config = Config::parse(*text, path);
    if (const std::string who = changeable(host, path); !who.empty())
      diagnosis.error("config.icp_yaml", who, "icp.yaml says what root runs: chown root, chmod go-w");
    else
      diagnosis.ok("config.icp_yaml", path + " is correct");
    return config;
  } catch (const Error& error) {
    diagnosis.error("config.icp_yaml", error.what(), "correct that line; until then steps are not checkpointed");
    return {};
  }
}

void check_installation(const Host& host, const std::string& icpstepd, Diagnosis& diagnosis) {
  const std::string directory = icpstepd.substr(0, icpstepd.rfind('/'));
  for (const std::string& path : {icpstepd, directory + "/icp-proxy", directory + "/icp-init"}) {
    struct stat info {};
    if (::stat(host.at(path).c_str(), &info) != 0)
      return diagnosis.error("install.programs", fmt::format("{} is not there", path),
                             "install slurm-icp on this node, or name the right path (icpstepd=) in plugstack.conf");
    if (!S_ISREG(info.st_mode) || (info.st_mode & 0555) != 0555)
      return diagnosis.error("install.programs", fmt::format("{} cannot be executed by everybody", path), "chmod 755");
    if (const std::string who = changeable(host, path); !who.empty())
      return diagnosis.error("install.programs", who, "root runs what is in there: chown root, chmod go-w");
  }
  diagnosis.ok("install.programs", fmt::format("icpstepd, icp-proxy and icp-init are in {}", directory));

  const auto said = host.run({host.at(icpstepd), "--version"});
  const std::string version = said ? said->substr(0, said->find_last_not_of(" \n") + 1) : "";
  if (version.empty())
    diagnosis.error("install.agent", fmt::format("{} --version says nothing", icpstepd),
                    fmt::format("try it by hand; ldd {} shows libraries that are missing", icpstepd));
  else if (version != "icpstepd " ICP_VERSION)
    diagnosis.error("install.agent",
                    fmt::format("{} says \"{}\", icp is of slurm-icp {}", icpstepd, version, ICP_VERSION),
                    "install the same slurm-icp everywhere");
  else
    diagnosis.ok("install.agent", version);
}

}  // namespace icp::doctor
