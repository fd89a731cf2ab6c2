// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <map>
#include <string>

// A target's seeds by name.
std::map<std::string, std::string> fuzz_seeds();
