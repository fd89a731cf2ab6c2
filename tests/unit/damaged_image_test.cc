// SPDX-License-Identifier: GPL-2.0-or-later
// Images that are damaged or made to do harm: one clear error each, and nothing else happens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>

#include "engine/image/byte_codec.h"
#include "engine/image/image_layout.h"
#include "engine/image/page_index_codec.h"
#include "engine/image/sealed_file.h"
#include "tests/unit/image_test_support.h"

namespace icp {
namespace {

using test::kPage;
using test::page_of;
using test::read_file;
using test::write_file;

constexpr char kFirst[] = "task_mm_100";
constexpr char kSecond[] = "task_mm_200";
constexpr uint64_t kBase = 0x7f0000000000;

// Three versions of two stores; version 3 refers to all of them.
class Image {
 public:
  explicit Image(Compression compression = Compression::kNone) {
    ImageDir image = ImageDir::create(root(), test::own_identity(), "n0");
    PageIndex first, second;
    for (uint32_t number = 1; number <= 3; ++number) {
      VersionWriter version = image.begin_version();
      version.set_compression(compression);
      pb::Capsule capsule;
      write_store(version, first, kFirst, number, capsule);
      write_store(version, second, kSecond, number + 10, capsule);
      version.write_sealed("state.icp", capsule.SerializeAsString());
      version.commit({});
    }
  }

  std::string root() const { return temp_ / "1.0"; }
  std::string dir(uint32_t version) const { return root() + "/v00000" + std::to_string(version) + "/n0"; }
  std::string file(uint32_t version, const std::string& name) const { return dir(version) + "/" + name; }
  std::string bin(uint32_t version, const std::string& store = kFirst) const {
    return file(version, store + "." + std::to_string(version) + ".bin");
  }
  std::string idx(uint32_t version, const std::string& store = kFirst) const {
    return file(version, store + "." + std::to_string(version) + ".idx");
  }
  std::string manifest() const { return file(3, "manifest.icp"); }
  std::string state() const { return file(3, "state.icp"); }

  // Changes the manifest of version 3 and seals it again, as somebody who means harm would.
  void edit_manifest(const std::function<void(pb::Manifest&)>& edit) const {
    pb::Manifest content;
    ASSERT_TRUE(content.ParseFromString(read_file(manifest()).substr(32)));
    edit(content);
    write_file(manifest(), seal("manifest.icp", content.SerializeAsString()));
  }
  // Replaces a file of version 3 and makes the manifest agree.
  void replace(const std::string& name, const std::string& content) const {
    write_file(file(3, name), content);
    edit_manifest([&](pb::Manifest& manifest_content) {
      for (auto& entry : *manifest_content.mutable_files()) {
        if (entry.name() != name) continue;
        entry.set_bytes(content.size());
        if (entry.xxh3() != 0) entry.set_xxh3(hash_of(content));
      }
    });
  }

  // All that a restart reads. Throws the first error.
  void read_all() const {
    const ImageDir image = ImageDir::open(root(), test::own_identity(), "n0");
    const VersionReader version = image.open_version(3);
    const pb::Capsule capsule = version.read_state();
    for (const pb::Process& process : capsule.processes()) test::read_store(version, process.memory().index());
  }
  std::vector<std::string> verify() const { return ImageDir::open(root(), test::own_identity(), "n0").verify(3); }

 private:
  static std::vector<std::byte> content_of(const VersionWriter& version, uint64_t seed) {
    std::vector<std::byte> page = page_of(seed);
    if (version.compression() != Compression::kNone) {
      for (size_t i = 256; i < kPage; ++i) page[i] = page[i - 256];
    }
    return page;
  }
  static void write_store(VersionWriter& version, PageIndex& index, const char* name, uint64_t seed,
                          pb::Capsule& capsule) {
    PageStoreWriter writer(version, name, index);
    for (uint64_t i = 0; i < 40; ++i) {
      // Half of the pages of the version before, in the same leaf.
      writer.put(kBase + (version.version() * 20 + i) * kPage, content_of(version, seed * 1000 + i), true);
    }
    writer.finish();
    pb::Process* process = capsule.add_processes();
    process->set_pid(static_cast<uint32_t>(seed));
    process->mutable_memory()->set_index(name);
  }

