// SPDX-License-Identifier: GPL-2.0-or-later
// A directory that goes with the test.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "engine/base/error.h"

namespace icp::test {

class TempDir {
 public:
  // In memory where there is a /dev/shm: most tests flush often. Files there are memory objects to the engine; tests of
  // regular files take "/tmp".
  explicit TempDir(const std::string& parent = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp")
      : path_(parent + "/icp-test-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) throw_errno("cannot make {}", path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(*this / name, std::ios::binary) << text;
    return *this / name;
  }

 private:
  std::string path_;
};

}  // namespace icp::test
