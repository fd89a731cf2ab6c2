// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/partial_calls.h"

#include <fcntl.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/procfs.h"
#include "engine/base/unique_fd.h"
#include "engine/trace/peek.h"
#include "engine/trace/return_frame.h"

namespace icp {
namespace {

constexpr int64_t kRestartFirst = 512, kRestartNoHand = 514, kRestartLast = 516;  // include/linux/errno.h
constexpr uint64_t kPageBytes = 4096, kSyscallBytes = 2;
constexpr uint16_t kSyscallCode = 0x050f;
constexpr uint64_t kSlotBytes = 32;               // as the places of time-outs, among which these lie
constexpr uint64_t kMostDone = (1ull << 31) - 1;  // the kernel moves less in one call (MAX_RW_COUNT)
constexpr size_t kMostBuffers = 8;
constexpr uint64_t kMark = 0x6c61697472617069;  // "ipartial"
constexpr uint64_t kSameStackBytes = 256 << 10;

// What the thread runs in a place. Numbers are put in at kDoneAt and at kValuesAt, each kValueStep further: the
// program's rdi, rsi, rdx, r10, r8, r9 and the address behind its call.
constexpr std::array<uint8_t, 88> kCode{
    0x0f, 0x05,                             // syscall
    0x48, 0x85, 0xc0,                       // test %rax,%rax
    0x7f, 0x02,                             // jg over the next one
    0x31, 0xc0,                             // xor %eax,%eax: an error, or the end, after a part
    0x48, 0x05, 0,    0, 0, 0,              // add $done,%rax
    0x48, 0xbf, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%rdi
    0x48, 0xbe, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%rsi
    0x48, 0xba, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%rdx
    0x49, 0xba, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%r10
    0x49, 0xb8, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%r8
    0x49, 0xb9, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%r9
    0x49, 0xbb, 0,    0, 0, 0, 0, 0, 0, 0,  // mov $...,%r11, which a system call changes anyway
    0x41, 0xff, 0xe3,                       // jmp *%r11
};
constexpr size_t kDoneAt = 11, kAfterAdd = 15, kValuesAt = 17, kValueStep = 10;

// Behind the code, at the end of the place.
struct Trailer {
  uint64_t number;  // of the program's call
  uint64_t rsp;
  uint64_t done;
  uint32_t tid, slots;
  uint64_t mark;
};
static_assert((kCode.size() + sizeof(Trailer)) % kSlotBytes == 0);
constexpr size_t kTailBytes = kCode.size() + sizeof(Trailer);

struct Tail {
  std::array<uint8_t, kCode.size()> code;
  Trailer trailer;
};
static_assert(sizeof(Tail) == kTailBytes);

bool write_memory(pid_t pid, uint64_t at, const void* bytes, size_t size) {
  const UniqueFd memory(::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
  return memory && ::pwrite(memory.get(), bytes, size, static_cast<off_t>(at)) == static_cast<ssize_t>(size);
}

// The numbers in a place's code.
uint64_t value_in(const Tail& tail, size_t which) {
  uint64_t value = 0;
  std::memcpy(&value, tail.code.data() + kValuesAt + which * kValueStep, sizeof value);
  return value;
}

bool is_place(const Tail& tail, uint64_t end) {
  return tail.trailer.mark == kMark && tail.trailer.slots >= kTailBytes / kSlotBytes &&
         tail.trailer.slots <= end % kPageBytes / kSlotBytes &&
         std::equal(kCode.begin(), kCode.begin() + kDoneAt, tail.code.begin());
}

PartialCall call_of(const Tail& tail, const user_regs_struct& live) {
  PartialCall call{live, tail.trailer.done};
  call.regs.rdi = value_in(tail, 0);
  call.regs.rsi = value_in(tail, 1);
  call.regs.rdx = value_in(tail, 2);
  call.regs.r10 = value_in(tail, 3);
  call.regs.r8 = value_in(tail, 4);
  call.regs.r9 = value_in(tail, 5);
  call.regs.rip = value_in(tail, 6);
  call.regs.orig_rax = tail.trailer.number;
  call.regs.rax = static_cast<uint64_t>(-kRestartNoHand);
  return call;
}

// A copy of a descriptor of the process, and what matters of it.
struct Descriptor {
  UniqueFd fd;
  struct stat status {};
  bool blocks = false;

  Descriptor(pid_t pid, uint64_t number) {
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (process) fd.reset(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), static_cast<int>(number), 0)));
    if (fd && ::fstat(fd.get(), &status) != 0) fd.reset();
    blocks = fd && (::fcntl(fd.get(), F_GETFL) & O_NONBLOCK) == 0;
  }
  bool is_socket() const { return S_ISSOCK(status.st_mode); }
  bool is_stream() const {
    int type = 0;
    socklen_t size = sizeof type;
    return is_socket() && ::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
  }
  bool has_timeout(int option) const {
    timeval time{};
    socklen_t size = sizeof time;
    return is_socket() && ::getsockopt(fd.get(), SOL_SOCKET, option, &time, &size) == 0 &&
           (time.tv_sec != 0 || time.tv_usec != 0);
  }
  // Whose write() waits until all is written.
  bool takes_all() const {
    return blocks && (S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode) || is_stream()) && !has_timeout(SO_SNDTIMEO);
  }
  // Devices whose read() gives as much as is asked for: zero, random, urandom.
  bool gives_all() const {
    const unsigned minor = minor_of();
    return S_ISCHR(status.st_mode) && major(status.st_rdev) == 1 && (minor == 5 || minor == 8 || minor == 9);
  }
  unsigned minor_of() const { return minor(status.st_rdev); }
};