  test::TempDir temp_;
};

void flip(const std::string& path, int64_t at) {
  std::string content = read_file(path);
  if (at < 0) at += static_cast<int64_t>(content.size());
  content.at(static_cast<size_t>(at)) = static_cast<char>(content.at(static_cast<size_t>(at)) ^ 0x10);
  write_file(path, content);
}

void cut(const std::string& path, uint64_t bytes) { std::filesystem::resize_file(path, bytes); }

void swap_files(const std::string& a, const std::string& b) {
  const std::string content = read_file(a);
  write_file(a, read_file(b));
  write_file(b, content);
}

// An index file with any content and right checksums.
class HostileIndex {
 public:
  explicit HostileIndex(const char* store = kFirst, uint32_t version = 3) {
    ByteWriter writer(bytes_);
    writer.text("ICPINDEX");
    writer.u32(kImageFormat);
    writer.u32(version);
    writer.u64(hash_of(store));
    writer.u64(XXH3_64bits(bytes_.data(), bytes_.size()));
  }
  // A table; `fill` writes what comes before its checksum.
  StoredTable table(const std::function<void(ByteWriter&)>& fill) {
    const size_t start = bytes_.size();
    ByteWriter writer(bytes_);
    fill(writer);
    writer.u32(static_cast<uint32_t>(XXH3_64bits(bytes_.data() + start, bytes_.size() - start)));
    return {3, static_cast<uint32_t>(bytes_.size() - start), start};
  }
  StoredTable leaf(uint64_t version_difference, uint64_t record, uint64_t pages) {
    return table([&](ByteWriter& writer) {
      writer.u8(kTagLeafRuns);
      writer.varint(1 << 1);  // one version, no map
      writer.varint(version_difference);
      writer.varint(0);  // none of them dense
      writer.zigzag(static_cast<int64_t>(record));
      writer.varint(0 << 2 | 2);
      writer.varint(pages - 2);
    });
  }
  StoredTable parent(int level, const std::vector<StoredTable>& children) {
    return table([&](ByteWriter& writer) {
      writer.u8(static_cast<uint8_t>(level));
      writer.varint(children.size());
      StoredTable last;
      for (const StoredTable& child : children) {
        const uint64_t expected = child.version == last.version ? last.offset + last.length : 0;
        writer.varint(0);
        writer.varint(3 - child.version);
        writer.zigzag(static_cast<int64_t>(child.offset - expected));
        writer.varint(child.length);
        last = child;
      }
    });
  }
  StoredTable chain(const StoredTable& leaf) { return parent(3, {parent(2, {parent(1, {leaf})})}); }
  // Zeros, which take no place on disk.
  void hole(size_t bytes) { bytes_.resize(bytes_.size() + bytes); }
  std::string finish(const StoredTable& root, uint64_t pages, uint64_t tables) {
    ByteWriter writer(bytes_);
    const size_t start = bytes_.size();
    writer.text("ICPIXEND");
    writer.u32(root.version);
    writer.u32(root.length);
    writer.u64(root.offset);
    writer.u64(pages);
    writer.u64(tables);
    writer.u64(XXH3_64bits(bytes_.data() + start, bytes_.size() - start));
    return {bytes_.begin(), bytes_.end()};
  }

