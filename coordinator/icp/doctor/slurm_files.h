// SPDX-License-Identifier: GPL-2.0-or-later
// Slurm's configuration files, as far as slurm-icp has to know them: slurm.conf(5), plugstack.conf (spank(8)); and what
// a plugin says of itself.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/icp/doctor/host.h"

namespace icp::doctor {

// In ASCII: of Slurm's words upper and lower case are the same.
std::string lower(std::string text);
std::string directory_of(const std::string& path);

// The settings of the whole cluster; lines about nodes and partitions are left out.
class SlurmConf {
 public:
  // Where it is: `given`, else $SLURM_CONF, else the usual places, slurmd's copy of a configless cluster among them.
  // Nothing when there is none.
  static std::optional<SlurmConf> find(const Host& host, const std::string& given);
  static SlurmConf parse(const Host& host, const std::string& path);

  const std::string& path() const { return path_; }
  std::string directory() const;
  // Upper and lower case of `key` are the same. Empty when it is not set.
  std::string get(const std::string& key) const;

 private:
  void take(const Host& host, const std::string& path, int depth);
  std::string path_;
  std::map<std::string, std::string> values_;
};

// One line of plugstack.conf that names a plugin.
struct PluginLine {
  std::string file;  // where it stands
  int number = 0;
  bool required = false;
  std::string plugin;  // a path, or a name below PluginDir
  std::vector<std::string> arguments;
};

struct Plugstack {
  std::string path;                   // plugstack.conf itself
  bool exists = false;                // which is no error: there are no plugins then
  std::vector<PluginLine> plugins;    // all, in Slurm's order
  std::vector<std::string> wrong;     // "FILE:LINE: what": Slurm does not take such lines
  std::vector<std::string> files;     // read: that of `path` and all it includes
  std::vector<std::string> patterns;  // of the include lines, absolute

  static Plugstack read(const Host& host, const std::string& path);
  // Whether a file of that name would be included.
  bool includes(const std::string& file) const;
  // The lines that name our plugin.
  std::vector<PluginLine> ours() const;
};
// PlugStackConfig=, else beside slurm.conf.
std::string plugstack_path(const std::optional<SlurmConf>& conf);

// Where Slurm looks for `plugin`: as it is when it is a path, else below PluginDir= or the usual places. Empty:
// nowhere.
std::string find_plugin(const Host& host, const std::optional<SlurmConf>& conf, const std::string& plugin);

// What a plugin says of itself.
struct PluginFacts {
  uint32_t slurm = 0;   // SLURM_VERSION_NUMBER it was built against; 0: it does not say
  std::string release;  // of slurm-icp; empty: it does not say
};
PluginFacts plugin_facts(const std::string& path);

// 22.05 as {22, 5}.
struct SlurmVersion {
  uint32_t major = 0, minor = 0, micro = 0;
  std::string text() const;
  bool same_abi(const SlurmVersion& other) const { return major == other.major && minor == other.minor; }
  static SlurmVersion of_number(uint32_t number);
  // "slurm-wlm 22.05.8", "slurm 25.11.0-0rc1"
  static std::optional<SlurmVersion> parse(const std::string& text);
};
// What the programs here say: slurmd, else the commands of a login node.
std::optional<SlurmVersion> slurm_version(const Host& host);

}  // namespace icp::doctor
