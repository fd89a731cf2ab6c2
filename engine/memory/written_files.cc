// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/memory/written_files.h"

namespace icp {

WrittenFiles::WrittenFiles(const pb::Capsule& capsule) {
  std::map<uint32_t, std::vector<Range>> ranges;  // by object
  for (const pb::Process& process : capsule.processes())
    for (const pb::Mapping& mapping : process.memory().mappings())
      if (mapping.kind() == pb::Mapping::OBJECT)
        ranges[mapping.object()].push_back({mapping.offset(), mapping.offset() + (mapping.end() - mapping.start())});
  for (const pb::OpenFile& file : capsule.files())
    if (file.has_regular() && file.regular().object() != 0) ranges[file.regular().object()].push_back({0, UINT64_MAX});
  for (const pb::MemoryObject& object : capsule.objects()) {
    if (object.kind() != pb::MemoryObject::MAPPED_FILE) continue;
    normalise(ranges[object.id()]);
    files_[{object.dev(), object.ino()}] = {&object, std::move(ranges[object.id()])};
  }
}

const pb::MemoryObject* WrittenFiles::find(const pb::Mapping& mapping) const {
  const auto found = files_.find({mapping.file().dev(), mapping.file().ino()});
  if (found == files_.end()) return nullptr;
  const uint64_t end = mapping.offset() + (mapping.end() - mapping.start());
  for (const Range& range : found->second.ranges)
    if (range.start <= mapping.offset() && end <= range.end) return found->second.object;
  return nullptr;
}

}  // namespace icp