 private:
  std::vector<uint8_t> bytes_;
};

void put_index(const Image& image, const std::string& content) {
  image.replace("task_mm_100.3.idx", content);
  image.edit_manifest([](pb::Manifest& manifest) {
    for (auto& store : *manifest.mutable_stores()) {
      if (store.store() != kFirst) continue;
      store.clear_page_files();
      store.clear_index_files();
      store.add_page_files(3);
      store.add_index_files(3);
    }
  });
}

struct Damage {
  const char* name;
  std::function<void(const Image&)> make;
  const char* message;  // a part of it
  ErrorKind kind = ErrorKind::kImage;
  size_t files = 1;  // how many are wrong then: verify() names each once
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedImage : public testing::TestWithParam<Damage> {};

TEST_P(DamagedImage, GivesOneClearError) {
  const Image image;
  ASSERT_NO_THROW(image.read_all());
  ASSERT_THAT(image.verify(), testing::IsEmpty());
  GetParam().make(image);
  try {
    image.read_all();
    FAIL() << "the damage was not noticed";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.kind(), GetParam().kind) << text;
    EXPECT_THAT(text, testing::HasSubstr(GetParam().message));
    EXPECT_THAT(text, testing::Not(testing::HasSubstr("\n")));
    EXPECT_LT(text.size(), 400u);
  }
  const std::vector<std::string> problems = image.verify();
  EXPECT_EQ(problems.size(), GetParam().files) << testing::PrintToString(problems);
  // A listing goes on working.
  EXPECT_NO_THROW(ImageDir::open(image.root(), test::own_identity(), "n0").versions());
}

const Damage kManifestDamages[] = {
    {"ManifestCut", [](const Image& i) { cut(i.manifest(), 50); }, "manifest.icp is damaged"},
    {"ManifestCutToNothing", [](const Image& i) { cut(i.manifest(), 0); }, "manifest.icp is cut"},
    {"ManifestFlipped", [](const Image& i) { flip(i.manifest(), 40); }, "checksum is wrong"},
    {"ManifestMagic", [](const Image& i) { flip(i.manifest(), 0); }, "not a file of an image"},
    {"ManifestOfTheFuture", [](const Image& i) { flip(i.manifest(), 8); }, "image format"},
    {"ManifestMissing", [](const Image& i) { std::filesystem::remove(i.manifest()); }, "manifest.icp is missing"},
    {"ManifestOfAnotherVersion", [](const Image& i) { write_file(i.manifest(), read_file(i.file(2, "manifest.icp"))); },
     "of version 2, not 3"},
    {"ManifestIsState", [](const Image& i) { write_file(i.manifest(), read_file(i.state())); }, "renamed"},
    {"ManifestIsALink",
     [](const Image& i) {
       std::filesystem::rename(i.manifest(), i.root() + "/elsewhere");
       std::filesystem::create_symlink("../../elsewhere", i.manifest());
     },
     "not a regular file"},
    {"ManifestIsAFifo",
     [](const Image& i) {
       std::filesystem::remove(i.manifest());
       ASSERT_EQ(::mkfifo(i.manifest().c_str(), 0600), 0);
     },
     "not a regular file"},
    {"ManifestIsADirectory",
     [](const Image& i) {
       std::filesystem::remove(i.manifest());
       std::filesystem::create_directory(i.manifest());
     },
     "not a regular file"},
    {"ManifestIsHuge", [](const Image& i) { cut(i.manifest(), 1ull << 40); }, "too large"},
    {"ManifestIsNoMessage", [](const Image& i) { write_file(i.manifest(), seal("manifest.icp", "\xff\xff")); },
     "cannot be decoded"},
    {"ManifestNamesAPathAbove",
     [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { m.mutable_files(0)->set_name("../../secret"); }); },
     "impossible name"},
    {"ManifestNamesAFileTwice",
     [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { *m.add_files() = m.files(0); }); }, "twice"},
    {"ManifestNeedsTheFuture", [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { m.add_needs(9); }); },
     "among those it needs"},
    {"ManifestNeedsUnordered", [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { m.set_needs(0, 2); }); },
     "among those it needs"},
    {"ManifestNeedsNothing", [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { m.clear_needs(); }); },
     "does not name itself"},
    {"ManifestWithoutState",
     [](const Image& i) {
       i.edit_manifest([](pb::Manifest& m) {
         for (auto& f : *m.mutable_files()) {
           if (f.name() == "state.icp") f = m.files(0), m.mutable_files()->DeleteSubrange(0, 1);
         }
       });
     },
     "not in the version's manifest"},
    {"ManifestOfOtherPages",
     [](const Image& i) { i.edit_manifest([](pb::Manifest& m) { m.mutable_host()->set_page_size(65536); }); },
     "pages of 65536 bytes"},
    {"OldVersionMissing", [](const Image& i) { std::filesystem::remove_all(i.dir(1)); }, "needs version 1"},
};