// The call for the rest: registers, and what they refer to, which goes into the place in front of the code.
struct Rest {
  user_regs_struct regs;
  std::vector<std::byte> data;
  unsigned long long user_regs_struct::*data_register = nullptr;  // gets the address of the data
  bool data_is_message = false;                                   // a msghdr, and then its buffers
};

void one_buffer(const iovec& buffer, Rest& rest) {
  rest.regs.rsi = reinterpret_cast<uint64_t>(buffer.iov_base);
  rest.regs.rdx = buffer.iov_len;
}

// What is left of the buffers in the process's memory. Empty when that cannot be read, is too much, or is nothing.
std::vector<iovec> rest_of_buffers(pid_t pid, uint64_t at, uint64_t count, uint64_t done) {
  std::vector<iovec> left;
  for (uint64_t i = 0; i < count; ++i) {
    iovec buffer{};
    if (i >= 1024 || !peek(pid, at + i * sizeof buffer, buffer)) return {};
    if (done >= buffer.iov_len) {
      done -= buffer.iov_len;
      continue;
    }
    left.push_back({static_cast<char*>(buffer.iov_base) + done, buffer.iov_len - done});
    done = 0;
    if (left.size() > kMostBuffers) return {};
  }
  return left;
}

template <typename T>
void append(std::vector<std::byte>& to, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  to.insert(to.end(), bytes, bytes + count * sizeof(T));
}

// A peer that has closed ends a call that has done a part without SIGPIPE on sockets.
void send_one(uint64_t flags, Rest& rest) {
  rest.regs.orig_rax = SYS_sendto;
  rest.regs.r10 = flags | MSG_NOSIGNAL;
  rest.regs.r8 = rest.regs.r9 = 0;
}

bool write_rest(const Descriptor& to, uint64_t done, Rest& rest) {
  if (!to.takes_all() || done >= rest.regs.rdx) return false;
  rest.regs.rsi += done;
  rest.regs.rdx -= done;
  if (to.is_socket()) send_one(0, rest);
  return true;
}

bool buffers_rest(const Descriptor& to, const std::vector<iovec>& left, uint64_t flags, Rest& rest) {
  if (!to.takes_all() || left.empty()) return false;
  if (left.size() == 1) {
    one_buffer(left[0], rest);
    rest.regs.orig_rax = SYS_write;
    if (to.is_socket()) send_one(flags, rest);
    return true;
  }
  if (to.is_socket()) {
    msghdr message{};  // names and control data went with the first part
    message.msg_iovlen = left.size();
    append(rest.data, &message, 1);
    rest.data_is_message = true;
    rest.regs.orig_rax = SYS_sendmsg;
    rest.regs.rdx = flags | MSG_NOSIGNAL;
  } else {
    rest.regs.rdx = left.size();
  }
  append(rest.data, left.data(), left.size());
  rest.data_register = &user_regs_struct::rsi;
  return true;
}

bool receive_rest(const Descriptor& from, uint64_t flags) {
  constexpr uint64_t kOthers = MSG_DONTWAIT | MSG_PEEK | MSG_OOB | MSG_ERRQUEUE;
  return (flags & MSG_WAITALL) != 0 && (flags & kOthers) == 0 && from.blocks && from.is_stream() &&
         !from.has_timeout(SO_RCVTIMEO);
}

