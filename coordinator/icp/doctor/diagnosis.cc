// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/doctor/diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "coordinator/icp/format.h"

namespace icp::doctor {

std::string_view to_string(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kWarning:
      return "warning";
    case Level::kError:
      break;
  }
  return "error";
}

size_t Diagnosis::count(Level level) const {
  return static_cast<size_t>(
      std::count_if(checks_.begin(), checks_.end(), [&](const Check& check) { return check.level == level; }));
}

Level Diagnosis::worst() const {
  Level worst = Level::kOk;
  for (const Check& check : checks_) worst = std::max(worst, check.level);
  return worst;
}

std::string line_of(const Check& check) {
  return printable(fmt::format("{:<8} {:<26} {}{}{}", to_string(check.level), check.name, check.text,
                               check.hint.empty() ? "" : "; ", check.hint));
}

std::string summary_of(const Diagnosis& diagnosis) {
  const auto some = [](size_t count, std::string_view noun) {
    return count == 0 ? fmt::format("no {}s", noun) : counted(count, noun);
  };
  return fmt::format("{} ok, {}, {}", diagnosis.count(Level::kOk), some(diagnosis.count(Level::kWarning), "warning"),
                     some(diagnosis.count(Level::kError), "error"));
}

nlohmann::json json_of(const Diagnosis& diagnosis) {
  nlohmann::json checks = nlohmann::json::array();
  for (const Check& check : diagnosis.checks())
    checks.push_back(
        {{"name", check.name}, {"level", to_string(check.level)}, {"text", check.text}, {"hint", check.hint}});
  return {{"release", ICP_VERSION},
          {"level", to_string(diagnosis.worst())},
          {"ok", diagnosis.count(Level::kOk)},
          {"warnings", diagnosis.count(Level::kWarning)},
          {"errors", diagnosis.count(Level::kError)},
          {"checks", std::move(checks)}};
}

}  // namespace icp::doctor