const Damage kStateDamages[] = {
    {"StateCut", [](const Image& i) { cut(i.state(), 33); }, "state.icp has 33 bytes"},
    {"StateFlipped", [](const Image& i) { flip(i.state(), -1); }, "state.icp is damaged"},
    {"StateMissing", [](const Image& i) { std::filesystem::remove(i.state()); }, "state.icp is missing"},
    {"StateOfAnotherVersion", [](const Image& i) { write_file(i.state(), read_file(i.file(2, "state.icp"))); },
     "not the file that the manifest describes"},
    {"StateIsNoMessage", [](const Image& i) { i.replace("state.icp", seal("state.icp", "\xff\xff")); },
     "cannot be decoded"},
    {"StateNamesAPathAbove",
     [](const Image& i) {
       pb::Capsule capsule;
       capsule.add_processes()->mutable_memory()->set_index("../../secret");
       i.replace("state.icp", seal("state.icp", capsule.SerializeAsString()));
     },
     "cannot be the name of a page store"},
    {"StateNamesAMissingStore",
     [](const Image& i) {
       pb::Capsule capsule;
       capsule.add_processes()->mutable_memory()->set_index("task_mm_999");
       i.replace("state.icp", seal("state.icp", capsule.SerializeAsString()));
     },
     "task_mm_999.3.idx is missing"},
};

// Records 0 to 19 of version 1 and 2, and 0 to 39 of version 3 are in use.
const Damage kPageFileDamages[] = {
    {"PagesMissing", [](const Image& i) { std::filesystem::remove(i.bin(3)); }, "task_mm_100.3.bin is missing"},
    {"OldPagesMissing", [](const Image& i) { std::filesystem::remove(i.bin(1)); }, "task_mm_100.1.bin is missing"},
    {"OldPagesCut", [](const Image& i) { cut(i.bin(1), 4096 * 3); }, "trailer is damaged"},
    {"OldPagesCutToNothing", [](const Image& i) { cut(i.bin(1), 0); }, "task_mm_100.1.bin is cut"},
    {"PageFlipped", [](const Image& i) { flip(i.bin(2), 4096 * 6 + 17); }, "damaged at offset 24576"},
    {"PageHeaderFlipped", [](const Image& i) { flip(i.bin(2), 12); }, "header is damaged"},
    {"PageTableFlipped", [](const Image& i) { flip(i.bin(2), 4096 * 41 + 5); }, "checksum table is damaged"},
    {"ChecksumOfPageTableFlipped", [](const Image& i) { flip(i.bin(2), -60); }, "checksum table is damaged"},
    {"PageTrailerFlipped", [](const Image& i) { flip(i.bin(2), -20); }, "trailer is damaged"},
    {"PagesSwappedBetweenStores", [](const Image& i) { swap_files(i.bin(1), i.bin(1, kSecond)); },
     "another store or version", ErrorKind::kImage, 2},
    {"PagesSwappedBetweenVersions", [](const Image& i) { write_file(i.bin(1), read_file(i.bin(2))); },
     "another store or version"},
    {"PagesAreALink",
     [](const Image& i) {
       std::filesystem::rename(i.bin(1), i.root() + "/elsewhere");
       std::filesystem::create_symlink("../../elsewhere", i.bin(1));
     },
     "not a regular file"},
    {"PagesAreAFifo",
     [](const Image& i) {
       std::filesystem::remove(i.bin(1));
       ASSERT_EQ(::mkfifo(i.bin(1).c_str(), 0600), 0);
     },
     "not a regular file"},
    {"PageRecordsHuge",
     [](const Image& i) {
       std::string content = read_file(i.bin(1));
       const size_t trailer = content.size() - 56;
       const uint64_t records = ~0ull / 4;
       std::memcpy(content.data() + trailer + 24, &records, 8);
       const uint64_t xxh3 = XXH3_64bits(content.data() + trailer, 48);
       std::memcpy(content.data() + trailer + 48, &xxh3, 8);
       write_file(i.bin(1), content);
     },
     "do not make a file of"},
};

