// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/pipe.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "engine/base/error.h"
#include "engine/files/image_path.h"

namespace icp {
namespace {

// All ends of one pipe that the capsule has.
struct PipeEnds {
  std::vector<Description*> all;
  Description* reader = nullptr;
  Description* writer = nullptr;
  bool packet_mode = false;
};

bool named(const Description& end) { return end.target.starts_with('/') && end.stat.st_nlink > 0; }

std::vector<PipeEnds> group_by_pipe(Descriptions descriptions) {
  std::map<std::pair<dev_t, ino_t>, PipeEnds> groups;
  for (Description* end : descriptions) {
    PipeEnds& ends = groups[{end->stat.st_dev, end->stat.st_ino}];
    ends.all.push_back(end);
    if (end->access() != O_WRONLY && !ends.reader) ends.reader = end;
    if (end->access() != O_RDONLY && !ends.writer) ends.writer = end;
    if (end->info.flags & O_DIRECT) ends.packet_mode = true;
  }
  std::vector<PipeEnds> result;
  result.reserve(groups.size());
  for (auto& [inode, ends] : groups) result.push_back(std::move(ends));
  return result;
}

short poll_events(int fd) {
  pollfd request{fd, POLLIN | POLLOUT, 0};
  return ::poll(&request, 1, 0) >= 0 ? request.revents : short{0};
}

// POLLHUP is missing on a FIFO that was opened non-blocking before any writer came (fifo_open() in the
// kernel's fs/pipe.c); tee(2) of an empty pipe gives 0 without writers and EAGAIN with.
bool has_writer(int reader) {
  if (poll_events(reader) & POLLHUP) return false;
  int waiting = 0, ends[2];
  if (::ioctl(reader, FIONREAD, &waiting) != 0 || waiting != 0) return true;
  if (::pipe2(ends, O_CLOEXEC) != 0) return true;
  const UniqueFd in(ends[0]), out(ends[1]);
  return ::tee(reader, out.get(), 1, SPLICE_F_NONBLOCK) != 0;
}

bool has_reader(int writer) { return !(poll_events(writer) & POLLERR); }

void check_pipe(FileScan& scan, const PipeEnds& ends) {
  Description& first = *ends.all.front();
  for (Description* end : ends.all) {
    if (end->info.flags & O_PATH) {
      scan.refuse(*end, fmt::format("O_PATH descriptor of {}", end->target), "close it");
      return;
    }
  }
  const bool fifo = named(first);
  if (fifo && !path_leads_back(scan, first)) return;
  const std::string what = fifo ? fmt::format("FIFO {} whose other end is outside of the job", first.target)
                                : fmt::format("pipe {} whose other end is outside of the job", first.target);
  if (scan.misses_descriptors()) return;
  const std::string hint = "start the other program inside the job too, or use a file";
  if (!ends.writer) {
    const int reader = scan.take(*ends.reader);
    if (reader >= 0 && has_writer(reader)) scan.refuse(first, what, hint);
  } else if (!ends.reader) {
    const int writer = scan.take(*ends.writer);
    if (writer >= 0 && has_reader(writer)) scan.refuse(first, what, hint);
  }
}

void capture_pipe(FileScan& scan, const PipeEnds& ends, uint64_t number) {
  Description& any = *ends.all.front();
  const int capacity = ::fcntl(scan.take(any), F_GETPIPE_SZ);
  if (capacity < 0) throw_errno("cannot read the capacity of {}", any.target);
  for (Description* end : ends.all) {
    capture_identity(*end);
    if (!named(*end)) end->message->mutable_identity()->clear_path();
    pb::PipeEnd& message = *end->message->mutable_pipe();
    message.set_pipe(number);
    message.set_write_end(end->access() == O_WRONLY);
    message.set_capacity(static_cast<uint32_t>(capacity));
    if (named(*end)) message.set_fifo_path(end->target);
  }
  if (!ends.reader) return;  // nobody will ever read what is in there
  PipeContent content = peek_pipe(scan.take(*ends.reader), capacity, ends.packet_mode);
  pb::PipeEnd& message = *any.message->mutable_pipe();
  message.set_data(std::move(content.data));
  message.mutable_packets()->Assign(content.packets.begin(), content.packets.end());
}

class PipeKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kPipe; }

  bool recognises(FileScan&, Description& description) const override { return S_ISFIFO(description.stat.st_mode); }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (const PipeEnds& ends : group_by_pipe(descriptions)) check_pipe(scan, ends);
  }

  void capture(FileScan& scan, const ObjectResolver&, Descriptions descriptions) const override {
    uint64_t number = 0;
    for (const PipeEnds& ends : group_by_pipe(descriptions)) capture_pipe(scan, ends, ++number);
  }

  void create(RestoreContext& context, ImageFiles files) const override {
    std::map<uint64_t, std::vector<const pb::OpenFile*>> pipes;
    for (const pb::OpenFile* file : files) pipes[file->pipe().pipe()].push_back(file);
    for (const auto& [number, ends] : pipes) create_pipe(context, ends);
  }
};

}  // namespace

PipeContent peek_pipe(int reader, int capacity, bool packet_mode) {
  PipeContent content;
  int waiting = 0;
  if (::ioctl(reader, FIONREAD, &waiting) != 0) throw_errno("cannot see how much data is in a pipe");
  if (waiting <= 0) return content;
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) throw_errno("cannot make a pipe");
  const UniqueFd in(fds[0]), out(fds[1]);
  // As many slots as the original has: tee() copies slots, however little is in each.
  if (::fcntl(out.get(), F_GETPIPE_SZ) != capacity && ::fcntl(out.get(), F_SETPIPE_SZ, capacity) < 0) {
    throw_errno("cannot make a pipe of {} bytes", capacity);
  }
  const ssize_t copied = ::tee(reader, out.get(), static_cast<size_t>(waiting), SPLICE_F_NONBLOCK);
  if (copied < 0) throw_errno("cannot copy the data in a pipe");
  if (copied != waiting) {
    throw_error(ErrorKind::kSystem, "only {} of {} bytes in a pipe could be copied", copied, waiting);
  }
  content.data.resize(static_cast<size_t>(waiting));
  for (size_t done = 0; done < content.data.size();) {
    const ssize_t got = ::read(in.get(), content.data.data() + done, content.data.size() - done);
    if (got <= 0) throw_errno("cannot read back the data of a pipe");
    content.packets.push_back(static_cast<uint32_t>(got));  // a read ends where a packet ends
    done += static_cast<size_t>(got);
  }
  if (content.packets.size() == 1 && !packet_mode) content.packets.clear();
  return content;
}

const FileKind& pipe_kind() {
  static const PipeKind kind;
  return kind;
}

}  // namespace icp
