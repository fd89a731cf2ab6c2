// SPDX-License-Identifier: GPL-2.0-or-later
#include "coordinator/icp/doctor/setup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp::doctor {

namespace {

constexpr const char* kMark = "# slurm-icp (icp setup)";

std::string fragment_of(const std::string& plugstack) { return directory_of(plugstack) + "/plugstack.conf.d/icp.conf"; }

void flush_directory(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd) ::fsync(fd.get());
}

// By a file beside plugstack.conf and rename(2): one in plugstack.conf.d, were it only for a moment, could be included.
void replace_file(const Host& host, const std::string& plugstack, const std::string& path, const std::string& text) {
  std::string fresh = host.at(directory_of(plugstack)) + "/.icp-setup-XXXXXX";
  UniqueFd file(::mkostemp(fresh.data(), O_CLOEXEC));
  if (!file) throw_errno("cannot make a file in {}", directory_of(plugstack));
  struct stat before {};
  mode_t mode = 0644;
  if (::stat(host.at(path).c_str(), &before) == 0) {
    mode = before.st_mode & 07777;
    if (::fchown(file.get(), before.st_uid, before.st_gid) != 0 && errno != EPERM) throw_errno("cannot write {}", path);
  }
  const bool written = ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                       ::fchmod(file.get(), mode) == 0 && ::fsync(file.get()) == 0 &&
                       ::rename(fresh.c_str(), host.at(path).c_str()) == 0;
  const int code = errno;
  if (!written) {
    ::unlink(fresh.c_str());
    errno = code;
    throw_errno("cannot write {}", path);
  }
  flush_directory(host.at(directory_of(path)));
}

std::string fragment_text(const SetupOptions& options) {
  return fmt::format("{}: see spank_icp(8). icp setup disable removes this file.\n{} {} config={} icpstepd={}\n", kMark,
                     options.required ? "required" : "optional", options.plugin, options.config,
                     options.icpstepd.empty() ? ICP_LIBEXEC_DIR "/icpstepd" : options.icpstepd);
}

// A line of somebody else's that loads the plugin; empty: none.
std::string other_line(const Plugstack& stack, const std::string& fragment) {
  for (const PluginLine& line : stack.ours())
    if (line.file != fragment) return fmt::format("{}:{}", line.file, line.number);
  return "";
}

std::string include_line(const std::string& fragment) { return fmt::format("include {} {}", fragment, kMark); }

std::string without_line(const std::string& text, const std::string& line) {
  std::istringstream lines(text);
  std::string rest;
  for (std::string one; std::getline(lines, one);)
    if (one != line) rest += one + "\n";
  return rest;
}

}  // namespace

std::vector<std::string> enable_plugin(const Host& host, const SetupOptions& options) {
  const std::string path = plugstack_path(options.conf), fragment = fragment_of(path), text = fragment_text(options);
  const Plugstack stack = Plugstack::read(host, path);
  if (const std::string other = other_line(stack, fragment); !other.empty())
    throw Error(ErrorKind::kRefused, fmt::format("{} loads spank_icp.so already", other), 0,
                "remove that line first, or leave things as they are");
  if (!stack.wrong.empty())
    throw Error(ErrorKind::kRefused, stack.wrong.front(), 0, "Slurm does not take that file: correct it first");
  std::vector<std::string> done;
  const std::string directory = directory_of(fragment);
  if (::mkdir(host.at(directory).c_str(), 0755) != 0 && errno != EEXIST) throw_errno("cannot make {}", directory);
  // The fragment first: a line that includes nothing would be an error to some Slurms.
  if (host.read(fragment) != text) {
    replace_file(host, path, fragment, text);
    done.push_back(fragment + " is written");
  }
  if (!stack.includes(fragment)) {
    std::string whole = host.read(path).value_or("");
    if (!whole.empty() && !whole.ends_with('\n')) whole += '\n';
    replace_file(host, path, path, whole + include_line(fragment) + "\n");
    done.push_back(path + " includes it now");
  }
  return done;
}

std::vector<std::string> disable_plugin(const Host& host, const std::optional<SlurmConf>& conf) {
  const std::string path = plugstack_path(conf), fragment = fragment_of(path);
  std::vector<std::string> done;
  if (const auto text = host.read(path)) {
    const std::string rest = without_line(*text, include_line(fragment));
    if (rest.size() < text->size()) {
      replace_file(host, path, path, rest);
      done.push_back(path + " does not include it any more");
    }
  }
  if (::unlink(host.at(fragment).c_str()) == 0) {
    flush_directory(host.at(directory_of(fragment)));
    done.push_back(fragment + " is removed");
  } else if (errno != ENOENT && errno != ENOTDIR) {
    throw_errno("cannot remove {}", fragment);
  }
  if (const std::string other = other_line(Plugstack::read(host, path), fragment); !other.empty())
    done.push_back(other + " loads spank_icp.so, and stays: it was not written by icp setup");
  return done;
}

}  // namespace icp::doctor