const Damage kIndexDamages[] = {
    {"IndexMissing", [](const Image& i) { std::filesystem::remove(i.idx(3)); }, "task_mm_100.3.idx is missing"},
    {"IndexCut", [](const Image& i) { cut(i.idx(3), 90); }, "task_mm_100.3.idx has 90 bytes"},
    {"IndexHeaderFlipped", [](const Image& i) { flip(i.idx(3), 9); }, "header is damaged"},
    {"IndexTableFlipped", [](const Image& i) { flip(i.idx(3), 34); }, "checksum of the table is wrong"},
    {"IndexTrailerFlipped", [](const Image& i) { flip(i.idx(3), -30); }, "trailer is damaged"},
    {"IndexSwappedBetweenStores", [](const Image& i) { swap_files(i.idx(3), i.idx(3, kSecond)); },
     "another store or version", ErrorKind::kImage, 2},
    {"IndexOfAnotherVersion", [](const Image& i) { i.replace("task_mm_100.3.idx", read_file(i.idx(2))); },
     "another store or version"},
    {"IndexRootOutside",
     [](const Image& i) {
       put_index(i, HostileIndex().finish({3, 100, 1ull << 60}, 1, 4));
     },
     "outside the file"},
    {"IndexRootHuge",
     [](const Image& i) {
       put_index(i, HostileIndex().finish({3, ~0u, 32}, 1, 4));
     },
     "outside the file"},
    {"IndexRootInTheFuture",
     [](const Image& i) {
       put_index(i, HostileIndex().finish({9, 10, 32}, 1, 4));
     },
     "refers to version 9"},
    {"IndexRootIsALeaf",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.leaf(0, 0, 2), 2, 1));
     },
     "not of the level it should be"},
    {"IndexInACircle",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.parent(3, {{3, 13, 32}}), 2, 4));
     },
     "damaged at offset 32"},
    {"IndexOfVersionZero",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(3, 0, 2)), 2, 4));
     },
     "impossible version"},
    {"IndexBeyondTheRecords",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(0, 39, 2)), 2, 4));
     },
     "40 page records, the index refers to record 40"},
    {"IndexRecordsHuge",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(0, (1ull << 40) - 2, 2)), 2, 4));
     },
     "impossible record"},
    {"IndexRunPassesItsTable",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(0, 0, 513)), 513, 4));
     },
     "passes the end"},
    {"IndexRunWrapsAround",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(0, 0, 0)), 0, 4));
     },
     "passes the end"},
    {"IndexTableTooFull",
     [](const Image& i) {
       HostileIndex index;
       const StoredTable leaf = index.leaf(0, 0, 2);
       put_index(i, index.finish(index.parent(3, std::vector<StoredTable>(513, leaf)), 2, 4));
     },
     "impossible number of entries"},
    {"IndexTableNamedOften",
     [](const Image& i) {
       HostileIndex index;
       const StoredTable one = index.parent(1, {index.leaf(0, 0, 2)});
       put_index(i, index.finish(index.parent(3, {index.parent(2, std::vector<StoredTable>(512, one))}), 2, 4));
     },
     "tables overlap"},
    {"IndexTableNamedOftenInASparseFile",
     [](const Image& i) {
       HostileIndex index;
       const StoredTable leaf = index.leaf(0, 0, 2);
       index.hole(1 << 20);
       const StoredTable one = index.parent(1, std::vector<StoredTable>(512, leaf));
       put_index(i, index.finish(index.parent(3, {index.parent(2, {one})}), 1024, 515));
     },
     "tables overlap"},
    {"IndexOfMoreTablesThanItSays",
     [](const Image& i) {
       HostileIndex index;
       std::vector<StoredTable> leaves;
       for (int n = 0; n < 500; n++) leaves.push_back(index.leaf(0, 0, 2));
       put_index(i, index.finish(index.parent(3, {index.parent(2, {index.parent(1, leaves)})}), 1000, 4));
     },
     "more tables than it says"},
    {"IndexCountsLie",
     [](const Image& i) {
       HostileIndex index;
       put_index(i, index.finish(index.chain(index.leaf(0, 0, 2)), 1ull << 50, 1ull << 50));
     },
     "2 pages in 4 tables instead of"},
    {"IndexOfPagesNotNeeded",
     [](const Image& i) {
       i.edit_manifest([](pb::Manifest& m) {
         m.clear_needs();
         m.add_needs(3);
       });
     },
     "which the manifest does not name", ErrorKind::kImage, 2},
};

