// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/error.h"
#include "engine/memory/mapping_list.h"
#include "engine/memory/memory_capture.h"

namespace icp {

void check_memory(const std::vector<ProcessRef>& processes, Findings& findings) {
  for (const ProcessRef& process : processes) {
    if (process.zombie) continue;
    try {
      MappingClassifier classifier(process.pid);
      for (const SmapsEntry& entry : SmapsEntry::read(process.pid)) {
        const auto mapping = classifier.classify({entry, vm_flags(entry)});
        if (!mapping || mapping->problem.empty() || mapping->vanished) continue;
        findings.push_back({process.pid, process.comm, fmt::format("address {:x}-{:x}", entry.start, entry.end),
                            mapping->problem, mapping->remedy, false});
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kGone) throw;
    }
  }
}

}  // namespace icp
