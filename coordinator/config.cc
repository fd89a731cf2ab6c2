// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/config.h"

#include <yaml-cpp/yaml.h>

#include <cerrno>
#include <charconv>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "coordinator/checkpoint_moments.h"
#include "coordinator/duration.h"
#include "engine/base/error.h"

namespace icp {
namespace {

// One key's value, with all that an error message needs.
struct Entry {
  const std::string& file;
  int line;  // of the key, from 1
  std::string key;
  const YAML::Node& node;

  [[noreturn]] void fail(const std::string& why) const {
    throw_error(ErrorKind::kUsage, "{}:{}: {}: {}", file, line, key, why);
  }
  std::string text() const {
    if (!node.IsScalar()) fail(node.IsNull() ? "a value is missing" : "a single value is needed, not a list or a map");
    return node.Scalar();
  }
};

template <typename T>
T one_of(const Entry& entry, const std::map<std::string, T>& values) {
  const std::string text = entry.text();
  if (const auto found = values.find(text); found != values.end()) return found->second;
  std::string known;
  for (const auto& [name, value] : values) known += (known.empty() ? "" : ", ") + name;
  entry.fail(fmt::format("'{}' is not one of {}", text, known));
}

// YAML's own words for it, too.
bool yes_or_no(const Entry& entry) {
  const std::string text = entry.text();
  if (text == "yes" || text == "true") return true;
  if (text == "no" || text == "false") return false;
  entry.fail(fmt::format("'{}' is not one of no, yes", text));
}

std::chrono::milliseconds duration(const Entry& entry) {
  std::string why;
  const auto value = parse_duration(entry.text(), why);
  if (!value) entry.fail(why);
  return *value;
}

uint64_t size(const Entry& entry) {
  static const std::map<std::string, int> units = {{"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  const std::string text = entry.text();
  uint64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(stop, text.data() + text.size());
  if (unit.starts_with(' ')) unit.erase(0, 1);
  const auto found = units.find(unit);
  if (error != std::errc() || found == units.end() || number == 0 || number > (UINT64_MAX >> 1 >> found->second)) {
    entry.fail(fmt::format("'{}' is not a size: a number of bytes, or with KiB, MiB, GiB or TiB, as in 512MiB", text));
  }
  return number << found->second;
}

uint32_t count(const Entry& entry) {
  const std::string text = entry.text();
  uint32_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || stop != text.data() + text.size()) {
    entry.fail(fmt::format("'{}' is not a number from 0 to {}", text, UINT32_MAX));
  }
  return number;
}

std::string absolute_path(const Entry& entry) {
  std::string text = entry.text();
  if (!text.starts_with('/')) entry.fail(fmt::format("'{}' is not an absolute path", text));
  return text;
}

net::Endpoint endpoint(const Entry& entry) {
  std::string text = entry.text(), why;
  const bool all = text.starts_with("*");
  if (all) text.erase(0, 1);
  const auto value = net::parse_endpoint(text, all, why);
  if (!value) entry.fail(why);
  return *value;
}

std::chrono::milliseconds positive_duration(const Entry& entry) {
  const std::chrono::milliseconds value = duration(entry);
  if (value.count() == 0) entry.fail("it must be greater than zero");
  return value;
}

uint32_t number(const Entry& entry, uint32_t most) {
  const std::string text = entry.text();
  uint32_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || text.empty() || value > most) {
    entry.fail(fmt::format("'{}' is not a number from 0 to {}", text, most));
  }
  return value;
}

using Reader = std::function<void(Config&, const Entry&)>;

const std::map<std::string, Reader>& readers() {
  static const std::map<std::string, Reader> all = {
      {"ipc",
       [](Config& c, const Entry& e) {
         c.ipc = one_of<IpcPolicy>(
             e, {{"private", IpcPolicy::kPrivate}, {"host", IpcPolicy::kHost}, {"off", IpcPolicy::kOff}});
       }},
      {"batch",
       [](Config& c, const Entry& e) {
         c.batch =
             one_of<BatchPolicy>(e, {{"when-possible", BatchPolicy::kWhenPossible}, {"never", BatchPolicy::kNever}});
       }},
      {"checkpoint_dir",
       [](Config& c, const Entry& e) { c.checkpoint_dir = e.text().empty() ? "" : absolute_path(e); }},
      {"min_interval", [](Config& c, const Entry& e) { c.min_interval = duration(e); }},
      {"tracker",
       [](Config& c, const Entry& e) {
         try {
           c.tracker = parse_tracker(e.text());
         } catch (const Error& error) {
           e.fail(error.what());
         }
       }},
      {"staging_limit", [](Config& c, const Entry& e) { c.staging_limit = size(e); }},
      {"checkpoint_on",
       [](Config& c, const Entry& e) {
         c.checkpoint_on = e.text();
         if (!c.checkpoint_on.empty() && !are_moments(c.checkpoint_on))
           e.fail(fmt::format("'{}' is not {}", c.checkpoint_on, kMomentsGrammar));
       }},
      {"requeue_max", [](Config& c, const Entry& e) { c.requeue_max = count(e); }},
      {"requeue_margin", [](Config& c, const Entry& e) { c.requeue_margin = duration(e); }},
      {"hang_after",
       [](Config& c, const Entry& e) {
         c.hang_after = e.text() == "off" ? std::chrono::milliseconds(0) : positive_duration(e);
       }},
      {"hang_action",
       [](Config& c, const Entry& e) {
         c.hang_action = one_of<HangAction>(e, {{"report", HangAction::kReport}, {"requeue", HangAction::kRequeue}});
       }},
      {"restart_attempts", [](Config& c, const Entry& e) { c.restart_attempts = count(e); }},
      {"exclude_failed_nodes", [](Config& c, const Entry& e) { c.exclude_failed_nodes = yes_or_no(e); }},
      {"keep", [](Config& c, const Entry& e) { c.keep = count(e); }},
      {"dedup", [](Config& c, const Entry& e) { c.dedup = yes_or_no(e); }},
      {"compression",
       [](Config& c, const Entry& e) {
         c.compression = one_of<Compression>(
             e, {{"none", Compression::kNone}, {"zstd", Compression::kZstd}, {"lz4", Compression::kLz4}});
       }},
      {"checkpoint_files",
       [](Config& c, const Entry& e) {
         c.checkpoint_files =
             one_of<CheckpointFiles>(e, {{"none", CheckpointFiles::kNone}, {"open", CheckpointFiles::kOpen}});
       }},
      {"changed_files",
       [](Config& c, const Entry& e) {
         c.changed_files = one_of<ChangedFiles>(e, {{"restore", ChangedFiles::kRestore},
                                                    {"refuse", ChangedFiles::kRefuse},
                                                    {"accept", ChangedFiles::kAccept}});
       }},
      {"grown_files",  // its name before it knew of more changes than growing
       [](Config& c, const Entry& e) {
         c.changed_files = one_of<ChangedFiles>(e, {{"truncate", ChangedFiles::kRestore},
                                                    {"fail", ChangedFiles::kRefuse},
                                                    {"accept", ChangedFiles::kAccept}});
       }},
      {"external_tcp",
       [](Config& c, const Entry& e) {
         c.external_tcp = one_of<ExternalTcp>(e, {{"refuse", ExternalTcp::kRefuse}, {"reset", ExternalTcp::kReset}});
       }},
      {"run_dir", [](Config& c, const Entry& e) { c.run_dir = absolute_path(e); }},
      {"log",
       [](Config& c, const Entry& e) {
         c.log = e.text();
         if (c.log != "syslog" && c.log != "none") c.log = absolute_path(e);
       }},
      {"log_level",
       [](Config& c, const Entry& e) {
         c.log_level =
             one_of<std::string>(e, {{"debug", "debug"}, {"info", "info"}, {"warning", "warning"}, {"error", "error"}});
       }},
      {"coordinator",
       [](Config& c, const Entry& e) {
         std::string why;
         if (e.text().empty()) return c.coordinators.clear();
         const auto value = net::parse_endpoints(e.text(), why);
         if (!value) e.fail(why);
         c.coordinators = *value;
       }},
      {"coordinator_user",
       [](Config& c, const Entry& e) {
         c.coordinator_user = e.text();
         if (c.coordinator_user.empty()) e.fail("a user is needed");
       }},
      {"munge_socket", [](Config& c, const Entry& e) { c.munge_socket = e.text().empty() ? "" : absolute_path(e); }},
      {"on_demand", [](Config& c, const Entry& e) { c.on_demand = yes_or_no(e); }},
      {"listen", [](Config& c, const Entry& e) { c.listen = endpoint(e); }},
      {"state_dir", [](Config& c, const Entry& e) { c.state_dir = absolute_path(e); }},
      {"coordinator_log",
       [](Config& c, const Entry& e) {
         c.coordinator_log = e.text();
         const bool word =
             c.coordinator_log == "syslog" || c.coordinator_log == "none" || c.coordinator_log == "stderr";
         if (!word) c.coordinator_log = absolute_path(e);
       }},
      {"prepare_timeout", [](Config& c, const Entry& e) { c.prepare_timeout = positive_duration(e); }},
      {"stop_timeout", [](Config& c, const Entry& e) { c.stop_timeout = positive_duration(e); }},
      {"write_timeout", [](Config& c, const Entry& e) { c.write_timeout = positive_duration(e); }},
      {"max_writers", [](Config& c, const Entry& e) { c.max_writers = number(e, 1'000'000); }},
      {"jitter", [](Config& c, const Entry& e) { c.jitter = number(e, 50); }},
      {"site_script", [](Config& c, const Entry& e) { c.site_script = e.text().empty() ? "" : absolute_path(e); }},
      {"rest", [](Config& c, const Entry& e) { c.rest = e.text().empty() ? "" : absolute_path(e); }},
      {"rest_listen",
       [](Config& c, const Entry& e) {
         c.rest_listen.reset();
         if (!e.text().empty()) c.rest_listen = endpoint(e);
       }},
      {"metrics",
       [](Config& c, const Entry& e) {
         c.metrics.reset();
         if (!e.text().empty()) c.metrics = endpoint(e);
       }},
  };
  return all;
}

}  // namespace

Config Config::parse(const std::string& text, const std::string& name) {
  YAML::Node document;
  try {
    document = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw_error(ErrorKind::kUsage, "{}:{}: {}", name, error.mark.line + 1, error.msg);
  }
  Config config;
  if (document.IsNull()) return config;  // nothing but comments
  if (!document.IsMap()) throw_error(ErrorKind::kUsage, "{}:1: 'key: value' lines are needed", name);
  std::set<std::string> seen;
  for (const auto& pair : document) {
    const int line = pair.first.Mark().line + 1;
    const std::string key = pair.first.IsScalar() ? pair.first.Scalar() : "?";
    const auto reader = readers().find(key);
    if (reader == readers().end()) throw_error(ErrorKind::kUsage, "{}:{}: {}: unknown key", name, line, key);
    // yaml-cpp takes a key twice; which of them holds would be anybody's guess.
    if (!seen.insert(key).second) throw_error(ErrorKind::kUsage, "{}:{}: {}: given twice", name, line, key);
    reader->second(config, Entry{name, line, key, pair.second});
  }
  return config;
}

Config Config::load(const std::string& path, bool must_exist) {
  std::ifstream file(path);
  if (!file) {
    if (errno == ENOENT && !must_exist) return {};
    throw_errno("cannot read {}", path);
  }
  std::stringstream text;
  text << file.rdbuf();
  return parse(text.str(), path);
}

}  // namespace icp
