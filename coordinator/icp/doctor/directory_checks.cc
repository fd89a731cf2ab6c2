// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>

#include "coordinator/icp/doctor/checks.h"
#include "coordinator/icp/format.h"
#include "engine/base/error.h"
#include "engine/base/unique_fd.h"

namespace icp::doctor {

namespace {

constexpr uint64_t kTight = 1ull << 30;  // bytes
constexpr size_t kBlock = 4096;

constexpr unsigned kTmpfs = 0x01021994, kRamfs = 0x858458f6;

// statfs(2)'s f_type.
std::string type_name(unsigned type) {
  static const std::map<unsigned, const char*> names = {
      {0xef53, "ext"},        {0x58465342, "xfs"},     {0x9123683e, "btrfs"},  {kTmpfs, "tmpfs"},
      {kRamfs, "ramfs"},      {0x6969, "nfs"},         {0x0bd00bd0, "lustre"}, {0x47504653, "gpfs"},
      {0x19830326, "beegfs"}, {0x794c7630, "overlay"}, {0x65735546, "fuse"},   {0x2fc12fc1, "zfs"},
      {0x00c36400, "ceph"},   {0x01021997, "9p"}};
  const auto found = names.find(type);
  return found == names.end() ? fmt::format("type {:#x}", type) : found->second;
}

bool locks_exclude(const std::string& path) {
  const UniqueFd one(::open(path.c_str(), O_RDWR | O_CLOEXEC)), other(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  return one && other && ::flock(one.get(), LOCK_EX | LOCK_NB) == 0 && ::flock(other.get(), LOCK_EX | LOCK_NB) != 0 &&
         errno == EWOULDBLOCK;
}

bool takes_direct(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
  const std::unique_ptr<void, decltype(&std::free)> block(std::aligned_alloc(kBlock, kBlock), &std::free);
  return fd && block && ::pwrite(fd.get(), block.get(), kBlock, 0) == static_cast<ssize_t>(kBlock);
}

void try_file(DirectoryFacts& facts) {
  std::string path = facts.path + "/.icp-doctor-XXXXXX";
  const UniqueFd file(::mkostemp(path.data(), O_CLOEXEC));
  if (!file) {
    facts.denied = errno_text(errno);
    return;
  }
  struct stat info {};
  uid_t wanted = ::geteuid();
  if (wanted == 0) wanted = static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1)));  // says who it is, changes nothing
  facts.others = ::fstat(file.get(), &info) != 0 || info.st_uid != wanted;
  facts.locks = locks_exclude(path);
  facts.direct = takes_direct(path);
  ::unlink(path.c_str());
}

}  // namespace

DirectoryFacts probe_directory(const std::string& path, const Identity& user, bool write) {
  DirectoryFacts facts;
  facts.path = path;
  const FsIdentity as_user(user);
  struct stat info {};
  struct statfs system {};
  if (::stat(path.c_str(), &info) != 0 || ::statfs(path.c_str(), &system) != 0) {
    facts.error = errno_text(errno);
    return facts;
  }
  if (!S_ISDIR(info.st_mode)) {
    facts.error = errno_text(ENOTDIR);
    return facts;
  }
  const auto type = static_cast<unsigned>(system.f_type);
  facts.type = type_name(type);
  facts.volatile_memory = type == kTmpfs || type == kRamfs;
  facts.free_bytes = static_cast<uint64_t>(system.f_bavail) * static_cast<uint64_t>(system.f_bsize);
  facts.total_bytes = static_cast<uint64_t>(system.f_blocks) * static_cast<uint64_t>(system.f_bsize);
  if (write) try_file(facts);
  return facts;
}

void check_directory(const DirectoryFacts& facts, Diagnosis& diagnosis) {
  if (!facts.error.empty())
    return diagnosis.error("directory", fmt::format("{}: {}", facts.path, facts.error),
                           "make it, or name another one (checkpoint_dir in icp.yaml)");
  if (!facts.denied.empty())
    return diagnosis.error(
        "directory", fmt::format("no file can be made in {}: {}", facts.path, facts.denied),
        "agents write as the job's user, who must be able to write there; with root_squash root cannot, "
        "and need not");
  diagnosis.ok("directory", fmt::format("{} ({})", facts.path, facts.type));
  if (facts.volatile_memory)
    diagnosis.warning("directory.memory", fmt::format("{} is in memory: images are gone with the machine", facts.path),
                      "use a file system on disk, which all nodes share");
  if (facts.others)
    diagnosis.error("directory.owner", fmt::format("files made in {} belong to another user", facts.path),
                    "images would be refused: look at the export's options (all_squash, uid mapping)");
  if (!facts.locks)
    diagnosis.error("directory.locks", fmt::format("flock(2) does not exclude in {}", facts.path),
                    "mount with locks (NFS: without nolock; Lustre: -o flock)");
  if (!facts.direct)
    diagnosis.warning("directory.direct", fmt::format("{} does not take O_DIRECT", facts.path),
                      "versions go through the page cache, which the jobs lose");
  const std::string space = fmt::format("{} free of {}", human_bytes(facts.free_bytes), human_bytes(facts.total_bytes));
  if (facts.free_bytes < kTight || facts.free_bytes < facts.total_bytes / 50)
    diagnosis.warning("directory.space", space, "make room (icp prune, icp compact), or keep: in icp.yaml");
  else
    diagnosis.ok("directory.space", space);
}

}  // namespace icp::doctor
