// SPDX-License-Identifier: GPL-2.0-or-later
// Text of others (names, paths, reasons) on its way to a terminal or into a log.
#pragma once

#include <string>
#include <string_view>

namespace icp {

// The text on one line, with '?' for every byte that could do more than be read: control characters (escape sequences
// begin with one), the C1 controls, what breaks a line or turns its direction in Unicode, and what is no UTF-8.
std::string printable(std::string_view text);

}  // namespace icp
