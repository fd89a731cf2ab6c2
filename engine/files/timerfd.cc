// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/timerfd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <ctime>

#include "engine/base/error.h"
#include "engine/base/timespec.h"

namespace icp {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS of linux/timerfd.h

uint64_t nanoseconds(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * kSecond + static_cast<uint64_t>(time.tv_nsec);
}

// A wall-clock time means the same after a restart; a time on a clock that starts at boot does not, so what
// counts there is the time left.
bool keeps_wall_time(int clock, uint32_t flags) {
  return (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_ALARM) && (flags & TFD_TIMER_ABSTIME);
}

class TimerfdKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kTimerfd; }

  bool recognises(FileScan&, Description& description) const override {
    return description.target == "anon_inode:[timerfd]";
  }

  void check_one(FileScan& scan, Description& description) const override {
    if (!description.info.number("clockid")) scan.refuse(description, "timerfd of unknown clock", "close it");
  }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    // Brings the count of expirations of a periodic timer up to date, which the kernel does only when asked.
    itimerspec left{};
    if (::timerfd_gettime(scan.take(description), &left) != 0) throw_errno("cannot read a timerfd");
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    scan.refresh(description);
    pb::TimerFd& timer = *description.message->mutable_timerfd();
    timer.set_clock(static_cast<int32_t>(description.info.number("clockid").value_or(0)));
    timer.set_ticks(description.info.number("ticks").value_or(0));
    timer.set_settime_flags(static_cast<uint32_t>(description.info.number("settime flags", 8).value_or(0)));
    timer.set_interval_ns(nanoseconds(left.it_interval));
    timer.set_remaining_ns(nanoseconds(left.it_value));
    if (timer.remaining_ns() != 0 && keeps_wall_time(timer.clock(), timer.settime_flags())) {
      timer.set_expires_ns(nanoseconds(now) + timer.remaining_ns());
    }
  }

  UniqueFd create_one(RestoreContext&, const pb::OpenFile& file) const override {
    const pb::TimerFd& timer = file.timerfd();
    UniqueFd fd(::timerfd_create(timer.clock(), TFD_CLOEXEC));
    if (!fd && errno == EINVAL) throw_bad_file(file, fmt::format("a timerfd has unknown clock {}", timer.clock()));
    if (!fd) throw_errno("cannot make a timerfd of clock {}", timer.clock());
    itimerspec setting{};
    int flags = 0;
    setting.it_interval = to_timespec(timer.interval_ns());
    setting.it_value = to_timespec(timer.remaining_ns());
    if (timer.remaining_ns() != 0 && timer.expires_ns() != 0 && keeps_wall_time(timer.clock(), timer.settime_flags())) {
      setting.it_value = to_timespec(timer.expires_ns());
      flags = static_cast<int>(timer.settime_flags()) & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
    }
    if (::timerfd_settime(fd.get(), flags, &setting, nullptr) != 0) throw_errno("cannot set a timerfd");
    if (const uint64_t ticks = timer.ticks(); ticks != 0 && ::ioctl(fd.get(), kSetTicks, &ticks) != 0) {
      throw_errno("cannot set the expirations of a timerfd (a kernel without CONFIG_CHECKPOINT_RESTORE?)");
    }
    return fd;
  }
};

}  // namespace

const FileKind& timerfd_kind() {
  static const TimerfdKind kind;
  return kind;
}

}  // namespace icp
