// SPDX-License-Identifier: GPL-2.0-or-later
// libFuzzer: files of an image, with their checksums made right, since no fuzzer guesses one. The first byte says
// which: 0 manifest, 1 state, 2 page index, 3 page file, 4 leaf of an index, 5 to 7 table of that level less 4.
#include <google/protobuf/stubs/common.h>
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "engine/image/image_layout.h"
#include "engine/image/page_index_codec.h"
#include "engine/image/sealed_file.h"
#include "tests/fuzz/inputs.h"
#include "tests/unit/image_test_support.h"

namespace {

using namespace icp;

const std::string kStore = "task_mm_42";

// An image of one version with some pages, of which one file at a time is replaced.
class Image {
 public:
  explicit Image(Compression compression = Compression::kNone) {
    ImageDir image = ImageDir::create(path_, test::own_identity(), "n0");
    VersionWriter version = image.begin_version();
    version.set_compression(compression);
    pb::Capsule capsule;
    pb::Process& process = *capsule.add_processes();
    process.set_pid(42);
    process.mutable_memory()->set_index(kStore);
    version.write_sealed(std::string(kStateName), capsule.SerializeAsString());
    PageIndex index;
    PageStoreWriter store(version, kStore, index);
    put(store, 0x400000, 3);
    put(store, 0x7f0000000000, 1);
    store.finish();
    version.commit({});
    manifest_ = image.open_version(1).manifest();
  }

  std::string file(const std::string& name) const { return test::read_file(dir_ + name); }

  // Puts `content` in the place of a file and reads what there is.
  void read_with(const std::string& name, const std::string& content) {
    const std::string old = file(name), own_manifest = file(std::string(kManifestName));
    pb::Manifest manifest = manifest_;
    for (pb::FileEntry& entry : *manifest.mutable_files()) {
      if (entry.name() != name) continue;
      entry.set_bytes(content.size());
      if (entry.xxh3() != 0) entry.set_xxh3(hash_of(content));
    }
    test::write_file(dir_ + name, content);
    if (name != kManifestName)
      test::write_file(dir_ + std::string(kManifestName), seal(kManifestName, manifest.SerializeAsString()));
    read();
    test::write_file(dir_ + name, old);
    test::write_file(dir_ + std::string(kManifestName), own_manifest);
  }

 private:
  static void put(PageStoreWriter& store, uint64_t address, uint64_t pages) {
    const std::string bytes(pages * kPageBytes, 'A');
    store.put(address, std::as_bytes(std::span(bytes)), true);
  }

  void read() const {
    try {
      const ImageDir image = ImageDir::open(path_, test::own_identity());
      static_cast<void>(image.versions());
      static_cast<void>(image.verify(1));
      const VersionReader version = image.open_version(1);
      static_cast<void>(version.read_state());
      PageStoreReader reader(version, kStore);
      std::vector<std::byte> page(kPageBytes);
      reader.index().for_each_run([&](uint64_t, uint64_t, PageLocation location) {
        try {
          reader.read(location, 1, page);
        } catch (const Error&) {
        }
      });
    } catch (const Error&) {
    }
  }

