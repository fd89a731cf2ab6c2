// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/inotify.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <sstream>

#include "engine/base/error.h"
#include "engine/base/file_names.h"
#include "engine/base/file_systems.h"
#include "engine/broker/broker.h"

namespace icp {
namespace {

constexpr uint32_t kMasks = IN_ALL_EVENTS | IN_EXCL_UNLINK | IN_ONESHOT;
constexpr int kMostWatch = 1 << 20;  // the kernel counts up, and each number below has to be passed
constexpr int kPassed = 1000;        // numbers, between two looks at what that leaves in the queue

struct Watch {
  int wd = 0;
  uint32_t mask = 0;
  uint64_t dev = 0, ino = 0;
  std::string path;   // "": its name is not known
  uint32_t file = 0;  // removed, and open: Description::id
};

std::vector<Watch> watches_of(const Description& description) {
  std::vector<Watch> watches;
  std::istringstream lines(description.info.text);
  for (std::string line; std::getline(lines, line);) {
    Watch watch;
    unsigned wd = 0, dev = 0;
    if (std::sscanf(line.c_str(), "inotify wd:%x ino:%" SCNx64 " sdev:%x mask:%" SCNx32, &wd, &watch.ino, &dev,
                    &watch.mask) != 4)
      continue;
    watch.wd = static_cast<int>(wd);
    watch.dev = ::makedev(dev >> 20, dev & 0xfffff);  // MKDEV() of the kernel
    watches.push_back(std::move(watch));
  }
  std::sort(watches.begin(), watches.end(), [](const Watch& a, const Watch& b) { return a.wd < b.wd; });
  return watches;
}

bool leads_to(FileScan& scan, size_t process, const std::string& path, const Watch& watch) {
  struct stat now {};
  return path.starts_with('/') && scan.stat_path(process, path, now) == 0 && now.st_dev == watch.dev &&
         now.st_ino == watch.ino;
}

// A directory that has been removed is another one after a restart, as is a file of other kinds.
bool is_removed_and_open(const Description& description, const Watch& watch) {
  return description.stat.st_dev == watch.dev && description.stat.st_ino == watch.ino &&
         description.stat.st_nlink == 0 && S_ISREG(description.stat.st_mode);
}

// What is watched is often open as well (tail -f), or somebody's working directory. Else the kernel is asked for its
// name, by way of root.
void find_paths(FileScan& scan, const Description& description, std::vector<Watch>& watches) {
  const FdUse& use = description.uses.front();
  std::map<int, std::string> known;
  bool asked = false;
  for (Watch& watch : watches) {
    for (const auto& other : scan.descriptions()) {
      if (other->stat.st_ino == watch.ino && leads_to(scan, use.process, other->target, watch)) {
        watch.path = other->target;
        break;
      }
      if (is_removed_and_open(*other, watch)) watch.file = other->id;
    }
    if (!watch.path.empty() || watch.file != 0) continue;
    if (!asked) {
      try {
        known = broker().watched_paths(scan.processes()[use.process].pid, use.fd);
      } catch (const Error&) {
        // Without root nobody can be asked.
      }
    }
    asked = true;
    const auto path = known.find(watch.wd);
    if (path != known.end() && leads_to(scan, use.process, path->second, watch)) watch.path = path->second;
  }
}

bool may_be_watched(int root, int fd) {
  const FileSystemKind kind = file_system_kind(fd);
  return kind == FileSystemKind::kFiles || (kind == FileSystemKind::kViews && !is_about_a_process(root, fd));
}

// Whether what a process watches is nothing that a restart refuses; for what is gone there is another sentence.
bool may_be_watched(pid_t pid, const std::string& path) {
  const UniqueFd root = open_root_of(pid);
  const UniqueFd fd = root ? open_below(root.get(), path, O_PATH | O_NOFOLLOW) : UniqueFd();
  return !fd || may_be_watched(root.get(), fd.get());
}

class InotifyKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kInotify; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:inotify";
  }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const int fd = scan.take(*description);
      int waiting = 0;
      // There is no look at events that does not take them.
      if (fd >= 0 && ::ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0) {
        scan.refuse(*description, "inotify events that the program has not read yet",
                    "try again in a moment, or let the program read them", true);
        continue;
      }
      std::vector<Watch> watches = watches_of(*description);
      find_paths(scan, *description, watches);
      for (const Watch& watch : watches) {
        if (watch.file != 0) continue;
        if (watch.path.empty())
          scan.refuse(*description,
                      fmt::format("inotify watch {} of a file whose name is gone or not known any more (inode {})",
                                  watch.wd, watch.ino),
                      "end the watch (inotify_rm_watch), or watch its directory");
        else if (!may_be_watched(scan.processes()[description->uses.front().process].pid, watch.path))
          scan.refuse(*description, fmt::format("inotify watch of {}", watch.path),
                      "end the watch (inotify_rm_watch) before a checkpoint");
        else if (watch.wd > kMostWatch)
          scan.refuse(*description, fmt::format("inotify watch number {}", watch.wd), "restart the program");
      }
    }
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      std::vector<Watch> watches = watches_of(*description);
      find_paths(scan, *description, watches);
      pb::Inotify& message = *description->message->mutable_inotify();
      for (const Watch& watch : watches) {
        pb::InotifyWatch& saved = *message.add_watches();
        saved.set_wd(watch.wd);
        saved.set_mask(watch.mask);
        saved.set_path(watch.path);
        saved.set_dev(watch.dev);
        saved.set_ino(watch.ino);
        saved.set_file(watch.file);
      }
    }
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) {
      UniqueFd fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
      if (!fd) throw_errno("cannot make an inotify instance");
      context.put(*file, std::move(fd));
    }
  }

  // When what is watched is there.
  void connect(RestoreContext& context, ImageFiles files) const override {
    for (const pb::OpenFile* file : files) {
      const int fd = context.get(file->id());
      int last = 0;
      for (const pb::InotifyWatch& watch : file->inotify().watches()) {
        if (watch.wd() <= last || watch.wd() > kMostWatch)
          throw_bad_file(*file, fmt::format("inotify watch {} follows {}", watch.wd(), last));
        last = watch.wd();
        add_watch(context, *file, fd, watch);
      }
      drop_events(fd);
    }
  }

 private:
  static UniqueFd find(const RestoreContext& context, const pb::OpenFile& file, const std::string& path) {
    if (!is_usable_path(path)) throw_bad_file(file, "an inotify watch has no usable path");
    UniqueFd fd = open_below(context.options.root_fd, path, O_PATH | O_NOFOLLOW);
    if (!fd) throw_errno("cannot find {}, which was watched at the checkpoint", path);
    if (!may_be_watched(context.options.root_fd, fd.get())) throw_bad_file(file, refused_file_system(path, fd.get()));
    return fd;
  }

  static void add_watch(const RestoreContext& context, const pb::OpenFile& file, int fd,
                        const pb::InotifyWatch& watch) {
    const FsIdentity as_user(context.options.identity);
    const UniqueFd target = watch.file() == 0 ? find(context, file, watch.path()) : UniqueFd();
    const int open = watch.file() == 0 ? target.get() : context.get(watch.file());
    struct stat status {};
    // Of files alone, whatever the image says: they are restored where files are.
    if (open < 0 || (watch.file() != 0 && (::fstat(open, &status) != 0 || !S_ISREG(status.st_mode))))
      throw_bad_file(file, fmt::format("inotify watch {} is of no file", watch.wd()));
    const std::string path = fmt::format("/proc/self/fd/{}", open);
    for (int tries = 0;; ++tries) {
      const int got = ::inotify_add_watch(fd, path.c_str(), (watch.mask() & kMasks) | IN_MASK_CREATE);
      if (got < 0 && errno == EEXIST) throw_bad_file(file, fmt::format("{} is watched twice", watch.path()));
      if (got < 0) throw_errno("cannot watch {} again", watch.path());
      if (got == watch.wd()) return;
      if (got > watch.wd() || ::inotify_rm_watch(fd, got) != 0)
        throw_bad_file(file, fmt::format("{} cannot be inotify watch {}", watch.path(), watch.wd()));
      if (tries % kPassed == 0) drop_events(fd);
    }
  }

  // IN_IGNORED of the numbers that were passed.
  static void drop_events(int fd) {
    std::array<char, 65536> buffer;
    while (::read(fd, buffer.data(), buffer.size()) > 0) {
    }
  }
};

}  // namespace

const FileKind& inotify_kind() {
  static const InotifyKind kind;
  return kind;
}

}  // namespace icp
