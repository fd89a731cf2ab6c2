// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/file_kind.h"

#include <array>

#include "engine/base/error.h"
#include "engine/files/char_device.h"
#include "engine/files/directory.h"
#include "engine/files/epoll.h"
#include "engine/files/eventfd.h"
#include "engine/files/inotify.h"
#include "engine/files/namespace_file.h"
#include "engine/files/netlink_socket.h"
#include "engine/files/object_file.h"
#include "engine/files/outer_stream.h"
#include "engine/files/path_descriptor.h"
#include "engine/files/pidfd.h"
#include "engine/files/pipe.h"
#include "engine/files/posix_queue.h"
#include "engine/files/process_file.h"
#include "engine/files/pty.h"
#include "engine/files/regular_file.h"
#include "engine/files/signalfd.h"
#include "engine/files/tcp_socket.h"
#include "engine/files/timerfd.h"
#include "engine/files/udp_socket.h"
#include "engine/files/unix_socket.h"
#include "engine/files/unsupported.h"

namespace icp {

std::span<const FileKind* const> file_kinds() {
  static const std::array<const FileKind*, 23> kinds = {
      &outer_stream_kind(), &path_descriptor_kind(), &process_file_kind(), &namespace_file_kind(), &posix_queue_kind(),
      &object_file_kind(),  &regular_file_kind(),    &directory_kind(),    &char_device_kind(),    &pipe_kind(),
      &eventfd_kind(),      &timerfd_kind(),         &signalfd_kind(),     &epoll_kind(),          &pidfd_kind(),
      &unix_socket_kind(),  &tcp_socket_kind(),      &udp_socket_kind(),   &netlink_socket_kind(), &pty_master_kind(),
      &pty_slave_kind(),    &inotify_kind(),         &unsupported_kind(),
  };
  return kinds;
}

const FileKind& file_kind(const pb::OpenFile& file) {
  if (file.kind_case() != pb::OpenFile::KIND_NOT_SET) {
    for (const FileKind* kind : file_kinds()) {
      if (kind->tag() == file.kind_case()) return *kind;
    }
  }
  throw_bad_file(file, "it is of no known kind");
}

std::string image_file_name(const pb::OpenFile& file) {
  const std::string& path = file.identity().path();
  return path.empty() ? fmt::format("open file {}", file.id()) : path;
}

void throw_bad_file(const pb::OpenFile& file, const std::string& what) {
  throw_error(ErrorKind::kImage, "cannot restore {}: {}", image_file_name(file), what);
}

RestoreContext::RestoreContext(const FileRestoreOptions& opts) : options(opts), remade(opts.remade) {
  for (const auto& [from, to] : options.network.addresses) {
    const auto old_address = InetAddress::parse(from), new_address = InetAddress::parse(to);
    if (!old_address || !new_address || old_address->ip.size() != new_address->ip.size()) {
      throw_error(ErrorKind::kUsage, "'{}' and '{}' are not two internet addresses of one kind", from, to);
    }
    addresses.set(old_address->ip, new_address->ip);
  }
}

RestoreContext::~RestoreContext() {
  for (auto action = undo.rbegin(); action != undo.rend(); ++action) (*action)();
}

void RestoreContext::put(const pb::OpenFile& file, UniqueFd fd) {
  if (!fds.emplace(file.id(), std::move(fd)).second) throw_bad_file(file, "it is in the image twice");
}

int RestoreContext::get(uint32_t id) const {
  const auto at = fds.find(id);
  return at == fds.end() ? -1 : at->second.get();
}

void SingleFileKind::check(FileScan& scan, Descriptions descriptions) const {
  for (Description* description : descriptions) check_one(scan, *description);
}

void SingleFileKind::capture(FileScan& scan, const ObjectResolver& objects, Descriptions descriptions) const {
  for (Description* description : descriptions) capture_one(scan, objects, *description);
}

void SingleFileKind::create(RestoreContext& context, ImageFiles files) const {
  for (const pb::OpenFile* file : files) context.put(*file, create_one(context, *file));
}

}  // namespace icp
