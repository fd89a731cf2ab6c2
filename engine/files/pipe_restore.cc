// SPDX-License-Identifier: GPL-2.0-or-later
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/files/image_path.h"
#include "engine/files/pipe.h"

namespace icp {
namespace {

constexpr uint32_t kMostCapacity = 1u << 30;

uint32_t access_of(const pb::OpenFile& file) { return file.flags() & O_ACCMODE; }

// Checks that the ends belong together and returns the one with the data, null when there is none.
const pb::OpenFile* check_ends(const std::vector<const pb::OpenFile*>& files) {
  const pb::PipeEnd& first = files.front()->pipe();
  const pb::OpenFile* with_data = nullptr;
  for (const pb::OpenFile* file : files) {
    const pb::PipeEnd& end = file->pipe();
    if (end.fifo_path() != first.fifo_path() || end.capacity() != first.capacity()) {
      throw_bad_file(*file, fmt::format("the ends of pipe {} do not fit each other", first.pipe()));
    }
    if (end.fifo_path() != file->identity().path()) throw_bad_file(*file, "a FIFO has two different paths");
    if (access_of(*file) == O_ACCMODE) throw_bad_file(*file, "a pipe is open neither for reading nor for writing");
    if (end.data().empty() && end.packets().empty()) continue;
    if (with_data) throw_bad_file(*file, fmt::format("pipe {} has its data twice", first.pipe()));
    with_data = file;
    uint64_t sum = 0;
    for (const uint32_t packet : end.packets()) sum += packet;
    if (!end.packets().empty() && sum != end.data().size()) throw_bad_file(*file, "packets do not add up");
    if (end.data().size() > end.capacity()) throw_bad_file(*file, "a pipe holds more data than fits in");
  }
  if (first.capacity() < 4096 || first.capacity() > kMostCapacity) {
    throw_bad_file(*files.front(), fmt::format("a pipe of {} bytes", first.capacity()));
  }
  return with_data;
}

void set_capacity(const pb::OpenFile& file, int fd) {
  const int capacity = static_cast<int>(file.pipe().capacity());
  if (::fcntl(fd, F_GETPIPE_SZ) == capacity || ::fcntl(fd, F_SETPIPE_SZ, capacity) >= 0) return;
  const int error = errno;
  throw Error(
      ErrorKind::kSystem,
      fmt::format("cannot make a pipe of {} bytes ({}): {}", capacity, image_file_name(file), errno_text(error)), error,
      "raise the system's fs.pipe-max-size");
}

void write_all(const pb::OpenFile& file, int fd, std::string_view data) {
  if (data.empty()) return;
  const ssize_t written = ::write(fd, data.data(), data.size());
  if (written < 0 && errno != EAGAIN) throw_errno("cannot put the data back into {}", image_file_name(file));
  if (written != static_cast<ssize_t>(data.size())) throw_bad_file(file, "a pipe holds more data than fits in");
}

// `fd` is non-blocking and open for writing.
void fill(const pb::OpenFile& file, int fd) {
  const pb::PipeEnd& end = file.pipe();
  std::string_view data = end.data();
  if (end.packets().empty()) return write_all(file, fd, data);
  // Packet mode is a property of the writer at the moment of the write.
  if (::fcntl(fd, F_SETFL, O_NONBLOCK | O_DIRECT) != 0) throw_errno("cannot set a pipe to packet mode");
  for (const uint32_t packet : end.packets()) {
    write_all(file, fd, data.substr(0, packet));
    data.remove_prefix(packet);
  }
  if (::fcntl(fd, F_SETFL, O_NONBLOCK) != 0) throw_errno("cannot set a pipe back from packet mode");
}

// Another open file description of the same pipe.
UniqueFd reopen(const pb::OpenFile& file, int fd) {
  const std::string path = fmt::format("/proc/self/fd/{}", fd);
  UniqueFd again(::open(path.c_str(), static_cast<int>(access_of(file)) | O_NONBLOCK | O_CLOEXEC));
  if (!again) throw_errno("cannot open {} once more", image_file_name(file));
  return again;
}

void create_anonymous(RestoreContext& context, const std::vector<const pb::OpenFile*>& files,
                      const pb::OpenFile* with_data) {
  int fds[2];
  {
    const FsIdentity as_user(context.options.identity);  // who owns it may open /dev/stdin and the like
    if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) throw_errno("cannot make a pipe");
  }
  UniqueFd reader(fds[0]), writer(fds[1]);
  set_capacity(*files.front(), writer.get());
  if (with_data) fill(*with_data, writer.get());
  const int in = reader.get(), out = writer.get();
  for (const pb::OpenFile* file : files) {
    // What open(2) gives has a flag (O_LARGEFILE) that pipe(2) does not give.
    UniqueFd& first = access_of(*file) == O_RDONLY ? reader : writer;
    const bool plain = access_of(*file) != O_RDWR && first;
    context.put(*file, plain ? std::move(first) : reopen(*file, access_of(*file) == O_RDONLY ? in : out));
  }
}

// Opening a FIFO for writing needs a reader, even without blocking: an end open for both is there meanwhile.
void create_named(RestoreContext& context, const std::vector<const pb::OpenFile*>& files,
                  const pb::OpenFile* with_data) {
  const FoundPath found = find_image_path(context, *files.front(), S_IFIFO);
  const std::string path = fmt::format("/proc/self/fd/{}", found.fd.get());
  UniqueFd keeper;
  {
    const FsIdentity as_user(context.options.identity);
    keeper.reset(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    // A user with only one of the permissions can still be helped with reading.
    if (!keeper && errno == EACCES) keeper.reset(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!keeper) throw_errno("cannot open FIFO {}", files.front()->identity().path());
  }
  int waiting = 0;
  if (::ioctl(keeper.get(), FIONREAD, &waiting) != 0 || waiting != 0) {
    throw_bad_file(*files.front(), "the FIFO is in use by other processes");
  }
  set_capacity(*files.front(), keeper.get());
  for (const pb::OpenFile* file : files) {
    const FsIdentity as_user(context.options.identity);
    UniqueFd fd(::open(path.c_str(), static_cast<int>(access_of(*file)) | O_NONBLOCK | O_CLOEXEC));
    if (!fd) throw_errno("cannot open FIFO {}", file->identity().path());
    context.put(*file, std::move(fd));
  }
  if (with_data) fill(*with_data, keeper.get());
}

}  // namespace

void create_pipe(RestoreContext& context, const std::vector<const pb::OpenFile*>& files) {
  const pb::OpenFile* with_data = check_ends(files);
  const bool named = !files.front()->pipe().fifo_path().empty();
  if (named && context.options.dry) find_image_path(context, *files.front(), S_IFIFO);  // what is in it is the job's
  if (!named || context.options.dry) {
    create_anonymous(context, files, with_data);
  } else {
    create_named(context, files, with_data);
  }
}

}  // namespace icp
