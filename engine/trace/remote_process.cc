// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/remote_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/trace/return_frame.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

constexpr std::array<unsigned char, 2> kSyscallInstruction{0x0f, 0x05};  // Intel SDM, SYSCALL
constexpr size_t kStageAlignment = 16;

// process_vm_readv/writev move at most INT_MAX rounded down to pages; far fewer are asked for here, so a short
// count means that the next byte is not mapped (or not writable).
template <typename Transfer>
void transfer_all(Transfer transfer, pid_t pid, uint64_t at, std::byte* local, size_t bytes, const char* what) {
  while (bytes > 0) {
    const iovec here{local, std::min<size_t>(bytes, 1u << 30)};
    const iovec there{reinterpret_cast<void*>(at), here.iov_len};
    const ssize_t moved = transfer(pid, &here, 1, &there, 1, 0);
    if (moved <= 0) {
      const int saved = moved == 0 ? EFAULT : errno;
      throw Error(saved == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
                  fmt::format("cannot {} {} bytes at {:#x} of process {}: {}", what, bytes, at, pid, errno_text(saved)),
                  saved);
    }
    at += static_cast<uint64_t>(moved);
    local += moved;
    bytes -= static_cast<size_t>(moved);
  }
}

// A message with one descriptor and one byte, as the kernel lays it out in the receiving process.
struct ReceiveBuffer {
  msghdr message{};
  iovec io{};
  char byte = 0;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
};

void send_one_fd(int socket, int fd) {
  ReceiveBuffer buffer;
  buffer.io = {&buffer.byte, 1};
  buffer.message.msg_iov = &buffer.io;
  buffer.message.msg_iovlen = 1;
  buffer.message.msg_control = buffer.control.data();
  buffer.message.msg_controllen = buffer.control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&buffer.message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (::sendmsg(socket, &buffer.message, MSG_NOSIGNAL) != 1) throw_errno("cannot send a descriptor to a process");
}

}  // namespace

RemoteProcess::RemoteProcess(Tracee& thread, pid_t pid, RemoteAddr syscall_instruction, RemoteAddr batch_stub)
    : thread_(&thread), pid_(pid), instruction_(syscall_instruction), batch_stub_(batch_stub), base_(thread.regs()) {}

RemoteProcess RemoteProcess::on_thread(Tracee& other) const {
  RemoteProcess copy = *this;
  copy.thread_ = &other;
  copy.base_ = other.regs();
  copy.way_back_.reset();  // another thread's
  copy.borrowed_.reset();
  copy.call_stack_ = 0;
  return copy;
}

RemoteProcess RemoteProcess::at_instruction(RemoteAddr code) const {
  RemoteProcess copy = *this;
  copy.instruction_ = code;
  return copy;
}

RemoteProcess RemoteProcess::on_process(Tracee& leader, pid_t pid) const {
  RemoteProcess copy = on_thread(leader);
  copy.pid_ = pid;
  return copy;
}

int64_t RemoteProcess::syscall(long number, std::initializer_list<uint64_t> arguments) {
  std::array<uint64_t, 6> value{};
  std::copy_n(arguments.begin(), std::min(arguments.size(), value.size()), value.begin());
  if (!thread_->seccomp_suspended()) seccomp_book().check_call(thread_->tid(), seccomp_call(number, arguments));
  if (way_back_ && !borrowed_) borrow_stack();
  user_regs_struct regs = base_;
  regs.rip = instruction_.value;
  if (call_stack_ != 0) regs.rsp = call_stack_;
  regs.rax = static_cast<uint64_t>(number);
  regs.orig_rax = ~0ull;  // not in a system call: keeps the kernel from restarting one
  regs.rdi = value[0];
  regs.rsi = value[1];
  regs.rdx = value[2];
  regs.r10 = value[3];
  regs.r8 = value[4];
  regs.r9 = value[5];
  thread_->set_regs(regs);  // before the mask, which nothing else would put back should the agent die in between
  thread_->block_signals();
  last_child_ = 0;
  for (int syscall_stops = 0; syscall_stops < 2;) {
    const int status = thread_->resume_and_wait(PTRACE_SYSCALL);
    if (!WIFSTOPPED(status)) throw_error(ErrorKind::kGone, "process {} has ended during a call in it", pid_);
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      ++syscall_stops;
    } else if (const int event = status >> 16;
               event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_VFORK) {
      last_child_ = static_cast<pid_t>(thread_->event_message());
    } else if (event != PTRACE_EVENT_STOP) {
      throw_error(ErrorKind::kSystem, "process {} stopped with signal {} during a call in it", pid_, WSTOPSIG(status));
    }
  }
  return static_cast<int64_t>(thread_->regs().rax);
}

int64_t RemoteProcess::call(const char* what, long number, std::initializer_list<uint64_t> arguments) {
  const int64_t result = syscall(number, arguments);
  if (result < 0 && result > -4096)
    throw Error(ErrorKind::kSystem,
                fmt::format("{} in process {}: {}", what, pid_, errno_text(static_cast<int>(-result))),
                static_cast<int>(-result));
  return result;
}

