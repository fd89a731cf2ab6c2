// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/include/icp.h"

#include <nlohmann/json.hpp>

#include "engine/library/program.h"

namespace slurm_icp {
namespace {

using nlohmann::json;

// Fields that a later icp leaves out are 0 or empty; of another type: an answer that is none.
template <typename Function>
auto read_answer(const Function& read) {
  try {
    return read();
  } catch (const json::exception& error) {
    throw Error(ErrorKind::kSystem, std::string("icp's answer cannot be read: ") + error.what(),
                "$ICP_PROGRAM names the icp of the same release");
  }
}

Version version_from(const json& value) {
  Version version;
  version.number = value.at("version").get<uint32_t>();
  version.error = value.value("error", "");
  version.warnings = value.value("warnings", std::vector<std::string>());
  version.taken_unix_ns = value.value("taken_unix_ns", uint64_t{0});
  const auto stats = value.find("stats");
  if (stats == value.end()) return version;
  version.full = stats->value("full", false);
  version.processes = stats->value("processes", 0u);
  version.pages_written = stats->value("pages_written", uint64_t{0});
  version.pages_total = stats->value("pages_total", uint64_t{0});
  version.bytes_written = stats->value("bytes_written", uint64_t{0});
  version.stop_ns = stats->value("stop_ns", uint64_t{0});
  return version;
}

}  // namespace

std::vector<Finding> check(pid_t root) {
  const json answer = run_icp({"check", "--json", "--pid=" + std::to_string(root)});
  return read_answer([&] {
    std::vector<Finding> findings;
    for (const json& one : answer.at("findings"))
      findings.push_back({one.value("pid", pid_t{0}), one.value("command", ""), one.value("where", ""),
                          one.value("what", ""), one.value("hint", ""), one.value("transient", false)});
    return findings;
  });
}

Version checkpoint(pid_t root, const std::string& dir, const CheckpointOptions& options) {
  std::vector<std::string> words{"checkpoint", "--json", "--pid=" + std::to_string(root), "--dir=" + dir};
  if (options.kill) words.emplace_back("--kill");
  if (options.keep > 0) words.push_back("--keep=" + std::to_string(options.keep));
  if (!options.compression.empty()) words.push_back("--compression=" + options.compression);
  const json answer = run_icp(words);
  return read_answer([&] { return version_from(answer); });
}

pid_t restart(const std::string& dir, const RestartOptions& options) {
  std::vector<std::string> words{"restart", "--json", "--detach", "--dir=" + dir};
  if (options.version > 0) words.push_back("--version=" + std::to_string(options.version));
  if (options.lazy) words.emplace_back("--lazy");
  if (!options.changed_files.empty()) words.push_back("--changed-files=" + options.changed_files);
  const json answer = run_icp(words, true);
  return read_answer([&] { return answer.at("pid").get<pid_t>(); });
}

std::vector<Version> list(const std::string& dir) {
  json answer;
  try {
    answer = run_icp({"list", "--json", "--", dir});
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kGone) return {};  // a directory, and no version in it yet
    throw;
  }
  return read_answer([&] {
    std::vector<Version> versions;
    for (const json& one : answer.at("versions")) versions.push_back(version_from(one));
    return versions;
  });
}

std::vector<Verdict> verify(const std::string& dir, const VerifyOptions& options) {
  std::vector<std::string> words{"verify", "--json"};
  if (options.version > 0) words.push_back("--version=" + std::to_string(options.version));
  if (options.restore) words.emplace_back("--restore");
  words.insert(words.end(), {"--", dir});
  const json answer = run_icp(words);
  return read_answer([&] {
    std::vector<Verdict> verdicts;
    for (const json& one : answer.at("versions"))
      verdicts.push_back({one.at("version").get<uint32_t>(), one.value("whole", false),
                          one.value("problems", std::vector<std::string>())});
    return verdicts;
  });
}

}  // namespace slurm_icp
