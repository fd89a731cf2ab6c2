// SPDX-License-Identifier: GPL-2.0-or-later
// libFuzzer: texts of /proc, whose names are users' to choose, and messages of tasks, of proxies and of workers to
// their broker. The first byte says which.
#include <array>
#include <cstdint>
#include <string>

#include "coordinator/protocol/packet.h"
#include "engine/base/printable.h"
#include "engine/base/procfs.h"
#include "engine/broker/message.h"
#include "engine/broker/watched_paths.h"
#include "engine/files/fd_info.h"
#include "engine/sysv/ipc_list.h"
#include "tests/fuzz/inputs.h"

namespace {

using namespace icp;

void check(bool right) {
  if (!right) __builtin_trap();
}

void packet(const std::string& text) {
  const auto packet = protocol::decode(text);
  if (!packet) return;
  for (const auto& [key, value] : packet->fields) static_cast<void>(packet->number(key));
  const auto again = protocol::decode(protocol::encode(*packet));
  check(again && again->type == packet->type && again->fields == packet->fields);
  if (const auto facts = protocol::StepFacts::from_packet(*packet)) static_cast<void>(facts->to_packet());
}

void fd_info(const std::string& text) {
  const FdInfo info = FdInfo::parse(text);
  static_cast<void>(info.epoll_lines());
  static_cast<void>(info.field("eventfd-count"));
  static_cast<void>(info.number("mnt_id"));
}

// A line that the broker reads of a descriptor, and one of mountinfo.
void watched(const std::string& text) {
  privileged::Watch watch;
  if (privileged::parse_watch(text, watch)) check(watch.handle.header.handle_bytes <= watch.handle.bytes.size());
  for (const MountEntry& mount : MountEntry::parse(text)) check(mount.point.size() <= text.size());
  for (const CgroupEntry& entry : CgroupEntry::parse(text)) check(entry.path.size() <= text.size());
}

// The first half says what is asked for of the second.
void message(const std::string& text) {
  Message message;
  message.bytes = text.substr(text.size() / 2);
  MessageReader reader(message);
  try {
    for (size_t i = 0; i < text.size() / 2; i++) {
      switch (text[i] & 3) {
        case 0:
          static_cast<void>(reader.take<uint8_t>());
          break;
        case 1:
          static_cast<void>(reader.take<std::array<uint32_t, 7>>());
          break;
        case 2:
          static_cast<void>(std::string(reader.take_text()));
          break;
        default:
          static_cast<void>(reader.take_all<uint64_t>());
      }
    }
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 9) {
    case 0:
      ProcStatus::parse(text);
      break;
    case 1:
      ProcStat::parse(text);
      break;
    case 2:
      for (const SmapsEntry& entry : SmapsEntry::parse(text)) static_cast<void>(entry.has("sd"));
      break;
    case 3:
      fd_info(text);
      break;
    case 4:
      for (const IpcKind kind : {IpcKind::kShm, IpcKind::kSem, IpcKind::kMsg}) {
        for (const IpcObject& object : parse_ipc_list(kind, text)) describe(object);
      }
      break;
    case 5:
      packet(text);
      break;
    case 6:
      watched(text);
      break;
    case 7:
      message(text);
      break;
    default:
      check(printable(printable(text)) == printable(text) &&
            printable(text).find_first_of("\n\x1b") == std::string::npos);
  }
  return 0;
}

std::map<std::string, std::string> fuzz_seeds() {
  std::map<std::string, std::string> all;
  const auto add = [&all](const char* name, char kind, const std::string& text) { all[name] = kind + text; };
  add("status", 0,
      "Name:\tmgs\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t71\nPid:\t71\nPPid:\t1\nTracerPid:\t0\n"
      "Uid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 10 \nNStgid:\t71\t3\nNSpid:\t71\t3\nNSpgid:\t71\t3\n"
      "NSsid:\t71\t3\nVmLck:\t0 kB\nVmRSS:\t1152 kB\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n"
      "SigBlk:\t0000000000000200\nSigIgn:\t0000000000001000\nSigCgt:\t00000001a0016623\nCapInh:\t0000000000000000\n"
      "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n"
      "NoNewPrivs:\t1\nSeccomp:\t0\nSeccomp_filters:\t0\n");
  add("stat", 1,
      "71 (mgs) S 1 71 71 0 -1 4194560 5211 0 0 0 2 3 0 0 20 0 4 0 9321 9023488 1152 18446744073709551615 "
      "94349385678848 94349385684121 140724525441600 0 0 0 0 4096 16387 1 0 0 17 1 0 0 0 0 0 94349385699120 "
      "94349385699968 94349717520384 140724525445061 140724525445090 140724525445090 140724525449185 0\n");
  add("stat_name", 1, "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0\n");
  add("smaps", 2,
      "7f00-7f01 rw-p 00000000 fe:01 12     /x (deleted)\nSize: 4 kB\nVmFlags: rd wr mr mw me ac sd \n"
      "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]\n");
  add("fdinfo", 3, "pos:\t0\nflags:\t02100002\nmnt_id:\t15\nlock:\t1: POSIX  ADVISORY  WRITE 7 fe:01:12 0 EOF\n");
  add("epoll", 3, "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:  5  pos:0 ino:61 sdev:f\n");
  add("ipc", 4, std::string(4, 'h') + "\n 1234 3 600 1048576 7 7 0 1000 1000 1000 1000 1 2 3 0 0\n");
  protocol::StepFacts facts;
  facts.job = 7;
  facts.groups = {1, 2};
  facts.node = "n1";
  add("hello", 5, protocol::encode(facts.to_packet()));
  add("ready", 5, protocol::encode(protocol::Packet(protocol::kReady).set("cwd", "/x").set_number("rank", -1)));
  add("watch", 6,
      "inotify wd:5 ino:1 sdev:fe00001 mask:4000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 "
      "f_handle:4e015100b8c2d7e3\n");
  add("mounts", 6, "36 35 254:1 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n");
  add("message", 7,
      std::string("\3\2\1\0", 4) + std::string(7, '\1') + std::string("\x8\0\0\0\0\0\0\0", 8) + std::string(60, 'a'));
  add("print", 8, "a\x1b[2J\xc2\x9b\xe2\x80\xa8\n");
  return all;
}