void read_memory(pid_t pid, RemoteAddr from, std::span<std::byte> to) {
  transfer_all(::process_vm_readv, pid, from.value, to.data(), to.size(), "read");
}

void RemoteProcess::write(RemoteAddr to, std::span<const std::byte> from) {
  transfer_all(::process_vm_writev, pid_, to.value, const_cast<std::byte*>(from.data()), from.size(), "write");
}

void RemoteProcess::set_scratch(RemoteAddr at, size_t bytes) {
  scratch_ = at;
  scratch_size_ = bytes;
  scratch_used_ = 0;
}

void RemoteProcess::map_scratch(size_t bytes) {
  const int64_t at = call("mmap of scratch memory", SYS_mmap,
                          {0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, ~0ull, 0});
  set_scratch({static_cast<uint64_t>(at)}, bytes);
}

void RemoteProcess::protect_calls(const user_regs_struct& regs, uint64_t signal_mask) {
  way_back_ = WayBack{regs, signal_mask};
}

void RemoteProcess::borrow_stack() {
  const auto& [regs, mask] = *way_back_;
  const std::vector<std::byte> xstate = thread_->xstate();
  const RemoteAddr at = return_frame_place(regs.rsp, return_frame_bytes(xstate.size()));
  borrowed_ = BorrowedStack::borrow(pid_, at, make_return_frame(at, regs, mask, xstate));
  call_stack_ = borrowed_ ? return_stack_pointer(at) : 0;
  if (!borrowed_) way_back_.reset();
}

void RemoteProcess::give_back() {
  borrowed_.reset();
  call_stack_ = 0;
}

void RemoteProcess::unmap_scratch() {
  if (scratch_size_ == 0) return;
  call("munmap of scratch memory", SYS_munmap, {scratch_.value, scratch_size_});
  set_scratch({}, 0);
}

RemoteAddr RemoteProcess::reserve(size_t bytes) {
  const size_t rounded = (bytes + kStageAlignment - 1) / kStageAlignment * kStageAlignment;
  if (rounded > scratch_size_ - scratch_used_)
    throw_error(ErrorKind::kSystem, "scratch memory of process {} is too small ({} of {} bytes used, {} wanted)", pid_,
                scratch_used_, scratch_size_, bytes);
  const RemoteAddr at = scratch_ + scratch_used_;
  scratch_used_ += rounded;
  return at;
}

RemoteAddr RemoteProcess::stage(std::span<const std::byte> bytes) {
  const RemoteAddr at = reserve(bytes.size());
  write(at, bytes);
  return at;
}

RemoteAddr RemoteProcess::stage_string(const std::string& text) {
  return stage(std::as_bytes(std::span(text.c_str(), text.size() + 1)));
}

int RemoteProcess::send_fd(int agent_end, int channel, int local) {
  send_one_fd(agent_end, local);
  const size_t used = scratch_used_;
  ReceiveBuffer buffer;
  const RemoteAddr at = reserve(sizeof buffer);
  const auto inside = [&](const void* member) {
    return reinterpret_cast<void*>(
        at.value + static_cast<uint64_t>(static_cast<const char*>(member) - reinterpret_cast<const char*>(&buffer)));
  };
  buffer.io = {inside(&buffer.byte), 1};
  buffer.message.msg_iov = static_cast<iovec*>(inside(&buffer.io));
  buffer.message.msg_iovlen = 1;
  buffer.message.msg_control = inside(buffer.control.data());
  buffer.message.msg_controllen = buffer.control.size();
  write_value(at, buffer);
  call("recvmsg of a descriptor", SYS_recvmsg, {static_cast<uint64_t>(channel), at.value, MSG_CMSG_CLOEXEC});
  buffer = read_value<ReceiveBuffer>(at);
  scratch_used_ = used;
  cmsghdr header{};
  std::memcpy(&header, buffer.control.data(), sizeof header);
  if (buffer.message.msg_controllen < CMSG_LEN(sizeof(int)) || header.cmsg_type != SCM_RIGHTS)
    throw_error(ErrorKind::kSystem, "process {} did not get the descriptor sent to it (is RLIMIT_NOFILE too small?)",
                pid_);
  int fd = -1;
  std::memcpy(&fd, buffer.control.data() + CMSG_LEN(0), sizeof fd);
  return fd;
}

void RemoteProcess::send_fd_to(int agent_end, int channel, int local, int want, bool cloexec) {
  const int got = send_fd(agent_end, channel, local);
  if (got != want) {
    call("dup3", SYS_dup3, {static_cast<uint64_t>(got), static_cast<uint64_t>(want), cloexec ? O_CLOEXEC : 0u});
    call("close", SYS_close, {static_cast<uint64_t>(got)});
  } else if (!cloexec) {
    call("fcntl(F_SETFD)", SYS_fcntl, {static_cast<uint64_t>(got), F_SETFD, 0});
  }
}

