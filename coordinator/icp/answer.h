// SPDX-License-Identifier: GPL-2.0-or-later
// Where icp's answers go: standard output and standard error, or, for a program that runs it (libicp), one object of
// JSON in a descriptor of that program's (--json-fd). Not thread-safe.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace icp {

// From now on print_json() writes into `fd`, which no program that icp starts gets, and nothing is written to standard
// error. Throws kUsage when it is not open for writing.
void answer_into(int fd);
bool answers_a_program();

// Indented; bytes that are no UTF-8 (names of files) become U+FFFD. For a program with the warnings so far, in
// "warnings".
void print_json(nlohmann::json value);
void print_error(const std::string& text);  // "icp: <text>"; for a program a warning

}  // namespace icp
