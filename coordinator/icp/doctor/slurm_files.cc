// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/doctor/slurm_files.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace icp::doctor {

namespace {

constexpr int kDeepestInclude = 10;

// Words between white space; those in double quotes are one, without the quotes.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, any = false;
  for (const char c : line + ' ') {
    if (c == '"') {
      quoted = !quoted;
      any = true;
    } else if (!quoted && (c == ' ' || c == '\t' || c == '\r')) {
      if (any) words.push_back(word);
      word.clear();
      any = false;
    } else {
      word += c;
      any = true;
    }
  }
  return words;
}

// Lines without comments, with "\" at their end joined with the next; each with its first line's number.
std::vector<std::pair<int, std::string>> lines_of(const std::string& text) {
  std::vector<std::pair<int, std::string>> lines;
  std::istringstream stream(text);
  int number = 0;
  bool joined = false;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (const size_t sign = line.find('#'); sign != std::string::npos) line.resize(sign);
    line.resize(line.find_last_not_of(" \t\r") + 1);
    const bool more = line.ends_with('\\');
    if (more) line.pop_back();
    if (joined) {
      lines.back().second += line;
    } else {
      lines.emplace_back(number, line);
    }
    joined = more;
  }
  return lines;
}

const char* const kSlurmConfs[] = {"/etc/slurm/slurm.conf",
                                   "/run/slurm/conf/slurm.conf",
                                   "/var/spool/slurmd/conf-cache/slurm.conf",
                                   "/var/lib/slurm/slurmd/conf-cache/slurm.conf",
                                   "/etc/slurm-llnl/slurm.conf",
                                   "/usr/local/etc/slurm.conf",
                                   "/opt/slurm/etc/slurm.conf"};

const char* const kPluginDirs[] = {ICP_SLURM_PLUGIN_DIR,
                                   "/usr/lib/x86_64-linux-gnu/slurm-wlm",
                                   "/usr/lib/x86_64-linux-gnu/slurm",
                                   "/usr/lib64/slurm",
                                   "/usr/lib/slurm",
                                   "/usr/local/lib/slurm",
                                   "/usr/local/lib64/slurm",
                                   "/opt/slurm/lib/slurm",
                                   "/opt/slurm/lib64/slurm"};

}  // namespace

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::string directory_of(const std::string& path) { return path.substr(0, path.rfind('/')); }

std::optional<SlurmConf> SlurmConf::find(const Host& host, const std::string& given) {
  if (!given.empty()) return parse(host, given);
  if (const char* const variable = std::getenv("SLURM_CONF"); variable != nullptr && host.exists(variable))
    return parse(host, variable);
  for (const char* const path : kSlurmConfs)
    if (host.exists(path)) return parse(host, path);
  return std::nullopt;
}

SlurmConf SlurmConf::parse(const Host& host, const std::string& path) {
  SlurmConf conf;
  conf.path_ = path;
  conf.take(host, path, 0);
  return conf;
}

void SlurmConf::take(const Host& host, const std::string& path, int depth) {
  const auto text = host.read(path);
  if (!text || depth > kDeepestInclude) return;
  for (const auto& [number, line] : lines_of(*text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() == 2 && lower(words[0]) == "include") {
      take(host, words[1].starts_with('/') ? words[1] : directory() + "/" + words[1], depth + 1);
      continue;
    }
    static const std::array<std::string, 5> kOfParts = {"nodename", "partitionname", "downnodes", "nodeset",
                                                        "frontendname"};
    for (const std::string& word : words) {
      const size_t sign = word.find('=');
      if (sign == std::string::npos) break;
      const std::string key = lower(word.substr(0, sign));
      if (std::find(kOfParts.begin(), kOfParts.end(), key) != kOfParts.end()) break;
      values_[key] = word.substr(sign + 1);
    }
  }
}

std::string SlurmConf::directory() const { return directory_of(path_); }

