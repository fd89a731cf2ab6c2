// SPDX-License-Identifier: GPL-2.0-or-later
// What icp doctor found: one line a check.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace icp::doctor {

enum class Level { kOk, kWarning, kError };
std::string_view to_string(Level level);

struct Check {
  std::string name;  // "kernel.tracking": a word that monitoring can look for
  Level level = Level::kOk;
  std::string text;  // what was found
  std::string hint;  // what to do; empty when nothing has to be done
};

class Diagnosis {
 public:
  void ok(std::string name, std::string text) { add({std::move(name), Level::kOk, std::move(text), {}}); }
  void warning(std::string name, std::string text, std::string hint) {
    add({std::move(name), Level::kWarning, std::move(text), std::move(hint)});
  }
  void error(std::string name, std::string text, std::string hint) {
    add({std::move(name), Level::kError, std::move(text), std::move(hint)});
  }
  void add(Check check) { checks_.push_back(std::move(check)); }

  const std::vector<Check>& checks() const { return checks_; }
  size_t count(Level level) const;
  Level worst() const;

 private:
  std::vector<Check> checks_;
};

// "error    slurm.proctrack  ProctrackType is ...; set ..."
std::string line_of(const Check& check);
// "21 ok, 1 warning, no errors"
std::string summary_of(const Diagnosis& diagnosis);
nlohmann::json json_of(const Diagnosis& diagnosis);

}  // namespace icp::doctor
