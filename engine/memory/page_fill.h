// SPDX-License-Identifier: GPL-2.0-or-later
// Pages of an image into stopped processes, on all processors.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/image.pb.h"
#include "engine/image/page_store.h"
#include "engine/memory/page_ranges.h"

namespace icp {

// add() every process, then run() once. Pages are read in the order of their files, each file once and front to back
// but for its share among the threads; those that lie near each other in it come with one read. What they are is
// checked before they go into the process: new anonymous memory by UFFDIO_COPY, which fills fresh pages that the kernel
// has not zeroed before; the rest by process_vm_writev. The agent's ptrace is not needed, so that any of its threads
// may do it.
class PageFill {
 public:
  // Where pages may be put by UFFDIO_COPY: mappings that are registered with this userfaultfd (missing pages) and hold
  // no page yet. It is closed when run() returns.
  struct FreshMemory {
    UniqueFd uffd;
    std::vector<Range> ranges;  // normalised
  };
  // Pages within `ranges`. The process, whose mappings are those of `memory`, is stopped; both stay until run() has
  // returned, as does `reader`. Throws kImage for pages outside of all mappings that could hold them.
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
    PageLocation location;
  };
  struct Process {
    pid_t pid;
    const PageStoreReader* reader;
    UniqueFd uffd;
    std::vector<Run> runs;  // in the order of the files
  };
  // Runs [first, last) of a process: what a thread takes at a time.
  struct Part {
    const Process* process;
    size_t first, last;
  };
  class Worker;

  std::list<Process> processes_;
  std::vector<Part> parts_;
};

}  // namespace icp