bool receive_message_rest(pid_t pid, const Descriptor& from, uint64_t done, Rest& rest) {
  msghdr message{};
  const uint64_t flags = rest.regs.rdx;
  if (!receive_rest(from, flags) || !peek(pid, rest.regs.rsi, message)) return false;
  const std::vector<iovec> left =
      rest_of_buffers(pid, reinterpret_cast<uint64_t>(message.msg_iov), message.msg_iovlen, done);
  // With several buffers left the kernel would have to write to a header of ours, and control data would be lost.
  if (message.msg_control != nullptr || left.size() != 1) return false;
  one_buffer(left[0], rest);
  rest.regs.orig_rax = SYS_recvfrom;
  rest.regs.r10 = flags;
  rest.regs.r8 = rest.regs.r9 = 0;
  return true;
}

bool messages_rest(const Descriptor& socket, bool receiving, uint64_t done, Rest& rest) {
  constexpr uint64_t kMessageBytes = sizeof(mmsghdr);
  const uint64_t flags = rest.regs.r10;
  if (!socket.blocks || (flags & (MSG_DONTWAIT | MSG_WAITFORONE)) != 0 || done >= rest.regs.rdx) return false;
  if ((receiving && rest.regs.r8 != 0) || socket.has_timeout(receiving ? SO_RCVTIMEO : SO_SNDTIMEO)) return false;
  rest.regs.rsi += done * kMessageBytes;
  rest.regs.rdx -= done;
  return true;
}

std::optional<Rest> rest_of(pid_t pid, const PartialCall& call) {
  Rest rest{call.regs, {}};
  user_regs_struct& regs = rest.regs;
  const uint64_t done = call.done;
  bool goes_on = false;
  switch (regs.orig_rax) {
    case SYS_write:
      goes_on = write_rest(Descriptor(pid, regs.rdi), done, rest);
      break;
    case SYS_read:
      goes_on = done < regs.rdx && Descriptor(pid, regs.rdi).gives_all();
      regs.rsi += done;
      regs.rdx -= done;
      break;
    case SYS_writev:
      goes_on = buffers_rest(Descriptor(pid, regs.rdi), rest_of_buffers(pid, regs.rsi, regs.rdx, done), 0, rest);
      break;
    case SYS_sendto: {
      const uint64_t flags = regs.r10;
      goes_on = (flags & MSG_DONTWAIT) == 0 && write_rest(Descriptor(pid, regs.rdi), done, rest);
      if (goes_on) send_one(flags, rest);
      break;
    }
    case SYS_sendmsg: {
      msghdr message{};
      if ((regs.rdx & MSG_DONTWAIT) != 0 || !peek(pid, regs.rsi, message)) break;
      goes_on = buffers_rest(
          Descriptor(pid, regs.rdi),
          rest_of_buffers(pid, reinterpret_cast<uint64_t>(message.msg_iov), message.msg_iovlen, done), regs.rdx, rest);
      break;
    }
    case SYS_recvfrom:
      goes_on = done < regs.rdx && receive_rest(Descriptor(pid, regs.rdi), regs.r10);
      regs.rsi += done;
      regs.rdx -= done;
      break;
    case SYS_recvmsg:
      goes_on = receive_message_rest(pid, Descriptor(pid, regs.rdi), done, rest);
      break;
    case SYS_sendmmsg:
    case SYS_recvmmsg:
      goes_on = messages_rest(Descriptor(pid, regs.rdi), regs.orig_rax == SYS_recvmmsg, done, rest);
      break;
    case SYS_sendfile: {  // positions are where the part has left them
      const Descriptor to(pid, regs.rdi);
      goes_on = done < regs.r10 && (to.takes_all() || S_ISREG(to.status.st_mode));
      regs.r10 -= done;
      break;
    }
    case SYS_copy_file_range:
      goes_on = done < regs.r8;
      regs.r8 -= done;
      break;
    case SYS_getrandom:
      goes_on = done < regs.rsi;
      regs.rdi += done;
      regs.rsi -= done;
      break;
    default:
      break;
  }
  return goes_on && done <= kMostDone ? std::optional(rest) : std::nullopt;
}

// Whether another place is free again.
bool is_over(pid_t pid, const Trailer& other, pid_t tid, uint64_t rsp) {
  if (other.tid != static_cast<uint32_t>(tid))
    return ::access(("/proc/" + std::to_string(pid) + "/task/" + std::to_string(other.tid)).c_str(), F_OK) != 0;
  // The frame that made it has returned: not so in a handler on the same stack, which lies below, or on another one.
  return rsp >= other.rsp && rsp - other.rsp < kSameStackBytes;
}

