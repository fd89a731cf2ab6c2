// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/check.h"

namespace icp {

void check_failed(const char* condition, const char* file, int line, const std::string& text) {
  throw Error(ErrorKind::kInternal, fmt::format("{} ({} does not hold at {}:{})", text, condition, file, line), 0,
              "this is a fault of slurm-icp: please report it");
}

}  // namespace icp