std::string SlurmConf::get(const std::string& key) const {
  const auto found = values_.find(lower(key));
  return found == values_.end() ? "" : found->second;
}

std::string plugstack_path(const std::optional<SlurmConf>& conf) {
  if (!conf) return "/etc/slurm/plugstack.conf";
  const std::string set = conf->get("PlugStackConfig");
  return set.empty() ? conf->directory() + "/plugstack.conf" : set;
}

namespace {

void take_plugstack(const Host& host, const std::string& path, int depth, Plugstack& stack) {
  const auto text = host.read(path);
  if (!text) return;
  if (depth == 0) stack.exists = true;
  stack.files.push_back(path);
  for (const auto& [number, line] : lines_of(*text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.empty()) continue;
    const std::string kind = lower(words[0]);
    if (kind == "include" && words.size() == 2 && depth <= kDeepestInclude) {
      const std::string pattern = words[1].starts_with('/') ? words[1] : directory_of(stack.path) + "/" + words[1];
      stack.patterns.push_back(pattern);
      for (const std::string& file : host.matching(pattern)) take_plugstack(host, file, depth + 1, stack);
    } else if ((kind == "required" || kind == "optional") && words.size() >= 2) {
      stack.plugins.push_back({path, number, kind == "required", words[1], {words.begin() + 2, words.end()}});
    } else {
      stack.wrong.push_back(fmt::format(
          "{}:{}: '{}' begins with none of required, optional and include, or names no file", path, number, words[0]));
    }
  }
}

}  // namespace

Plugstack Plugstack::read(const Host& host, const std::string& path) {
  Plugstack stack;
  stack.path = path;
  take_plugstack(host, path, 0, stack);
  return stack;
}

bool Plugstack::includes(const std::string& file) const {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    return ::fnmatch(pattern.c_str(), file.c_str(), FNM_PATHNAME | FNM_PERIOD) == 0;
  });
}

std::vector<PluginLine> Plugstack::ours() const {
  std::vector<PluginLine> lines;
  for (const PluginLine& line : plugins)
    if (line.plugin.substr(line.plugin.rfind('/') + 1) == "spank_icp.so") lines.push_back(line);
  return lines;
}

std::string find_plugin(const Host& host, const std::optional<SlurmConf>& conf, const std::string& plugin) {
  if (plugin.starts_with('/')) return host.exists(plugin) ? plugin : "";
  std::vector<std::string> places;
  if (std::istringstream set(conf ? conf->get("PluginDir") : ""); set.peek() != EOF) {
    for (std::string place; std::getline(set, place, ':');) places.push_back(place);
  } else {
    places.assign(std::begin(kPluginDirs), std::end(kPluginDirs));
  }
  for (const std::string& place : places)
    if (const std::string path = place + "/" + plugin; host.exists(path)) return path;
  return "";
}

std::string SlurmVersion::text() const { return fmt::format("{}.{:02}.{}", major, minor, micro); }

SlurmVersion SlurmVersion::of_number(uint32_t number) {
  return {number >> 16 & 0xff, number >> 8 & 0xff, number & 0xff};
}

std::optional<SlurmVersion> SlurmVersion::parse(const std::string& text) {
  SlurmVersion version;
  const size_t start = text.find(' ');
  if (start == std::string::npos) return std::nullopt;
  if (std::sscanf(text.c_str() + start, " %u.%u.%u", &version.major, &version.minor, &version.micro) < 2)
    return std::nullopt;
  return version;
}

std::optional<SlurmVersion> slurm_version(const Host& host) {
  for (const char* const program : {"slurmd", "/usr/sbin/slurmd", "sinfo", "srun", "slurmctld", "/usr/sbin/slurmctld"})
    if (const auto text = host.run({program, "-V"}))
      if (const auto version = SlurmVersion::parse(*text)) return version;
  return std::nullopt;
}

}  // namespace icp::doctor
