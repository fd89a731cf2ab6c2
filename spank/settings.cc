// SPDX-License-Identifier: GPL-2.0-or-later
#include "spank/settings.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>

namespace icp::spank {
namespace {

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// A plain or quoted YAML scalar without its comment.
std::string scalar(std::string_view text) {
  text = trim(text);
  if (!text.empty() && (text[0] == '"' || text[0] == '\'')) {
    const size_t end = text.find(text[0], 1);
    return std::string(text.substr(1, end == std::string_view::npos ? end : end - 1));
  }
  if (const size_t comment = text.find(" #"); comment != std::string_view::npos) text = trim(text.substr(0, comment));
  return std::string(text.starts_with('#') ? std::string_view{} : text);
}

// slurmstepd must not carry a YAML parser for three words, hence: top-level "key: value" lines only. icpstepd reads the
// same file with yaml-cpp and says what is wrong in it, by line and key.
void read_config(Settings& settings, std::vector<std::string>& complaints) {
  std::ifstream file(settings.config);
  if (!file) {
    if (errno != ENOENT) complaints.push_back("cannot read " + settings.config + ": " + std::strerror(errno));
    return;  // without a file all defaults hold
  }
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = line.substr(0, colon), value = scalar(std::string_view(line).substr(colon + 1));
    if (key == "run_dir" && value.starts_with('/')) settings.run_dir = value;
    if (key == "on_demand") settings.on_demand = value == "yes";
    if (key != "ipc") continue;
    if (value == "private") {
      settings.ipc = IpcChoice::kPrivate;
    } else if (value == "host") {
      settings.ipc = IpcChoice::kHost;
    } else if (value == "off") {
      settings.ipc = IpcChoice::kOff;
    } else {
      complaints.push_back(settings.config + ": ipc is '" + value + "'; it must be private, host or off");
    }
  }
}

}  // namespace

Settings Settings::read(int argc, char** argv, std::vector<std::string>& complaints) {
  Settings settings;
  for (int i = 0; i < argc; i++) {
    const std::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string_view key = argument.substr(0, equals);
    const std::string value(equals == std::string_view::npos ? "" : argument.substr(equals + 1));
    std::string* const target = key == "config" ? &settings.config : key == "icpstepd" ? &settings.icpstepd : nullptr;
    if (target == nullptr) {
      complaints.push_back("unknown argument '" + std::string(argument) +
                           "' in plugstack.conf; known are config=FILE and icpstepd=FILE");
    } else if (!value.starts_with('/')) {
      complaints.push_back("argument '" + std::string(argument) + "' in plugstack.conf: an absolute path is needed");
    } else {
      *target = value;
    }
  }
  read_config(settings, complaints);
  return settings;
}

}  // namespace icp::spank
