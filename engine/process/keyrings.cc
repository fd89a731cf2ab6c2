// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/process/keyrings.h"

#include <linux/keyctl.h>
#include <sys/syscall.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string_view>

#include "engine/base/error.h"

namespace icp {
namespace {

constexpr size_t kMostKeys = 64;  // of a keyring
using Serials = std::array<int32_t, kMostKeys>;

// Made by the kernel, PAM and systemd for whoever logs in, and for the step that a restart is.
bool is_of_login(const KeyList::Key& key) {
  const std::string_view name = key.description;
  if (key.type == "keyring") return name.starts_with("_uid") || name.starts_with("_persistent") || name == "_ses";
  return name == "invocation_id";
}

[[noreturn]] void refuse(const StoppedProcess& process, const std::string& what) {
  throw Error(ErrorKind::kRefused, fmt::format("process {} ({}) has {}", process.ref.pid, process.ref.comm, what), 0,
              "keys cannot be saved: let the program do without keyctl(2) and add_key(2)");
}

void ask_content(const StoppedProcess& process, const KeyList& keys, CallBatch& calls, int keyring, const char* name) {
  calls.ask<Serials>(
      nullptr, SYS_keyctl,
      {KEYCTL_READ, static_cast<uint64_t>(static_cast<int64_t>(keyring)), CallBatch::kAnswer, sizeof(Serials), 0},
      [&process, &keys, name](const Serials& serials) {
        for (const int32_t serial : serials) {
          if (serial == 0) continue;
          const KeyList::Key* key = keys.find(serial);
          if (key == nullptr) refuse(process, fmt::format("a key in its {} keyring", name));
          if (!is_of_login(*key)) refuse(process, fmt::format("the key {} in its {} keyring", key->description, name));
        }
      });
}

}  // namespace

KeyList KeyList::read() {
  std::ifstream file("/proc/keys");  // none where the kernel has no keys
  std::ostringstream text;
  text << file.rdbuf();
  return parse(text.str());
}

// proc_keys_show() of security/keys/proc.c: serial, flags, usage, time left, permissions, uid, gid, type, description
// and, after a colon, what its type has to say.
KeyList KeyList::parse(const std::string& text) {
  KeyList list;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    unsigned serial = 0, uid = 0;
    char type[32] = "";
    int at = 0;
    if (std::sscanf(line.c_str(), "%x %*s %*s %*s %*s %u %*s %31s %n", &serial, &uid, type, &at) < 3) continue;
    std::string description = line.substr(static_cast<size_t>(at));
    if (const size_t colon = description.rfind(':'); colon != std::string::npos) description.erase(colon);
    list.keys_[static_cast<int32_t>(serial)] = {uid, type, description};
  }
  return list;
}

bool KeyList::has_own(uint32_t uid) const {
  for (const auto& [serial, key] : keys_)
    if (key.uid == uid && !is_of_login(key)) return true;
  return false;
}

const KeyList::Key* KeyList::find(int32_t serial) const {
  const auto found = keys_.find(serial);
  return found == keys_.end() ? nullptr : &found->second;
}

void ask_keyrings(const StoppedProcess& process, size_t index, const KeyList& keys, CallBatch& calls) {
  const auto own = process.own.find(index);
  const ProcStatus& status = own != process.own.end() && own->second.status ? *own->second.status : process.status;
  if (!keys.has_own(status.uid[0])) return;
  ask_content(process, keys, calls, KEY_SPEC_THREAD_KEYRING, "thread");
  ask_content(process, keys, calls, KEY_SPEC_PROCESS_KEYRING, "process");
  ask_content(process, keys, calls, KEY_SPEC_SESSION_KEYRING, "session");
  calls.call(nullptr, SYS_keyctl,
             {KEYCTL_GET_KEYRING_ID, static_cast<uint64_t>(static_cast<int64_t>(KEY_SPEC_SESSION_KEYRING)), 0, 0, 0},
             [&process, &keys](int64_t serial) {
               const KeyList::Key* key = keys.find(static_cast<int32_t>(serial));
               if (key != nullptr && !is_of_login(*key))
                 refuse(process, fmt::format("joined the session keyring {}", key->description));
             });
}

}  // namespace icp