const Damage kPermissionDamages[] = {
    {"OthersMayWriteTheVersion", [](const Image& i) { ::chmod(i.dir(3).c_str(), 0777); }, "others than its owner",
     ErrorKind::kPermission},
    {"OthersMayWriteAnOldVersion", [](const Image& i) { ::chmod(i.dir(1).c_str(), 0770); }, "others than its owner",
     ErrorKind::kPermission},
    {"ForeignFile",
     [](const Image& i) {
       if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
       ASSERT_EQ(::chown(i.bin(1).c_str(), 54321, 54321), 0);
     },
     "belongs to user 54321", ErrorKind::kPermission},
    {"ForeignVersion",
     [](const Image& i) {
       if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
       ASSERT_EQ(::chown(i.dir(3).c_str(), 54321, 54321), 0);
     },
     "belongs to user 54321", ErrorKind::kPermission},
};

std::string name_of(const testing::TestParamInfo<Damage>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Manifest, DamagedImage, testing::ValuesIn(kManifestDamages), name_of);
INSTANTIATE_TEST_SUITE_P(State, DamagedImage, testing::ValuesIn(kStateDamages), name_of);
INSTANTIATE_TEST_SUITE_P(Pages, DamagedImage, testing::ValuesIn(kPageFileDamages), name_of);
INSTANTIATE_TEST_SUITE_P(Index, DamagedImage, testing::ValuesIn(kIndexDamages), name_of);
INSTANTIATE_TEST_SUITE_P(Permission, DamagedImage, testing::ValuesIn(kPermissionDamages), name_of);

// A compressed page file: 40 pages of 64 bytes repeated, three blocks; their lengths stand before the checksum
// of the hashes and the trailer of 56 bytes.
class CompressedImage : public testing::TestWithParam<Compression> {
 protected:
  static constexpr size_t kTrailer = 56, kChecksum = sizeof(uint64_t), kLengths = 3 * sizeof(uint32_t);

  void expect(const Image& image, const char* message) {
    try {
      image.read_all();
      ADD_FAILURE() << "the damage was not noticed: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kImage);
      EXPECT_THAT(error.what(), testing::HasSubstr(message));
    }
    EXPECT_EQ(image.verify().size(), 1u);
  }
  // Writes a number into the file's tables and makes all checksums right again, as somebody who means harm would.
  static void forge(const std::string& path,
                    const std::function<void(std::string&, size_t lengths, size_t trailer)>& edit) {
    std::string content = read_file(path);
    const size_t trailer = content.size() - kTrailer, lengths = trailer - kChecksum - kLengths;
    edit(content, lengths, trailer);
    const uint64_t table = XXH3_64bits(content.data() + lengths, trailer - lengths);
    std::memcpy(content.data() + trailer + 40, &table, 8);
    const uint64_t own = XXH3_64bits(content.data() + trailer, 48);
    std::memcpy(content.data() + trailer + 48, &own, 8);
    write_file(path, content);
  }
  static void set(std::string& content, size_t at, uint32_t value) { std::memcpy(content.data() + at, &value, 4); }
};

