// SPDX-License-Identifier: GPL-2.0-or-later
// Keys (keyrings(7)) that a program has for itself: they cannot be saved, since their numbers are the kernel's choice.
#pragma once

#include <map>
#include <string>

#include "engine/process/stopped_tree.h"
#include "engine/trace/call_batch.h"

namespace icp {

// The keys that /proc/keys shows, as of the construction.
class KeyList {
 public:
  struct Key {
    uint32_t uid;
    std::string type, description;
  };
  static KeyList read();
  static KeyList parse(const std::string& text);

  // Whether the user has any that are not made with each login.
  bool has_own(uint32_t uid) const;
  const Key* find(int32_t serial) const;

 private:
  std::map<int32_t, Key> keys_;
};

// Asks, in the thread, what is in its keyrings; CallBatch::deliver() then throws kRefused for what would be lost.
// Nothing for users who have no keys of their own. `keys` must live until then.
void ask_keyrings(const StoppedProcess& process, size_t index, const KeyList& keys, CallBatch& calls);

}  // namespace icp