  const test::TempDir temp_;
  const std::string path_ = temp_.path() + "/7.0", dir_ = path_ + "/v000001/n0/";
  pb::Manifest manifest_;
};

Image& image() {
#if GOOGLE_PROTOBUF_VERSION < 4022000
  google::protobuf::SetLogHandler(nullptr);  // a line for each text that is no UTF-8
#endif
  static Image made;
  return made;
}

std::string index_name() { return index_file_name(kStore, 1); }
std::string page_name() { return page_file_name(kStore, 1); }

// Sizes of what comes before and after the tables of an index file, and of a page file's trailer.
constexpr size_t kIndexHeader = 32, kIndexTrailer = 48, kPageTrailer = 56;

void hash_into(std::string& text, size_t from, size_t bytes) {
  const uint64_t hash = XXH3_64bits(text.data() + from, bytes);
  std::memcpy(text.data() + from + bytes, &hash, sizeof hash);
}

void add_checksum(std::string& text) {
  const auto sum = static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
  text.append(reinterpret_cast<const char*>(&sum), sizeof sum);
}

template <typename Number>
Number number_at(const std::string& text, size_t at) {
  Number number;
  std::memcpy(&number, text.data() + at, sizeof number);
  return number;
}

void block(uint8_t kind, std::string text) {
  add_checksum(text);
  const std::span bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  try {
    if (kind > 4) return static_cast<void>(decode_table(bytes, kind - 4, 1000));
    IndexLeaf leaf;
    decode_leaf(bytes, 1000, leaf);
    std::vector<uint8_t> encoded;
    encode_leaf(leaf, 1000, encoded);  // what was taken can be written again, and is the same
    IndexLeaf again;
    decode_leaf(encoded, 1000, again);
    if (again.entries != leaf.entries) __builtin_trap();
  } catch (const DecodeError&) {
  }
}

// An index file with tables of the fuzzer's: numbers of pages and tables for the trailer, two bytes each, then tables,
// each with its length in two bytes before it and its checksum added here; the last one is the root.
void index_file(const std::string& text) {
  if (text.size() < 4) return;
  static const std::string whole = image().file(index_name());
  std::string file = whole.substr(0, kIndexHeader), trailer = whole.substr(whole.size() - kIndexTrailer);
  uint64_t root_offset = 0;
  uint32_t root_length = 0;
  for (size_t at = 4; at + 2 <= text.size();) {
    std::string table = text.substr(at + 2, number_at<uint16_t>(text, at));
    at += 2 + table.size();
    add_checksum(table);
    root_offset = file.size();
    root_length = static_cast<uint32_t>(table.size());
    file += table;
  }
  const uint64_t pages = number_at<uint16_t>(text, 0), tables = number_at<uint16_t>(text, 2);
  std::memcpy(trailer.data() + 12, &root_length, sizeof root_length);
  std::memcpy(trailer.data() + 16, &root_offset, sizeof root_offset);
  std::memcpy(trailer.data() + 24, &pages, sizeof pages);
  std::memcpy(trailer.data() + 32, &tables, sizeof tables);
  hash_into(trailer, 0, kIndexTrailer - 8);
  image().read_with(index_name(), file + trailer);
}

// A page file whose bytes are the fuzzer's but for the hashes over header, table and trailer.
void page_file(std::string text) {
  if (text.size() < kPageBytes + kPageTrailer) return;
  hash_into(text, 0, 24);
  const size_t trailer = text.size() - kPageTrailer;
  const uint64_t records = number_at<uint64_t>(text, trailer + 24);
  const bool packed = number_at<uint32_t>(text, trailer + 32) != 0;
  if (records < 1 << 20) {
    const uint64_t table = (records + 4095) / 4096 * 8 + (packed ? (records + 15) / 16 * 4 : 0);
    if (table < trailer) {
      const uint64_t hash = XXH3_64bits(text.data() + trailer - table, table);
      std::memcpy(text.data() + trailer + 40, &hash, sizeof hash);
    }
  }
  hash_into(text, trailer, kPageTrailer - 8);
  image().read_with(page_name(), text);
}

// What index_file() takes, of a real file.
std::string index_seed() {
  const std::string whole = image().file(index_name());
  const size_t trailer = whole.size() - kIndexTrailer;
  std::map<uint64_t, uint32_t> found;
  const std::function<void(uint64_t, uint32_t, int)> walk = [&](uint64_t offset, uint32_t length, int level) {
    found[offset] = length;
    if (level == 0) return;
    const std::span block(reinterpret_cast<const uint8_t*>(whole.data()) + offset, length);
    for (const ChildReference& child : decode_table(block, level, 1))
      walk(child.stored.offset, child.stored.length, level - 1);
  };
  walk(number_at<uint64_t>(whole, trailer + 16), number_at<uint32_t>(whole, trailer + 12), kIndexLevels - 1);
  std::string seed;
  const auto add = [&seed](uint64_t number) {
    seed += static_cast<char>(number);
    seed += static_cast<char>(number >> 8);
  };
  add(number_at<uint64_t>(whole, trailer + 24));
  add(number_at<uint64_t>(whole, trailer + 32));
  for (const auto& [offset, length] : found) {
    add(length - 4);
    seed += whole.substr(offset, length - 4);
  }
  return seed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto kind = static_cast<uint8_t>(data[0] % 8);
  if (kind == 0) {
    image().read_with(std::string(kManifestName), seal(kManifestName, text));
  } else if (kind == 1) {
    image().read_with(std::string(kStateName), seal(kStateName, text));
  } else if (kind == 2) {
    index_file(text);
  } else if (kind == 3) {
    page_file(text);
  } else {
    block(kind, text);
  }
  return 0;
}

std::map<std::string, std::string> fuzz_seeds() {
  std::map<std::string, std::string> all;
  all["manifest"] = std::string(1, '\0') + image().file(std::string(kManifestName)).substr(32);
  all["state"] = '\1' + image().file(std::string(kStateName)).substr(32);
  all["index"] = '\2' + index_seed();
  all["pages"] = '\3' + image().file(page_name());
  all["pages_zstd"] = '\3' + Image(Compression::kZstd).file(page_name());
  all["pages_lz4"] = '\3' + Image(Compression::kLz4).file(page_name());
  const std::string index = all["index"];
  for (size_t at = 5; at + 2 <= index.size();) {
    const std::string table = index.substr(at + 2, number_at<uint16_t>(index, at));
    at += 2 + table.size();
    if (table[0] <= 3) all["table" + std::to_string(table[0])] = static_cast<char>(4 + table[0]) + table;
  }
  for (const size_t tag : {size_t{kTagLeafRuns}, size_t{kTagLeafBytes}, size_t{kTagLeafPlanes}}) {
    IndexLeaf leaf;
    for (unsigned i = 0; i < kTableEntries; i++) {
      const uint32_t version = tag == kTagLeafRuns ? 1000 : 1 + (i * 7919) % 200;
      leaf.entries[i] = pack({version, tag == kTagLeafPlanes ? i * 104729 % 9999 : i});
      leaf.used++;
    }
    std::vector<uint8_t> bytes;
    encode_leaf(leaf, 1000, bytes);
    all["leaf" + std::to_string(tag)] = '\4' + std::string(bytes.begin(), bytes.end() - 4);
  }
  return all;
}