TEST_P(CompressedImage, IsReadAndVerified) {
  const Image image(GetParam());
  EXPECT_NO_THROW(image.read_all());
  EXPECT_THAT(image.verify(), testing::IsEmpty());
}

TEST_P(CompressedImage, FlippedBitsAreNoticed) {
  for (size_t at = 0; at < 300; at += 7) {
    const Image image(GetParam());
    flip(image.bin(3), static_cast<int64_t>(4096 + at * 11));
    EXPECT_THROW(image.read_all(), Error) << at;
    EXPECT_EQ(image.verify().size(), 1u) << at;
  }
}

TEST_P(CompressedImage, HostileLengthsAreRefused) {
  for (const uint32_t length : {0u, 65537u, 0xffffffffu}) {
    const Image image(GetParam());
    forge(image.bin(3), [&](std::string& content, size_t lengths, size_t) { set(content, lengths, length); });
    expect(image, "impossible length of a block");
  }
  const Image shorter(GetParam());
  forge(shorter.bin(3), [&](std::string& content, size_t lengths, size_t) { set(content, lengths, 1); });
  expect(shorter, "blocks do not fill the file");
  const Image other(GetParam());
  forge(other.bin(3), [&](std::string& content, size_t, size_t trailer) { set(content, trailer + 32, 9); });
  expect(other, "compressed in a way");
  const Image many(GetParam());
  forge(many.bin(3), [&](std::string& content, size_t, size_t trailer) { set(content, trailer + 24, 1u << 30); });
  expect(many, "do not make a file");
}

INSTANTIATE_TEST_SUITE_P(Kinds, CompressedImage, testing::Values(Compression::kZstd, Compression::kLz4),
                         [](const auto& kind) { return std::string(to_string(kind.param)); });

// What decompresses to more than a block holds is refused, and nothing is written beyond the block.
TEST(Compression, OutputIsBounded) {
  for (const Compression kind : {Compression::kZstd, Compression::kLz4}) {
    std::vector<std::byte> plain(1 << 20), packed;
    ASSERT_TRUE(compress_block(kind, plain, packed));
    std::vector<std::byte> room(65536 + 64, std::byte{0x5a});
    EXPECT_FALSE(decompress_block(kind, packed, std::span(room).first(65536)));
    for (size_t i = 65536; i < room.size(); ++i) ASSERT_EQ(room[i], std::byte{0x5a});
    std::vector<std::byte> longer((1 << 20) + 1);
    EXPECT_FALSE(decompress_block(kind, packed, longer));
    EXPECT_TRUE(decompress_block(kind, packed, plain));
    std::mt19937_64 random(1);
    for (int i = 0; i < 2000; ++i) {
      std::vector<std::byte> bad = packed;
      bad[random() % bad.size()] ^= static_cast<std::byte>(1 + random() % 255);
      bad.resize(1 + random() % bad.size());
      decompress_block(kind, bad, std::span(room).first(65536));
    }
    for (size_t i = 65536; i < room.size(); ++i) ASSERT_EQ(room[i], std::byte{0x5a});
  }
}