// Finds room for so many bytes below `end`, the places of calls that are over included. Its end, or 0.
uint64_t find_room(pid_t pid, pid_t tid, uint64_t rsp, uint64_t end, size_t bytes) {
  const uint64_t first = end / kPageBytes * kPageBytes;
  uint64_t room_end = end;
  for (uint64_t at = end; at >= first + kSlotBytes;) {
    size_t size = partial_call_bytes(pid, at);
    if (size > 0) {
      Trailer other{};
      if (!peek(pid, at - sizeof other, other)) return 0;
      if (is_over(pid, other, tid, rsp)) {
        const std::vector<std::byte> zeros(size);
        if (!write_memory(pid, at - size, zeros.data(), size)) return 0;
        size = 0;
      }
    }
    if (size == 0) {
      std::array<uint64_t, kSlotBytes / 8> slot{};
      if (!peek(pid, at - kSlotBytes, slot)) return 0;
      if (std::all_of(slot.begin(), slot.end(), [](uint64_t word) { return word == 0; })) {
        at -= kSlotBytes;
        if (room_end - at >= bytes) return room_end;
        continue;
      }
      if (slot[0] != kTimeoutMark) return 0;  // the vdso's own content
      size = kSlotBytes;
    }
    at -= size;
    room_end = at;
  }
  return 0;
}

// Lays the instructions for the rest; `live` gets the registers with which it is made. False: no room.
bool place_call(pid_t pid, pid_t tid, const PartialCall& call, Rest rest, user_regs_struct& live) {
  const uint64_t end = end_of_vdso_room(pid);
  const size_t data_bytes = (rest.data.size() + kSlotBytes - 1) / kSlotBytes * kSlotBytes;
  const size_t bytes = data_bytes + kTailBytes;
  const uint64_t place_end = end == 0 ? 0 : find_room(pid, tid, live.rsp, end, bytes);
  if (place_end == 0) return false;
  const uint64_t start = place_end - bytes;
  if (rest.data_is_message) {
    const uint64_t buffers = start + sizeof(msghdr);
    std::memcpy(rest.data.data() + offsetof(msghdr, msg_iov), &buffers, sizeof buffers);
  }
  if (rest.data_register != nullptr) rest.regs.*rest.data_register = start;

  Tail tail{kCode,
            {call.regs.orig_rax, live.rsp, call.done, static_cast<uint32_t>(tid),
             static_cast<uint32_t>(bytes / kSlotBytes), kMark}};
  const auto done = static_cast<uint32_t>(call.done);
  std::memcpy(tail.code.data() + kDoneAt, &done, sizeof done);
  const uint64_t values[] = {call.regs.rdi, call.regs.rsi, call.regs.rdx, call.regs.r10,
                             call.regs.r8,  call.regs.r9,  call.regs.rip};
  for (size_t i = 0; i < std::size(values); ++i)
    std::memcpy(tail.code.data() + kValuesAt + i * kValueStep, &values[i], sizeof values[i]);
  std::vector<std::byte> content(bytes);
  std::copy(rest.data.begin(), rest.data.end(), content.begin());
  std::memcpy(content.data() + data_bytes, &tail, sizeof tail);
  if (!write_memory(pid, start, content.data(), bytes)) return false;
  live = rest.regs;
  live.rip = start + data_bytes + kSyscallBytes;
  live.rax = static_cast<uint64_t>(-kRestartNoHand);
  return true;
}

// The place whose code an address lies in; false: none.
bool find_place(pid_t pid, uint64_t rip, Tail& tail, uint64_t& code) {
  const uint64_t end = end_of_vdso_room(pid);
  if (end == 0 || rip / kPageBytes != end / kPageBytes) return false;
  for (uint64_t at = end; at > rip;) {
    const size_t size = partial_call_bytes(pid, at);
    code = at - kTailBytes;
    if (size > 0 && rip >= code && rip < at) return peek(pid, code, tail);
    at -= size > 0 ? size : kSlotBytes;
  }
  return false;
}

constexpr uint64_t kCanBeShort[] = {SYS_write,    SYS_writev,          SYS_sendto,   SYS_sendmsg,
                                    SYS_recvfrom, SYS_recvmsg,         SYS_sendmmsg, SYS_recvmmsg,
                                    SYS_sendfile, SYS_copy_file_range, SYS_read,     SYS_getrandom};

