// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/answer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/base/error.h"

namespace icp {
namespace {

int answer_fd = -1;
std::vector<std::string> warnings;

void write_answer(const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t got = ::write(answer_fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("cannot write the answer into descriptor {}", answer_fd);
    done += static_cast<size_t>(got);
  }
}

}  // namespace

void answer_into(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
    throw_error(ErrorKind::kUsage, "--json-fd: descriptor {} is not open for writing", fd);
  if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) throw_errno("cannot prepare descriptor {}", fd);
  answer_fd = fd;
  spdlog::set_level(spdlog::level::off);
}

bool answers_a_program() { return answer_fd >= 0; }

void print_json(nlohmann::json value) {
  if (answers_a_program() && value.is_object() && !warnings.empty()) value["warnings"] = warnings;
  const std::string text = value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (answers_a_program()) return write_answer(text);
  fmt::print(stdout, "{}", text);
}

void print_error(const std::string& text) {
  if (answers_a_program()) {
    warnings.push_back(text);
  } else {
    fmt::print(stderr, "icp: {}\n", text);
  }
}

}  // namespace icp
