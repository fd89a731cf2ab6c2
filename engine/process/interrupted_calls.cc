// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/interrupted_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string>

#include "engine/base/timespec.h"
#include "engine/base/unique_fd.h"
#include "engine/process/partial_calls.h"
#include "engine/trace/peek.h"

namespace icp {

namespace {

// include/linux/errno.h: seen in rax of a thread stopped in an interrupted system call.
constexpr int64_t kRestartSys = 512, kRestartNoHand = 514, kRestartBlock = 516;

// signal(7): calls that fail with EINTR after any stop, even one that no handler saw. The kernel did that because of
// our interrupt, so they are made to restart, as if nothing had been; should a handler run, they still fail with EINTR.
constexpr long kNeverRestarted[] = {SYS_epoll_wait, SYS_epoll_pwait,     SYS_epoll_pwait2, SYS_semop,
                                    SYS_semtimedop, SYS_rt_sigtimedwait, SYS_io_getevents, SYS_io_pgetevents};
// The same for sockets with a time-out (SO_RCVTIMEO, SO_SNDTIMEO). EINTR means that nothing was transferred.
constexpr long kReceiving[] = {SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg, SYS_read, SYS_readv, SYS_accept, SYS_accept4};
constexpr long kSending[] = {SYS_sendto, SYS_sendmsg, SYS_sendmmsg, SYS_write, SYS_writev, SYS_connect};

constexpr int64_t kNsPerSecond = 1'000'000'000, kNsPerMs = 1'000'000;
constexpr int64_t kLongestNs = int64_t{1} << 60;  // 36 years: longer is for ever
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kSyscallBytes = 2;  // of the instruction
constexpr uint16_t kSyscallCode = 0x050f;
constexpr uint64_t kRedZoneBytes = 128, kStackAlignment = 16;

template <size_t N>
bool is_one_of(const long (&list)[N], uint64_t number) {
  return std::find(std::begin(list), std::end(list), static_cast<long>(number)) != std::end(list);
}

bool in_system_call(const user_regs_struct& regs) { return static_cast<int64_t>(regs.orig_rax) >= 0; }
int64_t result_of(const user_regs_struct& regs) { return static_cast<int64_t>(regs.rax); }
void set_result(user_regs_struct& regs, int64_t value) { regs.rax = static_cast<uint64_t>(value); }

// A stop has interrupted the call, the thread was let go, and another stop came before it could make the call again.
template <typename Call>
bool goes_on_with(const user_regs_struct& live, const Call& call, uint64_t number) {
  return live.rax == number && live.rip + kSyscallBytes == call.rip && live.rsp == call.rsp;
}

int64_t monotonic_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * kNsPerSecond + time.tv_nsec;
}

// SO_RCVTIMEO or SO_SNDTIMEO of a descriptor of the process, 0 for none.
int64_t socket_timeout_ns(pid_t pid, int fd, bool receiving) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const UniqueFd socket(process ? static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0)) : -1);
  timeval time{};
  socklen_t size = sizeof time;
  if (!socket || ::getsockopt(socket.get(), SOL_SOCKET, receiving ? SO_RCVTIMEO : SO_SNDTIMEO, &time, &size) != 0)
    return 0;
  return time.tv_sec * kNsPerSecond + time.tv_usec * 1000;
}

// The register with the address of a relative time-out, for calls that leave that as it is; null: none.
unsigned long long* timeout_address(user_regs_struct& regs) {
  switch (regs.orig_rax) {
    case SYS_semtimedop:
    case SYS_epoll_pwait2:
      return &regs.r10;
    case SYS_futex:
      return (regs.rsi & FUTEX_CMD_MASK) == FUTEX_WAIT ? &regs.r10 : nullptr;  // others' are absolute
    case SYS_rt_sigtimedwait:
      return &regs.rdx;
    case SYS_nanosleep:
      return &regs.rdi;
    case SYS_clock_nanosleep:
      return (regs.rsi & TIMER_ABSTIME) == 0 ? &regs.rdx : nullptr;
    default:
      return nullptr;
  }
}

// The calls whose rest the kernel keeps for restart_syscall(2).
constexpr long kRestartable[] = {SYS_nanosleep, SYS_clock_nanosleep, SYS_poll, SYS_futex};

// The number that the code before the instruction loads, as the C libraries' functions have it: mov $N,%eax.
std::optional<uint64_t> number_in_code(pid_t pid, uint64_t after) {
  std::array<uint8_t, 24> code{};
  if (!peek(pid, after - kSyscallBytes - code.size(), code)) return {};
  constexpr uint8_t kLoad = 0xb8;
  for (size_t at = code.size() - 5 + 1; at-- > 0;) {
    uint32_t number = 0;
    std::memcpy(&number, &code[at + 1], sizeof number);
    if (code[at] == kLoad && is_one_of(kRestartable, number)) return number;
  }
  return {};
}

