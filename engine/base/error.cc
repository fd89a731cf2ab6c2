// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/error.h"

#include <cstring>

namespace icp {

std::string errno_text(int error_number) {
  char buffer[128];
  return ::strerror_r(error_number, buffer, sizeof buffer);
}

}  // namespace icp
