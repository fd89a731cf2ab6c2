// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/include/icp_c.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "engine/include/icp.h"

namespace {

using namespace slurm_icp;

template <size_t size>
void put(char (&to)[size], const std::string& text) {
  const size_t length = std::min(text.size(), size - 1);
  std::memcpy(to, text.data(), length);
  to[length] = '\0';
}

int fail(icp_error* error, ErrorKind kind, const std::string& text, const std::string& hint = {}) {
  if (error == nullptr) return -1;
  error->kind = static_cast<icp_error_kind>(kind);
  put(error->text, text);
  put(error->hint, hint);
  return -1;
}

// No exception leaves a C function.
template <typename Function>
int guarded(icp_error* error, const Function& function) {
  try {
    function();
    return 0;
  } catch (const Error& thrown) {
    return fail(error, thrown.kind(), thrown.what(), thrown.hint());
  } catch (const std::exception& thrown) {
    return fail(error, ErrorKind::kSystem, thrown.what());
  }
}

// The caller's structure, which may be of another release: shorter, or longer.
template <typename Options>
Options own(const Options* given) {
  Options options{};
  if (given != nullptr) std::memcpy(&options, given, std::min(given->size, sizeof options));
  return options;
}

std::string needed(const char* dir) {
  if (dir == nullptr) throw Error(ErrorKind::kUsage, "no directory was given");
  return dir;
}

icp_version version_from(const Version& version) {
  icp_version value{};
  value.number = version.number;
  value.full = version.full ? 1 : 0;
  value.damaged = version.error.empty() ? 0 : 1;
  value.processes = version.processes;
  value.taken_unix_ns = version.taken_unix_ns;
  value.pages_written = version.pages_written;
  value.pages_total = version.pages_total;
  value.bytes_written = version.bytes_written;
  value.stop_ns = version.stop_ns;
  return value;
}

std::string line_of(const Finding& finding) {
  std::string line = "process " + std::to_string(finding.pid) + " (" + finding.command + ")";
  if (!finding.where.empty()) line += ", " + finding.where;
  line += ": " + finding.what;
  return finding.hint.empty() ? line + "\n" : line + "; " + finding.hint + "\n";
}

}  // namespace

extern "C" {

ICP_PUBLIC int icp_check(pid_t root, size_t* findings, char** text, icp_error* error) {
  return guarded(error, [&] {
    const std::vector<Finding> found = check(root);
    std::string lines;
    for (const Finding& finding : found) lines += line_of(finding);
    if (text != nullptr && (*text = ::strdup(lines.c_str())) == nullptr) throw std::bad_alloc();
    if (findings != nullptr) *findings = found.size();
  });
}

ICP_PUBLIC int icp_checkpoint(pid_t root, const char* dir, const icp_checkpoint_options* options, icp_version* version,
                              icp_error* error) {
  return guarded(error, [&] {
    const auto given = own(options);
    const Version taken = checkpoint(
        root, needed(dir), {given.kill != 0, given.keep, given.compression == nullptr ? "" : given.compression});
    if (version != nullptr) *version = version_from(taken);
  });
}

ICP_PUBLIC int icp_restart(const char* dir, const icp_restart_options* options, pid_t* root, icp_error* error) {
  return guarded(error, [&] {
    const auto given = own(options);
    const pid_t pid = restart(
        needed(dir), {given.version, given.lazy != 0, given.changed_files == nullptr ? "" : given.changed_files});
    if (root != nullptr) *root = pid;
  });
}

ICP_PUBLIC int icp_list(const char* dir, icp_version** versions, size_t* count, icp_error* error) {
  return guarded(error, [&] {
    if (versions == nullptr || count == nullptr) throw Error(ErrorKind::kUsage, "there is no place for the versions");
    const std::vector<Version> all = list(needed(dir));
    auto* const array = static_cast<icp_version*>(std::calloc(std::max<size_t>(all.size(), 1), sizeof(icp_version)));
    if (array == nullptr) throw std::bad_alloc();
    std::transform(all.begin(), all.end(), array, version_from);
    *versions = array;
    *count = all.size();
  });
}

ICP_PUBLIC int icp_verify(const char* dir, uint32_t version, icp_error* error) {
  return guarded(error, [&] {
    VerifyOptions options;
    options.version = version;
    for (const Verdict& verdict : verify(needed(dir), options)) {
      if (verdict.whole) continue;
      const std::string why = verdict.problems.empty() ? "damaged" : verdict.problems.front();
      throw Error(ErrorKind::kImage, "version " + std::to_string(verdict.version) + ": " + why);
    }
  });
}

}  // extern "C"
