// SPDX-License-Identifier: GPL-2.0-or-later
// Memory that comes after the processes run: a page when it is first touched, the rest behind their backs.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"
#include "engine/trace/remote_process.h"

namespace icp {

// Whether this kernel and our rights allow it: a userfaultfd that also sees faults of the kernel, and forks.
bool lazy_fill_available();

// One thread that serves the missing pages of a capsule's processes (userfaultfd) from their page stores and meanwhile
// reads all of them, in the order of the files. Forks, moves, discards and unmappings by the processes are followed.
// When the last page is there it closes its descriptors and the processes are as if restored in one go.
//
// A page that cannot be read, because the image is damaged, ends the capsule: nothing true could be put in its place.
// So does the end of the agent before the last page is there, however it ends: a small process waits for that (see
// guard() in the .cc file), for missing pages would read as zeros once nobody serves them.
//
// Members are called by the agent's thread.
class LazyFill {
 public:
  // `init`: the capsule's; it is killed when a page cannot be had.
  explicit LazyFill(pid_t init);
  // Kills the capsule unless all pages are there.
  ~LazyFill();

  // Takes over parts of a stopped process's private anonymous memory, mapped and untouched. From now on they may be
  // touched. `reader` knows what belongs there.
  void add(RemoteProcess& process, PageStoreReader reader, std::vector<Range> parts);
  bool done() const;
  // Until the last page is there. Throws what went wrong, if anything did.
  void wait();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace icp
