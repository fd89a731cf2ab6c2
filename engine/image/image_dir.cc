// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/image_dir.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <set>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/image_lock.h"
#include "engine/image/image_root.h"

namespace icp {
namespace {

// A path as the directory that holds it and its last component.
struct SplitPath {
  std::string parent;
  std::string name;  // empty for "/"

  explicit SplitPath(std::string path) {
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    const size_t slash = path.rfind('/');
    parent = slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
    name = slash == std::string::npos ? path : path.substr(slash + 1);
  }
  // "." and ".." name no entry that could be created.
  bool is_entry() const { return !name.empty() && name != "." && name != ".."; }
};

// O_PATH: making an entry in a directory needs no right to list it. -1 when missing.
UniqueFd find_dir(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd && errno != ENOENT) throw_errno("cannot open {}", path);
  return fd;
}

// The directory that holds the image, made if only it itself is missing.
UniqueFd open_parent(const std::string& path, bool create) {
  UniqueFd fd = find_dir(path);
  if (!fd && create) {
    const SplitPath split(path);
    const UniqueFd grandparent = find_dir(split.parent);
    if (grandparent && split.is_entry()) {
      make_private_dir(grandparent.get(), split.name, path);
      fd = find_dir(path);
    }
  }
  if (!fd) throw_error(ErrorKind::kImage, "{} does not exist", path);
  return fd;
}

// A link that somebody else may have planted leads nowhere. The link is read from its own descriptor, so what was
// checked is what is followed.
UniqueFd open_last(int parent, const std::string& name, const std::string& path, const Identity& identity) {
  const UniqueFd entry(::openat(parent, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!entry && errno == ENOENT) throw_error(ErrorKind::kImage, "{} does not exist", path);
  if (!entry) throw_errno("cannot open {}", path);
  struct stat info {};
  if (::fstat(entry.get(), &info) != 0) throw_errno("cannot look at {}", path);
  std::string target = name;
  int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  if (S_ISLNK(info.st_mode)) {
    if (info.st_uid != identity.uid && info.st_uid != 0) {
      throw_error(ErrorKind::kPermission, "{} is a symbolic link that belongs to user {}, not to user {}", path,
                  info.st_uid, identity.uid);
    }
    char buffer[PATH_MAX];
    const ssize_t length = ::readlinkat(entry.get(), "", buffer, sizeof buffer);
    if (length < 0) throw_errno("cannot read the link {}", path);
    target.assign(buffer, static_cast<size_t>(length));
    flags &= ~O_NOFOLLOW;
  }
  UniqueFd fd(::openat(parent, target.c_str(), flags));
  if (!fd && errno == ENOTDIR) throw_error(ErrorKind::kImage, "{} is not a directory", path);
  if (!fd) throw_errno("cannot open {}", path);
  return fd;
}

UniqueFd open_image(const std::string& path, const Identity& identity, bool create) {
  if (path.empty()) throw_error(ErrorKind::kUsage, "the path of an image is empty");
  const SplitPath split(path);
  const UniqueFd parent = open_parent(split.parent, create);
  if (create && split.is_entry()) make_private_dir(parent.get(), split.name, path);
  UniqueFd fd = open_last(parent.get(), split.name.empty() ? "." : split.name, path, identity);
  check_private(fd.get(), path, identity);
  return fd;
}

void check_node_name(const std::string& node) {
  if (!is_safe_name(node)) throw_error(ErrorKind::kUsage, "\"{}\" cannot be the name of a node", node);
}

// The locks are those of a node. Without them the last version may go, and a later one come, while they are listed.
constexpr int kLooks = 5;

std::set<std::string> all_nodes(const ImageRoot& root, int looks = kLooks) {
  std::set<std::string> nodes;
  bool gone = false;
  for (const uint32_t version : root.version_numbers(false)) {
    UniqueFd dir;
    try {
      dir = root.open_version_dir(version);
    } catch (const Error&) {
      if (root.has_dir(version)) throw;
      gone = true;  // pruned meanwhile
      continue;
    }
    for (const std::string& name : list_dir(dir.get(), root.version_path(version))) {
      if (is_safe_name(name)) nodes.insert(name);
    }
  }
  return nodes.empty() && gone && looks > 1 ? all_nodes(root, looks - 1) : nodes;
}

// The only node that the versions hold.
std::string only_node(const ImageRoot& root) {
  const std::set<std::string> nodes = all_nodes(root);
  if (nodes.empty()) throw_error(ErrorKind::kImage, "{} holds no version", root.path);
  if (nodes.size() > 1) {
    throw_error(ErrorKind::kUsage, "{} holds versions of several nodes, name one of {}", root.path,
                fmt::join(nodes, ", "));
  }
  return *nodes.begin();
}

}  // namespace

std::string ImageRoot::version_path(uint32_t version) const {
  return fmt::format("{}/{}", path, version_dir_name(version));
}

std::string ImageRoot::node_path(uint32_t version) const { return fmt::format("{}/{}", version_path(version), node); }

UniqueFd ImageRoot::open_version_dir(uint32_t version) const {
  return open_private_dir(fd.get(), version_dir_name(version), version_path(version), identity);
}

UniqueFd ImageRoot::open_node_dir(uint32_t version) const {
  const UniqueFd parent = open_version_dir(version);
  return open_private_dir(parent.get(), node, node_path(version), identity);
}

bool ImageRoot::has_dir(uint32_t version) const {
  struct stat info {};
  return ::fstatat(fd.get(), version_dir_name(version).c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0;
}

bool ImageRoot::has_node(uint32_t version, const std::string& other) const {
  struct stat info {};
  return ::fstatat(fd.get(), fmt::format("{}/{}", version_dir_name(version), other).c_str(), &info,
                   AT_SYMLINK_NOFOLLOW) == 0;
}

bool ImageRoot::has_version(uint32_t version, const std::string& other) const {
  struct stat info {};
  const std::string pruned = fmt::format("{}/{}/{}", version_dir_name(version), other, kPrunedName);
  return has_node(version, other) && ::fstatat(fd.get(), pruned.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0;
}

std::vector<uint32_t> ImageRoot::version_numbers(bool with_node) const {
  std::vector<uint32_t> numbers;
  for (const std::string& name : list_dir(fd.get(), path)) {
    const auto version = parse_version_dir_name(name);
    if (version && (!with_node || has_version(*version))) numbers.push_back(*version);
  }
  std::sort(numbers.begin(), numbers.end());  // seven digits and more do not sort as text
  return numbers;
}

ImageDir ImageDir::create(const std::string& path, const Identity& identity, const std::string& node) {
  check_node_name(node);
  const FsIdentity guard(identity);
  auto root = std::make_shared<ImageRoot>();
  root->fd = open_image(path, identity, true);
  root->path = path;
  root->identity = identity;
  root->node = node;
  return ImageDir(std::move(root));
}

ImageDir ImageDir::open(const std::string& path, const Identity& identity, const std::string& node) {
  if (!node.empty()) check_node_name(node);
  const FsIdentity guard(identity);
  auto root = std::make_shared<ImageRoot>();
  root->fd = open_image(path, identity, false);
  root->path = path;
  root->identity = identity;
  root->node = node.empty() ? only_node(*root) : node;
  return ImageDir(std::move(root));
}

std::vector<std::string> ImageDir::nodes_of(const std::string& path, const Identity& identity) {
  const FsIdentity guard(identity);
  ImageRoot root;
  root.fd = open_image(path, identity, false);
  root.path = path;
  root.identity = identity;
  const std::set<std::string> nodes = all_nodes(root);
  return {nodes.begin(), nodes.end()};
}

ImageDir::ImageDir(std::shared_ptr<const ImageRoot> root) : root_(std::move(root)) {}
ImageDir::ImageDir(ImageDir&&) noexcept = default;
ImageDir::~ImageDir() = default;

const std::string& ImageDir::path() const { return root_->path; }
const std::string& ImageDir::node() const { return root_->node; }

std::vector<VersionInfo> ImageDir::versions() const {
  const FsIdentity guard(root_->identity);
  const UniqueFd lock = lock_for_reading(*root_);  // nothing goes while it is looked at
  std::vector<VersionInfo> result;
  for (const uint32_t number : root_->version_numbers(true)) {
    VersionInfo info;
    info.version = number;
    try {
      info.manifest = read_version(number, {}).manifest();
    } catch (const Error& error) {
      if (!root_->has_version(number)) continue;  // an image of somebody else cannot be locked
      info.error = error.what();
    }
    result.push_back(std::move(info));
  }
  return result;
}

bool ImageDir::has_version(uint32_t version) const {
  const FsIdentity guard(root_->identity);
  return root_->has_version(version);
}

std::optional<uint32_t> ImageDir::latest() const {
  const FsIdentity guard(root_->identity);
  const UniqueFd lock = lock_for_reading(*root_);  // or the last might go before the next one is seen
  const std::vector<uint32_t> numbers = root_->version_numbers(true);
  if (numbers.empty()) return std::nullopt;
  return numbers.back();
}

uint32_t ImageDir::highest() const {
  const FsIdentity guard(root_->identity);
  const std::vector<uint32_t> numbers = root_->version_numbers(false);
  return numbers.empty() ? 0 : numbers.back();
}

}  // namespace icp
