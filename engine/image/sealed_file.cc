// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/image/sealed_file.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "engine/base/error.h"
#include "engine/image/image_files.h"
#include "engine/image/image_layout.h"
#include "engine/image/wire_scan.h"

namespace icp {
namespace {

struct SealHeader {
  char magic[8];
  uint32_t format;
  uint32_t name_hash;
  uint64_t bytes;
  uint64_t xxh3;
};
static_assert(sizeof(SealHeader) == 32);

constexpr char kMagic[8] = {'I', 'C', 'P', 'S', 'E', 'A', 'L', '\n'};

uint32_t name_hash(std::string_view name) { return static_cast<uint32_t>(hash_of(name)); }

}  // namespace

uint64_t hash_of(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string seal(std::string_view name, std::string_view payload, uint32_t format) {
  SealHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.format = format;
  header.name_hash = name_hash(name);
  header.bytes = payload.size();
  header.xxh3 = hash_of(payload);
  std::string file(sizeof header + payload.size(), '\0');
  std::memcpy(file.data(), &header, sizeof header);
  std::memcpy(file.data() + sizeof header, payload.data(), payload.size());
  return file;
}

void unseal(int fd, std::string_view name, uint64_t limit, const std::string& path, google::protobuf::Message& message,
            uint64_t* whole_xxh3) {
  const uint64_t size = file_size(fd, path);
  SealHeader header{};
  if (size < sizeof header) throw_error(ErrorKind::kImage, "{} is cut: {} bytes", path, size);
  const uint64_t bytes = size - sizeof header;
  // Before anything is allocated.
  if (bytes > limit) throw_error(ErrorKind::kImage, "{} is too large: {} bytes of at most {}", path, bytes, limit);
  read_at(fd, &header, sizeof header, 0, path);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    throw_error(ErrorKind::kImage, "{} is not a file of an image", path);
  }
  if (header.format < kImageFormat || header.format > kDirectoriesFormat) {
    throw_error(ErrorKind::kImage, "{} has image format {}, this program reads formats {} to {}", path, header.format,
                kImageFormat, kDirectoriesFormat);
  }
  if (header.name_hash != name_hash(name)) throw_error(ErrorKind::kImage, "{} is another file, renamed", path);
  if (header.bytes != bytes) {
    throw_error(ErrorKind::kImage, "{} is damaged: it should have {} bytes after its header, not {}", path,
                header.bytes, bytes);
  }
  // Not initialised: pages that nothing is read into take no memory.
  const std::unique_ptr<uint8_t[]> whole(new uint8_t[size]);
  std::memcpy(whole.get(), &header, sizeof header);
  uint8_t* const payload = whole.get() + sizeof header;
  uint64_t got = 0;
  const auto have = [&](uint64_t wanted) {
    if (wanted > got) read_at(fd, payload + got, wanted - got, sizeof header + got, path);
    got = std::max(got, wanted);
  };
  if (const auto excess = find_excess(*message.GetDescriptor(), payload, bytes, have)) {
    throw_error(ErrorKind::kImage, "{} is not taken: its {} bytes stand for {}", path, bytes, *excess);
  }
  have(bytes);
  if (XXH3_64bits(payload, bytes) != header.xxh3) {
    throw_error(ErrorKind::kImage, "{} is damaged: its checksum is wrong", path);
  }
  if (whole_xxh3 != nullptr) *whole_xxh3 = XXH3_64bits(whole.get(), size);
  if (!message.ParseFromArray(payload, static_cast<int>(bytes))) {
    throw_error(ErrorKind::kImage, "{} cannot be decoded", path);
  }
}

}  // namespace icp