// Any single bit of any file that version 3 consists of is covered by some checksum.
TEST(DamagedImageAtRandom, EveryFlippedBitIsNoticed) {
  const Image image;
  std::mt19937_64 random(1);
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(image.dir(3))) files.push_back(entry.path());
  for (uint32_t version = 1; version <= 2; ++version) files.push_back(image.bin(version));
  for (int round = 0; round < 300; ++round) {
    const std::string& path = files[random() % files.size()];
    const std::string good = read_file(path);
    std::string bad = good;
    size_t at = random() % bad.size();
    if (path.ends_with(".bin")) {
      // The rest of the header page is padding; records that no page refers to any more are not read.
      if (path.find("v000003") == std::string::npos) at = at < bad.size() / 2 ? at % 32 : 4096 + at % (20 * 4096);
      if (at >= 32 && at < 4096) at = 4096;
    }
    bad[at] = static_cast<char>(bad[at] ^ (1 << random() % 8));
    write_file(path, bad);
    EXPECT_THROW(image.read_all(), Error) << path << " at " << at;
    write_file(path, good);
  }
  EXPECT_NO_THROW(image.read_all());
}

// Tables of random bytes with right checksums: anything but a crash or a run that passes its table.
TEST(DamagedImageAtRandom, NoTableOfRandomBytesDoesHarm) {
  std::mt19937_64 random(2);
  const auto seal_block = [](std::vector<uint8_t> block) {
    ByteWriter(block).u32(static_cast<uint32_t>(XXH3_64bits(block.data(), block.size())));
    return block;
  };
  int good = 0;
  for (int round = 0; round < 100000; ++round) {
    std::vector<uint8_t> block(1 + random() % (round % 4 == 0 ? 700 : 40));
    for (uint8_t& byte : block) byte = static_cast<uint8_t>(random() % (round % 2 == 0 ? 256 : 8));
    const int level = static_cast<int>(random() % 4);
    block[0] = level == 0 ? (round % 4 == 0 ? (round % 8 == 0 ? kTagLeafPlanes : kTagLeafBytes) : kTagLeafRuns)
                          : static_cast<uint8_t>(level);
    block = seal_block(block);
    try {
      if (level > 0) {
        for (const ChildReference& child : decode_table(block, level, 5)) {
          ASSERT_LT(child.slot, kTableEntries);
          ASSERT_TRUE(child.stored.version >= 1 && child.stored.version <= 5);
        }
      } else {
        IndexLeaf leaf;
        decode_leaf(block, 5, leaf);
        for (const uint64_t entry : leaf.entries.all()) ASSERT_LE(packed_version(entry), 5u);
      }
      ++good;
    } catch (const DecodeError&) {
    }
  }
  EXPECT_GT(good, 100) << "the random bytes are too random to test anything";
}

// The kind of leaf that takes more than random bytes to get into: a good one with some bytes changed, and a right
// checksum.
TEST(DamagedImageAtRandom, NoChangedLeafOfPlanesDoesHarm) {
  std::mt19937_64 random(3);
  IndexLeaf leaf;
  std::map<uint32_t, uint64_t> records;
  for (unsigned slot = 0; slot < kTableEntries; ++slot) {
    if (random() % 6 == 0) continue;
    const auto version = 1 + static_cast<uint32_t>(random() % 90);
    uint64_t& record = records[version];
    if (random() % 6 == 0) record = random() % 100000;
    leaf.entries[slot] = pack({version, record += random() % 9});
    ++leaf.used;
  }
  std::vector<uint8_t> good;
  encode_leaf(leaf, 90, good);
  ASSERT_EQ(good[0], kTagLeafPlanes);
  int decoded = 0;
  for (int round = 0; round < 100000; ++round) {
    std::vector<uint8_t> block(good.begin(), good.end() - 4);
    if (random() % 8 == 0) block.resize(1 + random() % block.size());
    for (uint64_t changes = 1 + random() % 4; changes > 0; --changes)
      block[random() % block.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    block[0] = kTagLeafPlanes;
    ByteWriter(block).u32(static_cast<uint32_t>(XXH3_64bits(block.data(), block.size())));
    try {
      IndexLeaf other;
      decode_leaf(block, 90, other);
      for (const uint64_t entry : other.entries.all()) ASSERT_LE(packed_version(entry), 90u);
      ++decoded;
    } catch (const DecodeError&) {
    }
  }
  EXPECT_GT(decoded, 100);
}

}  // namespace
}  // namespace icp
