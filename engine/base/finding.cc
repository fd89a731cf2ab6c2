// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/finding.h"

#include <fmt/format.h>

namespace icp {

std::string to_sentence(const Finding& finding) {
  std::string text = fmt::format("process {} ({})", finding.pid, finding.command);
  if (!finding.where.empty()) text += ", " + finding.where;
  text += ": " + finding.what;
  if (!finding.hint.empty()) text += "; " + finding.hint;
  return text;
}

}  // namespace icp