// Which call a thread is in that somebody else has interrupted before (SIGSTOP and SIGCONT, a debugger, another agent):
// of its registers, restart_syscall(2) has taken the number alone. Where the code does not tell, the arguments have to.
uint64_t restarted_number(pid_t pid, const user_regs_struct& live) {
  if (const auto number = number_in_code(pid, live.rip)) return *number;
  constexpr uint64_t kNoAddress = 4096;
  const bool address = live.rdi >= kNoAddress;
  if (!address) return live.rdx >= kNoAddress && live.rsi == 0 ? SYS_clock_nanosleep : SYS_poll;
  if ((live.rsi & FUTEX_PRIVATE_FLAG) != 0 && live.rsi < 2 * FUTEX_CLOCK_REALTIME) return SYS_futex;
  return live.rsi == 0 || live.rsi >= kNoAddress ? SYS_nanosleep : SYS_poll;
}

}  // namespace

struct TimeoutPlaces::Place {
  uint64_t mark;  // tells one of ours, of this agent or an earlier one, from the vdso's own content
  uint64_t given;
  timespec time;
};

bool TimeoutPlaces::read(uint64_t at, timespec& time) const {
  return at != 0 && peek(pid_, at, time) && time.tv_sec >= 0 && time.tv_nsec >= 0 && time.tv_nsec < kNsPerSecond;
}

uint64_t TimeoutPlaces::end() {
  if (end_) return *end_;
  end_ = end_of_vdso_room(pid_);
  return *end_;
}

uint64_t TimeoutPlaces::stack_place() const {
  constexpr uint64_t kBelow = kRedZoneBytes + sizeof(Place);
  return stack_ > kBelow ? (stack_ - kBelow) / kStackAlignment * kStackAlignment : 0;
}

uint64_t TimeoutPlaces::given_at(uint64_t at) {
  const bool on_stack = stack_place() != 0 && at == stack_place() + offsetof(Place, time);
  if (!on_stack && at / kPageBytes != end() / kPageBytes) return at;
  Place place{};
  return peek(pid_, at - offsetof(Place, time), place) && place.mark == kTimeoutMark ? place.given : at;
}

uint64_t TimeoutPlaces::put(const timespec& time, uint64_t given, const std::function<bool(uint64_t)>& is_used) {
  const Place place{kTimeoutMark, given, time};
  uint64_t at = vdso_full_ ? 0 : put_in_vdso(place, is_used);
  if (at == 0) {
    vdso_full_ = true;
    at = put_on_stack(place);
  }
  return at == 0 ? 0 : at + offsetof(Place, time);
}

uint64_t TimeoutPlaces::put_in_vdso(const Place& place, const std::function<bool(uint64_t)>& is_used) {
  const Place zeros{};
  const uint64_t first = end() / kPageBytes * kPageBytes;
  for (uint64_t at = end(); at >= first + sizeof(Place);) {
    if (const size_t other = partial_call_bytes(pid_, at); other > 0) {
      at -= other;
      continue;
    }
    at -= sizeof(Place);
    if (is_used(at + offsetof(Place, time))) continue;
    Place found{};
    if (!peek(pid_, at, found)) return 0;
    if (found.mark != kTimeoutMark && std::memcmp(&found, &zeros, sizeof found) != 0) return 0;
    return write(place, at) ? at : 0;
  }
  return 0;
}

// Only where the process may write itself: not over the guard page of a stack that ends there.
uint64_t TimeoutPlaces::put_on_stack(const Place& place) const {
  const uint64_t at = stack_place();
  if (at == 0) return 0;
  const iovec from{const_cast<Place*>(&place), sizeof place}, to{reinterpret_cast<void*>(at), sizeof place};
  return ::process_vm_writev(pid_, &from, 1, &to, 1, 0) == sizeof place ? at : 0;
}

bool TimeoutPlaces::put_again(const timespec& time, uint64_t place) {
  return write({kTimeoutMark, given_at(place), time}, place - offsetof(Place, time));
}

