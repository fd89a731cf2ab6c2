// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/base/error.h"
#include "engine/base/parallel.h"
#include "engine/memory/mapping_list.h"
#include "engine/memory/memory_capture.h"

namespace icp {

// smaps walks the page tables: a few milliseconds for each gigabyte.
void check_memory(const std::vector<ProcessRef>& processes, Findings& findings,
                  const std::function<MappingCache*(const ProcessRef&)>& cache_of) {
  std::vector<Findings> found(processes.size());
  parallel_for(processes.size(), processes.size(), [&]() -> ItemWork {
    return [&](size_t i) {
      const ProcessRef& process = processes[i];
      if (process.zombie) return;
      try {
        MappingClassifier classifier(process.pid);
        MappingCache own, *cache = cache_of ? cache_of(process) : nullptr;
        for (const RawMapping& raw : (cache != nullptr ? *cache : own).refresh(process.pid)) {
          const auto mapping = classifier.classify(raw);
          if (!mapping || mapping->problem.empty() || mapping->vanished) continue;
          found[i].push_back({process.pid, process.comm, fmt::format("address {:x}-{:x}", raw.maps.start, raw.maps.end),
                              mapping->problem, mapping->hint, false});
        }
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kGone) throw;
      }
    };
  });
  for (const Findings& some : found) findings.insert(findings.end(), some.begin(), some.end());
}

}  // namespace icp