// Whether it is worth to look for the vdso: asked for each thread in each stop, so most are told by their registers.
bool may_be_in_place(pid_t pid, const user_regs_struct& live) {
  const bool in_call = static_cast<int64_t>(live.orig_rax) >= 0;
  if (in_call && std::find(std::begin(kCanBeShort), std::end(kCanBeShort), live.orig_rax) == std::end(kCanBeShort))
    return false;
  std::array<uint8_t, 2> here{};
  if (!peek(pid, live.rip, here)) return false;
  constexpr size_t kInstructions[] = {0, 2, 5, 7, 9, 15, 25, 35, 45, 55, 65, 75, 85};
  return std::any_of(std::begin(kInstructions), std::end(kInstructions), [&](size_t offset) {
    std::array<uint8_t, kDoneAt> code{};
    return std::equal(here.begin(), here.end(), kCode.begin() + offset) && peek(pid, live.rip - offset, code) &&
           std::equal(code.begin(), code.end(), kCode.begin());
  });
}

// A part done for the first time: the stop is the only reason for a short count that rest_of() leaves.
std::optional<PartialCall> new_part(pid_t pid, const user_regs_struct& live) {
  const auto result = static_cast<int64_t>(live.rax);
  uint16_t instruction = 0;
  if (static_cast<int64_t>(live.orig_rax) < 0 || result <= 0) return std::nullopt;
  if (std::find(std::begin(kCanBeShort), std::end(kCanBeShort), live.orig_rax) == std::end(kCanBeShort))
    return std::nullopt;
  // Not about to make a call again, with its number in rax.
  if (!peek(pid, live.rip - kSyscallBytes, instruction) || instruction != kSyscallCode) return std::nullopt;
  PartialCall call{live, live.rax};
  call.regs.rax = static_cast<uint64_t>(-kRestartNoHand);
  return call;
}

bool go_on(pid_t pid, pid_t tid, const PartialCall& call, user_regs_struct& live) {
  const std::optional<Rest> rest = rest_of(pid, call);
  return rest && place_call(pid, tid, call, *rest, live);
}

// Stopped in a place, `offset` bytes into its code.
std::optional<PartialCall> go_on_in_place(pid_t pid, pid_t tid, const Tail& tail, uint64_t offset,
                                          user_regs_struct& live) {
  PartialCall call = call_of(tail, live);
  const auto result = static_cast<int64_t>(live.rax);
  if (offset == 0) return call;  // it makes the call as soon as it runs
  const bool at_call = offset == kSyscallBytes && static_cast<int64_t>(live.orig_rax) >= 0;
  if (at_call && -result >= kRestartFirst && -result <= kRestartLast) {
    live.rax = static_cast<uint64_t>(-kRestartNoHand);
    return call;
  }
  const uint64_t more = static_cast<uint64_t>(std::max<int64_t>(result, 0));
  if (at_call && more > 0) {
    PartialCall further = call;
    further.done += more;
    if (go_on(pid, tid, further, live)) return further;
  }
  live = call.regs;
  live.rax = offset < kAfterAdd ? call.done + more : static_cast<uint64_t>(result);
  live.orig_rax = ~0ull;
  return std::nullopt;
}

}  // namespace

size_t partial_call_bytes(pid_t pid, uint64_t end) {
  Tail tail{};
  if (end % kPageBytes < kTailBytes || !peek(pid, end - kTailBytes, tail) || !is_place(tail, end)) return 0;
  return tail.trailer.slots * kSlotBytes;
}

uint64_t end_of_vdso_room(pid_t pid) {
  const std::vector<MapsEntry> maps = MapsEntry::read(pid);
  const auto vdso =
      std::find_if(maps.begin(), maps.end(), [](const MapsEntry& entry) { return entry.path == "[vdso]"; });
  return vdso == maps.end() ? 0 : (vdso->end - kCallStubBytes) / kSlotBytes * kSlotBytes;
}

std::optional<PartialCall> continue_partial_call(pid_t pid, pid_t tid, user_regs_struct& live) {
  Tail tail{};
  uint64_t code = 0;
  if (may_be_in_place(pid, live) && find_place(pid, live.rip, tail, code))
    return go_on_in_place(pid, tid, tail, live.rip - code, live);
  std::optional<PartialCall> call = new_part(pid, live);
  return call && go_on(pid, tid, *call, live) ? call : std::nullopt;
}

void restore_partial_call(pid_t tid, uint64_t done, user_regs_struct& regs) {
  const pid_t pid = ProcStatus::read(tid).tgid;
  const PartialCall call{regs, done};
  if (go_on(pid, tid, call, regs)) return;
  regs.rax = done;
  regs.orig_rax = ~0ull;
}

}  // namespace icp
