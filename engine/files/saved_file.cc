// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/saved_file.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/base/times.h"
#include "engine/files/kept_files.h"

namespace icp {
namespace {

enum class Change { kNone, kGrown, kShorter, kOther };

RestoreContext::Inode inode_of(const pb::OpenFile& file) { return {file.identity().dev(), file.identity().ino()}; }

bool looks_untouched(const struct stat& now, const pb::FileIdentity& then) {
  return static_cast<uint64_t>(now.st_size) == then.size() && nanoseconds(now.st_mtim) == then.mtime_ns();
}

// File systems give numbers of removed files to new ones. Not asked of network file systems, whose clocks may be wrong.
bool made_later(const RestoreContext& context, const FoundPath& found) {
  struct statx status {};
  if (context.options.taken_unix_ns == 0 || major(found.stat.st_dev) == 0) return false;
  if (::statx(found.fd.get(), "", AT_EMPTY_PATH, STATX_BTIME, &status) != 0) return false;
  if ((status.stx_mask & STATX_BTIME) == 0) return false;
  return nanoseconds({status.stx_btime.tv_sec, status.stx_btime.tv_nsec}) >
         static_cast<int64_t>(context.options.taken_unix_ns);
}

const std::string* content_of(const RestoreContext& context, const pb::OpenFile& file) {
  const auto known = context.contents.find(inode_of(file));
  return known == context.contents.end() ? nullptr : &known->second->regular().content();
}

// Of what the image tells of the content; `proven`: all that the file held at the checkpoint has been compared.
Change compare(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found, bool& proven) {
  const pb::RegularFile& then = file.regular();
  const auto size = static_cast<uint64_t>(found.stat.st_size);
  proven = false;
  if (size < then.size()) return Change::kShorter;
  const Change longer = size > then.size() ? Change::kGrown : Change::kNone;
  const FsIdentity as_user(context.options.identity);
  const std::string path = fmt::format("/proc/self/fd/{}", found.fd.get());
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  FileHash now;
  FileHash::Value saved{then.hash_low(), then.hash_high()};
  uint64_t bytes = std::min(then.hashed(), then.size());
  if (const std::string* content = content_of(context, file)) {
    FileHash whole;
    whole.add(*content);
    saved = whole.value();
    bytes = content->size();
  } else if (bytes == 0) {
    return longer;
  }
  if (!fd) return longer;
  if (!now.read_on(fd.get(), bytes) || now.value() != saved) return Change::kOther;
  proven = bytes == then.size();
  return longer;
}

// A file is known by its inode. A copy that looks untouched, or holds the same, is as good. Who only reads does no
// harm.
bool is_saved_file(const RestoreContext& context, const pb::OpenFile& file, const FoundPath& found) {
  if (!open_for_writing(file) || context.remade.count(inode_of(file)) != 0) return true;
  if (same_inode(found.stat, file.identity()) && !made_later(context, found)) return true;
  if (looks_untouched(found.stat, file.identity())) return true;
  bool proven = false;
  const Change change = compare(context, file, found, proven);
  return proven && file.regular().size() > 0 && (change == Change::kNone || change == Change::kGrown);
}

UniqueFd open_directory_of(const RestoreContext& context, const std::string& path) {
  return open_saved(context.options.root_fd, directory_of(path), O_PATH | O_DIRECTORY);
}

// Makes what is missing of the directories that lead to `path`; only its owner gets in, as with mkdtemp(3).
bool make_directories(RestoreContext& context, const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string directory = path.substr(0, slash);
    const FsIdentity as_user(context.options.identity);
    const UniqueFd parent = open_directory_of(context, directory);
    if (!parent) return false;
    const std::string name = last_name_of(directory);
    struct stat there {};
    if (::fstatat(parent.get(), name.c_str(), &there, 0) == 0) continue;
    if (::mkdirat(parent.get(), name.c_str(), 0700) != 0) return false;
    context.undo.emplace_back([at = std::make_shared<UniqueFd>(::fcntl(parent.get(), F_DUPFD_CLOEXEC, 0)), name] {
      ::unlinkat(at->get(), name.c_str(), AT_REMOVEDIR);
    });
  }
  return true;
}

// Makes an empty file at the path; -1 and errno where the user cannot.
UniqueFd make_at_path(RestoreContext& context, const std::string& path) {
  if (!make_directories(context, path)) return {};
  const FsIdentity as_user(context.options.identity);
  auto directory = std::make_shared<UniqueFd>(open_directory_of(context, path));
  const std::string name = last_name_of(path);
  if (!*directory) return {};
  UniqueFd made(::openat(directory->get(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (made) context.undo.emplace_back([directory, name] { ::unlinkat(directory->get(), name.c_str(), 0); });
  return made;
}

// A file that is gone, from the content in the image. One that is only read need not have its name.
FoundPath make_again(RestoreContext& context, const pb::OpenFile& file, const std::string& content) {
  const std::string& path = file.identity().path();
  UniqueFd fd = context.options.dry ? UniqueFd() : make_at_path(context, path);
  const bool named = static_cast<bool>(fd);
  if (!named && open_for_writing(file) && !context.options.dry)
    throw_errno("cannot make {} again, which was open at the checkpoint", path);
  if (!named) fd.reset(::memfd_create(last_name_of(path).substr(0, 240).c_str(), MFD_CLOEXEC));
  if (!fd || ::pwrite(fd.get(), content.data(), content.size(), 0) != static_cast<ssize_t>(content.size())) {
    throw_errno("cannot write {}", path);
  }
  FoundPath found;
  found.fd.reset(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (::fstat(fd.get(), &found.stat) != 0) throw_errno("cannot look at {}", path);
  spdlog::info("{}, which was open at the checkpoint, is gone: made again from the image{}", path,
               named ? "" : ", without its name");
  if (!named && !context.options.dry) return found;
  context.remade.insert(inode_of(file));
  const mode_t mode = file.identity().mode() & 0777;
  const int64_t mtime = file.identity().mtime_ns();
  context.later([made = std::make_shared<UniqueFd>(std::move(fd)), mode, mtime, path] {
    const timespec times[2] = {{0, UTIME_OMIT}, {mtime / 1'000'000'000, mtime % 1'000'000'000}};
    ::futimens(made->get(), times);
    if (::fchmod(made->get(), mode) != 0) throw_errno("cannot set the mode of {}", path);
  });
  return found;
}

// The same file in the same directory under another name.
std::optional<std::string> new_name_of(const RestoreContext& context, const pb::OpenFile& file) {
  const std::string directory = directory_of(file.identity().path());
  struct stat wanted {};
  const std::optional<FoundPath> at = look_up(context, file, directory);
  if (!at) return {};
  wanted.st_dev = major(at->stat.st_dev) == 0 ? at->stat.st_dev : static_cast<dev_t>(file.identity().dev());
  wanted.st_ino = file.identity().ino();
  const FsIdentity as_user(context.options.identity);
  const std::vector<std::string> names = names_in_directory(context.options.root_fd, directory, wanted);
  return names.empty() ? std::nullopt : std::optional(directory + names.front());
}

// Gives a file that was renamed since the checkpoint its name back, unless another one has it by then. Another hard
// link of it stays.
void name_again(RestoreContext& context, const std::string& from, const std::string& to) {
  context.later([&context, from, to] {
    const FsIdentity as_user(context.options.identity);
    const UniqueFd directory = open_directory_of(context, to);
    const std::string old_name = last_name_of(from), name = last_name_of(to);
    struct stat there {};
    if (!directory || ::fstatat(directory.get(), name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0) return;
    const bool other_links =
        ::fstatat(directory.get(), old_name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0 && there.st_nlink > 1;
    const int failed = other_links ? ::linkat(directory.get(), old_name.c_str(), directory.get(), name.c_str(), 0)
                                   : ::renameat(directory.get(), old_name.c_str(), directory.get(), name.c_str());
    if (failed != 0) throw_errno("cannot give {} its name {} again", from, to);
    spdlog::info("{} was renamed since the checkpoint: it is {} again", from, to);
  });
}

// SQLite's rollback journal, which lies beside its database and undoes what was being written when the program died.
// One of a time after the version would be played back into a database that is as of the version: it is put aside. One
// that was open at the version is in the image.
void put_journal_aside(RestoreContext& context, const std::string& database) {
  const std::string path = database + "-journal";
  const UniqueFd directory = open_directory_of(context, path);
  struct stat status {};
  if (!directory || context.paths.count(path) != 0) return;
  if (::fstatat(directory.get(), last_name_of(path).c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return;
  const int64_t changed = nanoseconds(status.st_mtim);
  if (!S_ISREG(status.st_mode) || changed <= static_cast<int64_t>(context.options.taken_unix_ns)) return;
  context.later([&context, path] {
    const FsIdentity as_user(context.options.identity);
    const UniqueFd at = open_directory_of(context, path);
    const std::string name = last_name_of(path), aside = name + ".after-checkpoint";
    if (!at || ::renameat(at.get(), name.c_str(), at.get(), aside.c_str()) != 0)
      throw_errno("cannot put {} aside", path);
    spdlog::info("{} is of a time after the checkpoint: it is {}.after-checkpoint now", path, path);
  });
}

// At once: another file is about to be made under its name. It comes back should the restart fail.
void put_newer_aside(RestoreContext& context, const std::string& path) {
  if (context.options.dry) return;
  const FsIdentity as_user(context.options.identity);
  auto directory = std::make_shared<UniqueFd>(open_directory_of(context, path));
  const std::string name = last_name_of(path), aside = name + ".after-checkpoint";
  if (!*directory || ::renameat(directory->get(), name.c_str(), directory->get(), aside.c_str()) != 0)
    throw_errno("cannot put {} aside", path);
  context.undo.emplace_back(
      [directory, name, aside] { ::renameat(directory->get(), aside.c_str(), directory->get(), name.c_str()); });
  spdlog::info("{} was made after the checkpoint: it is {}.after-checkpoint now", path, path);
}

[[noreturn]] void refuse_change(const pb::OpenFile& file, const std::string& what) {
  throw Error(
      ErrorKind::kImage, fmt::format("{}, which was open for writing, {}", file.identity().path(), what), 0,
      "put back the file of then, or restart from a later version, or with --changed-files accept "
      "(icp.yaml: changed_files) to go on with the file as it is; --checkpoint-files open or dir:PATH keeps such "
      "files with the versions");
}

const char* text_of(Change change) {
  switch (change) {
    case Change::kGrown:
      return "has grown since the checkpoint";
    case Change::kShorter:
      return "is shorter than at the checkpoint";
    default:
      return "holds something else than at the checkpoint";
  }
}

// Not through the program's own descriptor, which may be one that appends.
void write_content(const std::string& path, const std::string& content, int fd) {
  if (::pwrite(fd, content.data(), content.size(), 0) != static_cast<ssize_t>(content.size()) ||
      ::ftruncate(fd, static_cast<off_t>(content.size())) != 0) {
    throw_errno("cannot write what {} held", path);
  }
}

}  // namespace

bool open_for_writing(const pb::OpenFile& file) {
  return (file.flags() & O_ACCMODE) != O_RDONLY && (file.flags() & O_PATH) == 0;
}

FoundPath find_saved_file(RestoreContext& context, const pb::OpenFile& file) {
  const std::string& path = file.identity().path();
  std::optional<FoundPath> found = look_up(context, file, path);
  if (found && !S_ISREG(found->stat.st_mode)) return find_image_path(context, file, S_IFREG);
  if (found && is_saved_file(context, file, *found)) return std::move(*found);
  if (const auto name = new_name_of(context, file)) {
    std::optional<FoundPath> other = look_up(context, file, *name);
    if (other && S_ISREG(other->stat.st_mode) && is_saved_file(context, file, *other)) {
      if (!found && open_for_writing(file)) name_again(context, *name, path);
      if (found) spdlog::info("{} is {} now: that one is gone on with, another file has its name", path, *name);
      return std::move(*other);
    }
  }
  if (found && context.options.changed == ChangedFiles::kAccept) return std::move(*found);
  // Made by the job itself after the version, as a journal is that comes and goes: the one of the version is in the
  // image.
  if (found && context.options.changed == ChangedFiles::kRestore && content_of(context, file) != nullptr &&
      is_own_file(context, *found) && made_later(context, *found)) {
    put_newer_aside(context, path);
    found.reset();
  }
  if (found) {
    throw Error(ErrorKind::kImage,
                fmt::format("{} is another file than at the checkpoint (inode {} then, {} now), and that one is gone",
                            path, file.identity().ino(), found->stat.st_ino),
                0,
                "put back the file of then, or move this one away, or restart with --changed-files accept "
                "(icp.yaml: changed_files) to use it");
  }
  const std::string* content = content_of(context, file);
  if (content != nullptr && context.options.changed != ChangedFiles::kRefuse) {
    return make_again(context, file, *content);
  }
  return find_image_path(context, file, S_IFREG);
}

void settle_changes(RestoreContext& context, const pb::OpenFile& file, const FoundPath& found, int fd) {
  const std::string& path = file.identity().path();
  const uint64_t saved = file.regular().size();
  const RestoreContext::Inode inode = inode_of(file);
  if (context.remade.count(inode) != 0 || context.settled.count(inode) != 0) return;
  if (same_inode(found.stat, file.identity()) && looks_untouched(found.stat, file.identity())) return;
  bool proven = false;
  Change change = compare(context, file, found, proven);
  const bool whole = file.regular().object() != 0;  // and no hash: it has been touched since, that is all that is known
  if (context.options.changed == ChangedFiles::kRefuse && (whole || change != Change::kNone))
    refuse_change(file, change == Change::kNone ? "has been written to since the checkpoint" : text_of(change));
  // What was mapped to be written to comes back with the memory, and so does what was saved whole.
  const bool other = whole || change == Change::kOther || change == Change::kShorter;
  if ((change == Change::kOther && context.mapped.count(inode) != 0) || whole)
    change = static_cast<uint64_t>(found.stat.st_size) > saved ? Change::kGrown : Change::kNone;
  if (change == Change::kNone) {
    if (other && context.options.changed == ChangedFiles::kRestore) put_journal_aside(context, path);
    return;
  }
  context.settled.insert(inode);
  switch (context.options.changed) {
    case ChangedFiles::kAccept:
      spdlog::info("{} {}: it stays as it is", path, text_of(change));
      return;
    default:
      break;
  }
  put_journal_aside(context, path);
  if (change == Change::kGrown) {
    spdlog::info("{} has grown since the checkpoint: it is cut back to {} bytes", path, saved);
    context.later([fd, saved, path] {
      if (::ftruncate(fd, static_cast<off_t>(saved)) != 0) throw_errno("cannot cut {} back to {} bytes", path, saved);
    });
    return;
  }
  const std::string* content = content_of(context, file);
  if (content == nullptr) refuse_change(file, fmt::format("{}, and its content is not in the image", text_of(change)));
  const FsIdentity as_user(context.options.identity);
  const std::string self = fmt::format("/proc/self/fd/{}", found.fd.get());
  if (context.options.dry) return;  // whether it may be written to has been looked at
  auto writing = std::make_shared<UniqueFd>(::open(self.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!*writing) throw_errno("cannot open {} for writing", path);
  spdlog::info("{} {}: it gets back what it held", path, text_of(change));
  context.later([writing, content, path] { write_content(path, *content, writing->get()); });
}

}  // namespace icp
