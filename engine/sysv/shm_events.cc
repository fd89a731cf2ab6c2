// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/sysv/shm_events.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <time.h>

#include "engine/base/error.h"
#include "kmod/uapi/icp_track.h"

namespace icp {
namespace {

constexpr size_t kEvents = 512;  // asked for at a time

// What to add to CLOCK_BOOTTIME for the time of day.
int64_t boot_offset_ns() {
  timespec real{}, boot{};
  ::clock_gettime(CLOCK_REALTIME, &real);
  ::clock_gettime(CLOCK_BOOTTIME, &boot);
  return (real.tv_sec - boot.tv_sec) * 1'000'000'000 + (real.tv_nsec - boot.tv_nsec);
}

}  // namespace

std::optional<ShmEvents> ShmEvents::watch() {
  UniqueFd device(::open(ICP_TRACK_DEVICE, O_RDWR | O_CLOEXEC));
  icp_hello hello{};
  hello.abi = ICP_TRACK_ABI;
  if (!device || ::ioctl(device.get(), ICP_IOC_HELLO, &hello) != 0) return std::nullopt;
  if ((hello.features & ICP_FEATURE_SHM_CREATE) == 0 || (hello.features & ICP_FEATURE_BROKEN) != 0) return std::nullopt;
  if (::ioctl(device.get(), ICP_IOC_SHM_WATCH) != 0) return std::nullopt;
  return ShmEvents(std::move(device));
}

std::vector<ShmCreation> ShmEvents::read(uint64_t& lost) {
  std::vector<ShmCreation> creations;
  std::vector<icp_shm_event> events(kEvents);
  icp_shm_read arg{};
  do {
    arg = {};
    arg.events = reinterpret_cast<uint64_t>(events.data());
    arg.capacity = kEvents;
    if (::ioctl(device_.get(), ICP_IOC_SHM_READ, &arg) != 0)
      throw_errno("icp_track does not tell which shared memory segments were made");
    for (uint32_t i = 0; i < arg.count; ++i) {
      const icp_shm_event& event = events[i];
      if (event.kind != ICP_SHM_CREATED) continue;
      ShmCreation made;
      made.ipc_namespace = event.ipc_inum;
      made.id = event.id;
      made.key = event.key;
      made.creator = event.pid;
      made.time = (static_cast<int64_t>(event.time_ns) + boot_offset_ns()) / 1'000'000'000;
      made.cgroup = event.cgroup;
      made.cgroup_freezer = event.cgroup_freezer;
      creations.push_back(made);
    }
  } while (arg.count == kEvents);
  lost = arg.lost - lost_;
  lost_ = arg.lost;
  return creations;
}

}  // namespace icp