UniqueFd RemoteProcess::take_fd(int remote_fd) const {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd) throw_errno("cannot open process {}", pid_);
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), remote_fd, 0)));
  if (!fd) throw_errno("cannot take descriptor {} of process {}", remote_fd, pid_);
  return fd;
}

UniqueFd RemoteProcess::take_away_fd(int64_t remote_fd) {
  UniqueFd fd = take_fd(static_cast<int>(remote_fd));
  call("close", SYS_close, {static_cast<uint64_t>(remote_fd)});
  return fd;
}

RemoteAddr find_syscall_instruction(pid_t pid) {
  std::vector<MapsEntry> maps = MapsEntry::read(pid);
  // The vdso first: it is small and always holds one, in the fall-backs of its clock functions.
  std::stable_partition(maps.begin(), maps.end(), [](const MapsEntry& entry) { return entry.path == "[vdso]"; });
  std::vector<std::byte> code;
  for (const MapsEntry& entry : maps) {
    if (!entry.executable || !entry.readable || entry.path == "[vsyscall]") continue;
    code.resize(std::min<uint64_t>(entry.end - entry.start, 4u << 20));
    const iovec here{code.data(), code.size()};
    const iovec there{reinterpret_cast<void*>(entry.start), code.size()};
    const ssize_t got = ::process_vm_readv(pid, &here, 1, &there, 1, 0);
    if (got <= 0) continue;
    const auto* begin = reinterpret_cast<const unsigned char*>(code.data());
    const auto* found = std::search(begin, begin + got, kSyscallInstruction.begin(), kSyscallInstruction.end());
    if (found != begin + got) return {entry.start + static_cast<uint64_t>(found - begin)};
  }
  throw_error(ErrorKind::kRefused, "process {} maps no syscall instruction that could be used", pid);
}

namespace {

enum class Room { kTaken, kFree, kOurs };

// What is in the tail of a page where `stub` would be its last bytes but `after`.
template <size_t kBytes>
Room room_for(std::span<const uint8_t> tail, const std::array<uint8_t, kBytes>& stub) {
  const auto place = tail.last(kBytes), gap = tail.first(tail.size() - kBytes).last(kStubGap);
  if (std::equal(stub.begin(), stub.end(), place.begin())) return Room::kOurs;
  const auto zero = [](uint8_t byte) { return byte == 0; };
  // An agent of a former release, or one that found no room for more, left the end of it.
  const auto rest = place.last(kReturnStub.size());
  const bool end_ours = std::equal(kReturnStub.begin(), kReturnStub.end(), rest.begin());
  if (!std::all_of(gap.begin(), gap.end(), zero)) return Room::kTaken;
  if (!std::all_of(place.begin(), place.end() - static_cast<ptrdiff_t>(rest.size()), zero)) return Room::kTaken;
  return end_ours || std::all_of(rest.begin(), rest.end(), zero) ? Room::kFree : Room::kTaken;
}

template <size_t kBytes>
bool put_stub(pid_t pid, uint64_t end, std::span<const uint8_t> tail, const std::array<uint8_t, kBytes>& stub) {
  const Room room = room_for(tail, stub);
  if (room != Room::kFree) return room == Room::kOurs;
  // /proc/PID/mem may write where the process itself may not, as debuggers do for breakpoints.
  const UniqueFd memory(::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDWR | O_CLOEXEC));
  return memory &&
         ::pwrite(memory.get(), stub.data(), kBytes, static_cast<off_t>(end - kBytes)) == static_cast<ssize_t>(kBytes);
}

}  // namespace

bool CallStubs::contain(RemoteAddr address) const {
  const RemoteAddr begin = batch.value != 0 ? batch : single;
  return begin.value != 0 && begin <= address && address < single + kReturnStub.size();
}

CallStubs install_call_stubs(pid_t pid, const std::vector<MapsEntry>& maps) {
  const auto vdso =
      std::find_if(maps.begin(), maps.end(), [](const MapsEntry& entry) { return entry.path == "[vdso]"; });
  if (vdso == maps.end()) return {};
  // The kernel maps whole pages of an image that ends earlier.
  std::array<uint8_t, kCallStubBytes> tail{};
  const iovec here{tail.data(), tail.size()}, there{reinterpret_cast<void*>(vdso->end - tail.size()), tail.size()};
  if (::process_vm_readv(pid, &here, 1, &there, 1, 0) != static_cast<ssize_t>(tail.size())) return {};
  const RemoteAddr single{vdso->end - kReturnStub.size()}, batch{vdso->end - kBatchStub.size()};
  if (put_stub(pid, vdso->end, tail, kBatchStub)) return {single, batch};
  if (put_stub(pid, vdso->end, tail, kReturnStub)) return {single, {}};
  return {};
}

}  // namespace icp