// /proc/PID/mem may write where the process itself may not, as debuggers do for breakpoints.
bool TimeoutPlaces::write(const Place& place, uint64_t at) const {
  const UniqueFd memory(::open(("/proc/" + std::to_string(pid_) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
  return memory && ::pwrite(memory.get(), &place, sizeof place, static_cast<off_t>(at)) == sizeof place;
}

void put_time_left(TimeoutPlaces& places, uint64_t left_ns, user_regs_struct& regs) {
  unsigned long long* const timeout = timeout_address(regs);
  if (timeout == nullptr || !in_system_call(regs)) return;
  places.set_stack(regs.rsp);
  const auto taken = [&places](uint64_t at) { return places.given_at(at) != at; };
  const uint64_t place = places.put(to_timespec(std::min<uint64_t>(left_ns, kLongestNs)), *timeout, taken);
  if (place != 0) *timeout = place;
}

void make_call_again(TimeoutPlaces& places, const std::optional<uint64_t>& left_ns, const user_regs_struct& image,
                     user_regs_struct& live) {
  user_regs_struct again = image;
  const unsigned long long* const before = timeout_address(live);
  unsigned long long* const after = timeout_address(again);
  const bool ours = left_ns && before != nullptr && after != nullptr && places.given_at(*before) != *before;
  if (ours && places.put_again(to_timespec(*left_ns), *before))
    *after = *before;
  else if (left_ns)
    put_time_left(places, *left_ns, again);
  live = again;
}

InterruptedCalls::Wait& InterruptedCalls::wait_of(pid_t tid, pid_t pid, const Call& call, uint64_t timeout,
                                                  int64_t time_ns) {
  Wait& wait = waits_[tid];
  if (wait.call != call || wait.timeout != timeout)
    wait = {.call = call, .pid = pid, .timeout = timeout, .deadline_ns = monotonic_ns() + time_ns};
  return wait;
}

// epoll_wait and epoll_pwait: the time-out is a register.
void InterruptedCalls::shorten_milliseconds(pid_t tid, pid_t pid, user_regs_struct& live) {
  const int64_t given = static_cast<int32_t>(live.r10);  // negative: for ever
  if (given <= 0) return;
  Wait& wait = wait_of(tid, pid, {live.orig_rax, live.rip, live.rsp}, live.r10, given * kNsPerMs);
  // At least a millisecond less than before: the next call in a loop comes with the full time again, and is known by
  // that.
  const int64_t left = std::clamp<int64_t>((wait.deadline_ns - monotonic_ns()) / kNsPerMs, 0, given - 1);
  live.r10 = wait.timeout = static_cast<uint64_t>(left);
}

// The time-out is in memory, which is the program's and stays as it is.
std::optional<uint64_t> InterruptedCalls::left_in_memory(pid_t tid, TimeoutPlaces& places, const Call& call,
                                                         unsigned long long& image) {
  timespec time{};
  if (!places.read(image, time) || time.tv_sec > kLongestNs / kNsPerSecond) return std::nullopt;
  const Wait& wait = wait_of(tid, places.pid(), call, image, time.tv_sec * kNsPerSecond + time.tv_nsec);
  image = places.given_at(image);
  return static_cast<uint64_t>(std::max<int64_t>(wait.deadline_ns - monotonic_ns(), 0));
}

void InterruptedCalls::shorten_timespec(pid_t tid, TimeoutPlaces& places, uint64_t left_ns, uint64_t given,
                                        unsigned long long& live) {
  const pid_t pid = places.pid();
  const auto taken = [&](uint64_t at) {
    return std::any_of(waits_.begin(), waits_.end(),
                       [&](const auto& entry) {
                         return entry.first != tid && entry.second.pid == pid && entry.second.timeout == at;
                       }) ||
           (put_.count({pid, at}) == 0 && places.given_at(at) != at);
  };
  if (live == given || !places.put_again(to_timespec(left_ns), live)) {
    const uint64_t place = places.put(to_timespec(left_ns), given, taken);
    live = place != 0 ? place : given;
  }
  if (live != given) put_.emplace(pid, live);
  waits_.at(tid).timeout = live;
}

// Let go and stopped again before it could make its call once more, with a time-out of ours, which is not in the image.
std::optional<uint64_t> InterruptedCalls::before_call(TimeoutPlaces& places, const user_regs_struct& live,
                                                      user_regs_struct& image) {
  user_regs_struct call = live;
  // In this state before the kernel has come to it, else at the instruction.
  const bool to_restart = in_system_call(live) && result_of(live) <= -kRestartSys && result_of(live) >= -kRestartNoHand;
  if (!to_restart) {
    call.orig_rax = live.rax;
    call.rip += kSyscallBytes;
  }
  unsigned long long* const timeout = timeout_address(call);
  timespec time{};
  if (timeout == nullptr) return {};
  uint16_t instruction = 0;
  if (!to_restart && (!peek(places.pid(), live.rip, instruction) || instruction != kSyscallCode)) return {};
  const uint64_t given = places.given_at(*timeout);
  if (given == *timeout || !places.read(*timeout, time)) return {};
  *timeout = given;
  set_result(call, -kRestartNoHand);
  image = call;
  return static_cast<uint64_t>(time.tv_sec * kNsPerSecond + time.tv_nsec);
}

// The socket's time-out cannot be shortened for one call: past its end the call is over.
void InterruptedCalls::end_socket_wait(pid_t tid, pid_t pid, user_regs_struct& live) {
  const bool receiving = is_one_of(kReceiving, live.orig_rax);
  const int64_t time = socket_timeout_ns(pid, static_cast<int>(live.rdi), receiving);
  if (time == 0 || time > kLongestNs) return set_result(live, -kRestartNoHand);
  const Wait& wait = wait_of(tid, pid, {live.orig_rax, live.rip, live.rsp}, live.rdi, time);
  const bool over = monotonic_ns() >= wait.deadline_ns;
  const int64_t error = live.orig_rax == SYS_connect ? EINPROGRESS : EAGAIN;  // socket(7)
  set_result(live, over ? -error : -kRestartNoHand);
  if (over) waits_.erase(tid);
}

// The running kernel knows how long nanosleep, poll and futex waits still have to go (its restart block); in an image
// the call itself is made again.
std::optional<uint64_t> InterruptedCalls::go_on_after_restore(pid_t tid, TimeoutPlaces& places,
                                                              const user_regs_struct& live, user_regs_struct& image) {
  const auto known = restarted_.find(tid);
  if (result_of(live) != -kRestartBlock) {  // about to go on with it
    image.rip += kSyscallBytes;
    image.orig_rax = known->second.number;
  } else if (live.orig_rax != SYS_restart_syscall) {
    restarted_[tid] = {live.orig_rax, live.rip, live.rsp};
    waits_.erase(tid);  // a new call, though it may look like the one before
  } else {
    if (known == restarted_.end() || known->second.rip != live.rip || known->second.rsp != live.rsp)
      restarted_[tid] = {restarted_number(places.pid(), live), live.rip, live.rsp};
    image.orig_rax = restarted_.at(tid).number;
  }
  set_result(image, -kRestartNoHand);
  const Call call{image.orig_rax, image.rip, live.rsp};
  // The time they still have: these have left it in the caller's memory, if it wants to know.
  if (image.orig_rax == SYS_nanosleep && image.rsi != 0) {
    image.rdi = image.rsi;
  } else if (image.orig_rax == SYS_clock_nanosleep && image.r10 != 0) {
    image.rdx = image.r10;
  } else if (image.orig_rax == SYS_poll) {
    const int64_t milliseconds = static_cast<int32_t>(image.rdx);
    if (milliseconds <= 0) return std::nullopt;
    const Wait& wait = wait_of(tid, places.pid(), call, live.rdx, milliseconds * kNsPerMs);
    image.rdx = static_cast<uint64_t>(std::max<int64_t>((wait.deadline_ns - monotonic_ns()) / kNsPerMs, 0));
  } else if (unsigned long long* const timeout = timeout_address(image)) {
    return left_in_memory(tid, places, call, *timeout);
  }
  return std::nullopt;
}

std::optional<uint64_t> InterruptedCalls::normalise(pid_t tid, TimeoutPlaces& places, user_regs_struct& live,
                                                    user_regs_struct& image) {
  image = live;
  places.set_stack(live.rsp);
  std::optional<uint64_t> left;
  const bool failed = in_system_call(live) && result_of(live) == -EINTR;
  const bool socket = failed && (is_one_of(kReceiving, live.orig_rax) || is_one_of(kSending, live.orig_rax));
  const bool timed = failed && is_one_of(kNeverRestarted, live.orig_rax);
  const auto known = restarted_.find(tid);
  const bool restarts = (in_system_call(live) && result_of(live) == -kRestartBlock) ||
                        (known != restarted_.end() && goes_on_with(live, known->second, SYS_restart_syscall));
  const auto wait = waits_.find(tid);
  const bool again = wait != waits_.end() && goes_on_with(live, wait->second.call, wait->second.call.number);
  if (!socket && !timed && !restarts && !again) waits_.erase(tid);
  if (socket) {
    end_socket_wait(tid, places.pid(), live);
    image = live;
  } else if (timed) {
    if (live.orig_rax == SYS_epoll_wait || live.orig_rax == SYS_epoll_pwait) {
      shorten_milliseconds(tid, places.pid(), live);
      image = live;
    } else if (unsigned long long* const timeout = timeout_address(image)) {
      left = left_in_memory(tid, places, {live.orig_rax, live.rip, live.rsp}, *timeout);
      if (left) shorten_timespec(tid, places, *left, *timeout, *timeout_address(live));
    }
    set_result(live, -kRestartNoHand);
    set_result(image, -kRestartNoHand);
  }
  if (!socket && !timed && !restarts) left = before_call(places, live, image);
  if (restarts) {
    left = go_on_after_restore(tid, places, live, image);
  } else {
    restarted_.erase(tid);
  }
  return left;
}

}  // namespace icp
