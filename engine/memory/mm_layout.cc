// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/mm_layout.h"

#include <linux/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <span>

#include "engine/base/error.h"
#include "engine/base/procfs.h"
#include "engine/memory/mapping_list.h"

namespace icp {
namespace {

constexpr uint64_t kUserEnd = 0x7ffffffff000;  // TASK_SIZE, 4-level page tables
constexpr uint64_t kUserStart = 0x1000;
constexpr size_t kMaxAuxv = 4096;  // bytes; the kernel's saved_auxv is a few hundred

}  // namespace

void capture_mm_layout(StoppedProcess& process, pb::AddressSpace& out) {
  const pid_t pid = process.ref.pid;
  const ProcStat& stat = process.stat;
  out.set_start_code(stat.start_code);
  out.set_end_code(stat.end_code);
  out.set_start_data(stat.start_data);
  out.set_end_data(stat.end_data);
  out.set_start_brk(stat.start_brk);
  if (out.brk() == 0) out.set_brk(static_cast<uint64_t>(process.remote->call("brk", SYS_brk, {0})));
  out.set_start_stack(stat.start_stack);
  out.set_arg_start(stat.arg_start);
  out.set_arg_end(stat.arg_end);
  out.set_env_start(stat.env_start);
  out.set_env_end(stat.env_end);
  out.set_auxv(read_proc(pid, "auxv"));

  struct stat file {};
  if (::stat(fmt::format("/proc/{}/exe", pid).c_str(), &file) != 0) throw_errno("cannot look at /proc/{}/exe", pid);
  fill_identity(file, read_proc_link(pid, "exe"), *out.mutable_exe());
}

void check_mm_layout(const pb::AddressSpace& memory) {
  const auto check = [](bool good, const char* what) {
    if (!good) throw_error(ErrorKind::kImage, "damaged image: impossible {} in an address space", what);
  };
  for (const uint64_t address : {memory.start_code(), memory.end_code(), memory.start_data(), memory.end_data(),
                                 memory.start_brk(), memory.brk(), memory.start_stack(), memory.arg_start(),
                                 memory.arg_end(), memory.env_start(), memory.env_end()}) {
    check(address >= kUserStart && address < kUserEnd, "address of code, data, heap or stack");
  }
  check(memory.start_code() < memory.end_code() && memory.start_data() <= memory.end_data() &&
            memory.start_brk() <= memory.brk() && memory.arg_start() <= memory.arg_end() &&
            memory.env_start() <= memory.env_end(),
        "order of code, data, heap or stack");
  check(memory.auxv().size() <= kMaxAuxv && memory.auxv().size() % 16 == 0, "auxiliary vector");
}

void restore_mm_layout(RemoteProcess& remote, const pb::AddressSpace& memory, int exe_fd) {
  remote.reset_scratch();
  prctl_mm_map map{};
  map.start_code = memory.start_code();
  map.end_code = memory.end_code();
  map.start_data = memory.start_data();
  map.end_data = memory.end_data();
  map.start_brk = memory.start_brk();
  map.brk = memory.brk();
  map.start_stack = memory.start_stack();
  map.arg_start = memory.arg_start();
  map.arg_end = memory.arg_end();
  map.env_start = memory.env_start();
  map.env_end = memory.env_end();
  map.auxv = reinterpret_cast<__u64*>(remote.stage(std::as_bytes(std::span(memory.auxv()))).value);
  map.auxv_size = static_cast<__u32>(memory.auxv().size());
  map.exe_fd = static_cast<__u32>(exe_fd);
  const RemoteAddr at = remote.stage_value(map);
  remote.call("prctl(PR_SET_MM_MAP)", SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, at.value, sizeof map, 0});
}

}  // namespace icp
