// SPDX-License-Identifier: GPL-2.0-or-later
// Pages of an image into stopped processes, on all processors.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"

namespace icp {

// add() every process, then run() once. Threads take windows of up to 64 MiB of memory, and read in each what they need
// of one file after the other, front to back; records near each other come with one read. They are checked before they
// go into the process: new anonymous memory by UFFDIO_COPY, which fills fresh pages that the kernel has not zeroed
// before; the rest by process_vm_writev. Where neighbours in memory lie in many files the window is put together first,
// or each page would cost a call. The agent's ptrace is not needed, so that any of its threads may do it.
class PageFill {
 public:
  // Where pages may be put by UFFDIO_COPY: mappings that are registered with this userfaultfd (missing pages) and hold
  // no page yet. It is closed when run() returns and nobody else has it.
  struct FreshMemory {
    std::shared_ptr<UniqueFd> uffd;
    std::vector<Range> ranges;  // normalised
  };
  // Pages within `ranges`. The process, whose mappings are those of `memory`, is stopped; both stay until run() has
  // returned, as does `reader`. Once a store that has pages of it. Throws kImage for pages outside of all mappings that
  // could hold them.
  void add(pid_t pid, const pb::AddressSpace& memory, const PageStoreReader& reader, const std::vector<Range>& ranges,
           FreshMemory fresh);
  // Throws the first thing that went wrong; nothing is being written any more then.
  void run();

 private:
  enum class Way : uint8_t { kFresh, kWritable, kForced };  // UFFDIO_COPY, process_vm_writev, /proc/PID/mem
  // At most a chunk, within one mapping.
  struct Run {
    uint64_t address;
    uint32_t pages;
    Way way;
    bool new_mapping;  // the first of its mapping: UFFDIO_COPY fills one at a time
    PageLocation location;
  };
  struct Process {
    pid_t pid;
    const PageStoreReader* reader;
    std::shared_ptr<UniqueFd> uffd;
    std::vector<Run> runs;  // ascending
  };
  // Runs [first, last) of a process: what a thread takes at a time.
  struct Window {
    const Process* process;
    size_t first, last;
  };
  class Worker;
  std::vector<Window> windows_of(uint64_t pages) const;

  std::list<Process> processes_;
};

}  // namespace icp
