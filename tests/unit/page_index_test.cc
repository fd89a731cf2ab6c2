// SPDX-License-Identifier: GPL-2.0-or-later
// PageIndex against std::map, in memory and through index files of many versions.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <random>
#include <set>

#include "engine/image/page_index_codec.h"
#include "engine/image/page_index_file.h"
#include "tests/unit/image_test_support.h"

namespace icp {
namespace {

using test::kPage;
using Model = std::map<uint64_t, PageLocation>;

std::map<uint64_t, PageLocation> content(const PageIndex& index) {
  Model result;
  uint64_t last_end = 0;
  PageLocation last;
  index.for_each_run([&](uint64_t address, uint64_t pages, PageLocation location) {
    EXPECT_GE(address, last_end);
    // Runs are maximal.
    EXPECT_FALSE(address == last_end && last.version == location.version && last.record == location.record)
        << std::hex << address;
    for (uint64_t i = 0; i < pages; ++i) result[address + i * kPage] = {location.version, location.record + i};
    last_end = address + pages * kPage;
    last = {location.version, location.record + pages};
  });
  return result;
}

// Addresses as a process has them: a few dense areas far apart.
class AddressSource {
 public:
  explicit AddressSource(std::mt19937_64& random) : random_(random) {}
  uint64_t next() {
    static constexpr uint64_t kBases[] = {0, 0x400000, 0x555555554000, 0x7ffff7a00000, (1ull << 48) - 2048 * kPage};
    return kBases[random_() % std::size(kBases)] + random_() % 2048 * kPage;
  }

 private:
  std::mt19937_64& random_;
};

void mutate(PageIndex& index, Model& model, std::mt19937_64& random, uint32_t version, uint64_t& record) {
  AddressSource addresses(random);
  const uint64_t start = addresses.next();
  const uint64_t pages = std::min<uint64_t>(1 + random() % 600, ((1ull << 48) - start) / kPage);
  switch (random() % 4) {
    case 0:  // a range goes
      index.erase(start, start + pages * kPage);
      model.erase(model.lower_bound(start), model.lower_bound(start + pages * kPage));
      break;
    case 1:  // single pages
      for (uint64_t i = 0; i < 20; ++i) {
        const uint64_t address = addresses.next();
        index.set(address, {version, record});
        model[address] = {version, record++};
      }
      break;
    case 2:  // every third page
      for (uint64_t i = 0; i < pages; i += 3) {
        index.set(start + i * kPage, {version, record});
        model[start + i * kPage] = {version, record++};
      }
      break;
    default:  // a run
      for (uint64_t i = 0; i < pages; ++i) {
        index.set(start + i * kPage, {version, record});
        model[start + i * kPage] = {version, record++};
      }
  }
}

TEST(PageIndex, IsEmptyAtFirst) {
  PageIndex index;
  EXPECT_EQ(index.pages(), 0u);
  EXPECT_EQ(index.find(0x1000), PageLocation{});
  EXPECT_TRUE(content(index).empty());
  EXPECT_TRUE(index.versions().empty());
  index.erase(0, 1ull << 48);
}

TEST(PageIndex, RefusesWhatIsNoPage) {
  PageIndex index;
  EXPECT_THROW(index.find(1), Error);
  EXPECT_THROW(index.find(1ull << 48), Error);
  EXPECT_THROW(index.set(0x1001, {1, 1}), Error);
  EXPECT_THROW(index.set(0x1000, {1u << 24, 1}), Error);
  EXPECT_THROW(index.set(0x1000, {1, 1ull << 40}), Error);
  EXPECT_THROW(index.erase(0, (1ull << 48) + kPage), Error);
  EXPECT_THROW(index.erase(kPage, 0), Error);
}

TEST(PageIndex, HoldsTheExtremes) {
  PageIndex index;
  const uint64_t last = (1ull << 48) - kPage;
  const PageLocation far{(1u << 24) - 1, (1ull << 40) - 2};
  index.set(0, far);
  index.set(last, far);
  EXPECT_EQ(index.find(0), far);
  EXPECT_EQ(index.find(last), far);
  EXPECT_EQ(index.pages(), 2u);
  index.erase(0, 1ull << 48);
  EXPECT_EQ(index.pages(), 0u);
  EXPECT_TRUE(index.versions().empty());
}

TEST(PageIndex, ErasesTerabytesAtOnce) {
  PageIndex index;
  for (uint64_t i = 0; i < 1000; ++i) index.set(i << 38, {1, i});
  index.erase(kPage, 1ull << 47);
  EXPECT_EQ(index.pages(), 1000u - (1ull << 47 >> 38) + 1);
  EXPECT_EQ(index.find(0), (PageLocation{1, 0}));
  EXPECT_EQ(index.find(1ull << 38), PageLocation{});
}

TEST(PageIndex, SetAfterEraseOfTheSameLeafIsSeen) {
  PageIndex index;
  index.set(0x200000, {1, 1});
  index.erase(0x200000, 0x201000);
  index.set(0x201000, {1, 2});
  EXPECT_EQ(index.pages(), 1u);
  EXPECT_EQ(index.find(0x201000), (PageLocation{1, 2}));
}

TEST(PageIndex, AgreesWithAMap) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::mt19937_64 random(seed);
    PageIndex index;
    Model model;
    uint64_t record = 0;
    for (uint32_t round = 0; round < 200; ++round) mutate(index, model, random, 1 + round / 20, record);
    ASSERT_EQ(content(index), model) << "seed " << seed;
    ASSERT_EQ(index.pages(), model.size());
    std::set<uint32_t> versions;
    for (const auto& [address, location] : model) {
      versions.insert(location.version);
      ASSERT_EQ(index.find(address), location);
    }
    EXPECT_EQ(index.versions(), std::vector<uint32_t>(versions.begin(), versions.end()));

    AddressSource addresses(random);
    for (int i = 0; i < 100; ++i) {
      uint64_t start = addresses.next(), end = addresses.next();
      if (start > end) std::swap(start, end);
      uint64_t pages = 0;
      index.for_each_run(start, end, [&](uint64_t address, uint64_t count, PageLocation location) {
        ASSERT_GE(address, start);
        ASSERT_LE(address + count * kPage, end);
        ASSERT_EQ(model.at(address), location);
        pages += count;
      });
      ASSERT_EQ(pages, static_cast<uint64_t>(std::distance(model.lower_bound(start), model.lower_bound(end))));
    }
  }
}

TEST(PageIndex, FileOrderVisitsEveryPageOnceByVersionAndRecord) {
  std::mt19937_64 random(3);
  PageIndex index;
  Model model;
  uint64_t record = 0;
  for (uint32_t round = 0; round < 200; ++round) mutate(index, model, random, 1 + round / 20, record);
  Model seen;
  PageLocation last;
  index.for_each_run_in_file_order(0, 1ull << 48, [&](uint64_t address, uint64_t pages, PageLocation location) {
    EXPECT_LE(std::pair(last.version, last.record), std::pair(location.version, location.record));
    last = location;
    for (uint64_t i = 0; i < pages; ++i) seen[address + i * kPage] = {location.version, location.record + i};
  });
  EXPECT_EQ(seen, model);
}

TEST(PageIndexCodec, LeavesOfAnyShapeComeBack) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; ++round) {
    IndexLeaf leaf;
    const uint32_t own = 1 + static_cast<uint32_t>(random() % (round % 2 == 0 ? 1000 : kMaxVersion));
    const uint32_t versions = 1 + static_cast<uint32_t>(random() % std::min<uint32_t>(own, 1u << round % 11));
    const uint64_t density = 1 + random() % 8;
    std::map<uint32_t, uint64_t> next;
    for (unsigned slot = 0; slot < kTableEntries; ++slot) {
      if (random() % density != 0) continue;
      const uint32_t version = own - static_cast<uint32_t>(random() % versions);
      uint64_t& record = next[version];
      if (random() % 8 == 0) record = random() % (kMaxRecord + 1);
      record = std::min(record, kMaxRecord);
      leaf.entries[slot] = pack({version, record++});
      ++leaf.used;
    }
    if (leaf.used == 0) continue;
    std::vector<uint8_t> block;
    encode_leaf(leaf, own, block);
    ASSERT_LE(block.size(), kMaxBlockBytes);
    IndexLeaf decoded;
    decode_leaf(block, own, decoded);
    ASSERT_EQ(decoded.entries, leaf.entries);
    ASSERT_EQ(decoded.used, leaf.used);
  }
}

struct Encoded {
  std::vector<uint8_t> tags;  // of the leaves
  double bytes_per_page;
};

// Leaves of pages that are all there, and what they cost; each has to come back as it was.
Encoded encode_all(const std::vector<uint64_t>& entries, uint32_t own) {
  std::vector<uint8_t> tags, all;
  for (size_t first = 0; first < entries.size(); first += kTableEntries) {
    IndexLeaf leaf, back;
    for (unsigned slot = 0; slot < kTableEntries; ++slot) leaf.entries[slot] = entries[first + slot];
    leaf.used = kTableEntries;
    const size_t before = all.size();
    encode_leaf(leaf, own, all);
    tags.push_back(all[before]);
    decode_leaf(std::span(all).subspan(before), own, back);
    EXPECT_EQ(back.entries, leaf.entries);
  }
  return {tags, static_cast<double>(all.size()) / static_cast<double>(entries.size())};
}

// The worst case there is: 300 versions that each rewrote a random 1%.
TEST(PageIndexCodec, RandomRewritingCostsLessThanTwoBytesAPage) {
  constexpr uint64_t kPages = 512 * 100;
  std::mt19937_64 random(4);
  std::vector<uint64_t> entries(kPages);
  for (uint64_t i = 0; i < kPages; ++i) entries[i] = pack({1, i});
  for (uint32_t version = 2; version <= 300; ++version) {
    std::set<uint64_t> chosen;
    while (chosen.size() < kPages / 100) chosen.insert(random() % kPages);
    uint64_t record = 0;
    for (const uint64_t page : chosen) entries[page] = pack({version, record++});
  }
  const Encoded encoded = encode_all(entries, 300);
  EXPECT_LE(encoded.bytes_per_page, 2.0);
}

// A job that writes all the time: each version stores a seventh of all pages, found in four rounds, by address in each.
TEST(PageIndexCodec, ManyVersionsInSeveralOrdersCostLessThanTwoBytesAPage) {
  constexpr uint64_t kPages = 512 * 100;
  std::mt19937_64 random(5);
  std::vector<uint64_t> entries(kPages);
  for (uint64_t i = 0; i < kPages; ++i) entries[i] = pack({1, i});
  for (uint32_t version = 2; version <= 120; ++version) {
    uint64_t record = 0;
    for (const uint64_t found : {kPages / 8, kPages / 50, kPages / 200, kPages / 500}) {
      std::set<uint64_t> chosen;
      while (chosen.size() < found) chosen.insert(random() % kPages);
      for (const uint64_t page : chosen) {
        if (packed_version(entries[page]) != version) entries[page] = pack({version, record++});
      }
    }
  }
  const Encoded encoded = encode_all(entries, 120);
  EXPECT_THAT(encoded.tags, testing::Each(kTagLeafPlanes));
  EXPECT_LE(encoded.bytes_per_page, 2.0);
}

TEST(PageIndexCodec, SequentialPagesCostNextToNothing) {
  IndexLeaf leaf;
  for (unsigned i = 0; i < kTableEntries; ++i) leaf.entries[i] = pack({7, 1000000 + i});
  leaf.used = kTableEntries;
  std::vector<uint8_t> block;
  encode_leaf(leaf, 7, block);
  EXPECT_LE(block.size(), 16u);
}

// One image whose index is rewritten over many versions, loaded anew now and then.
TEST(PageIndexFile, AgreesWithAMapOverManyVersions) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    test::TempDir temp;
    ImageDir image = ImageDir::create(temp / "1.0", test::own_identity(), "n0");
    std::mt19937_64 random(seed);
    PageIndex index;
    std::map<uint32_t, Model> models;
    Model model;
    for (uint32_t number = 1; number <= 40; ++number) {
      VersionWriter version = image.begin_version();
      ASSERT_EQ(version.version(), number);
      uint64_t record = 0;
      for (uint64_t round = random() % 6; round > 0; --round) mutate(index, model, random, number, record);
      PageIndexFile::write(index, version, "store");
      version.commit({});
      models[number] = model;
      const VersionReader reader = image.open_version(number);
      for (const uint32_t needed : index.versions()) ASSERT_TRUE(reader.needs(needed));
      ASSERT_LE(static_cast<size_t>(reader.manifest().needs_size()), index.versions().size() + 1);
      if (random() % 3 == 0) index = PageIndexFile::load(reader, "store");  // a restart
    }
    for (const auto& [number, expected] : models) {
      const PageIndex loaded = PageIndexFile::load(image.open_version(number), "store");
      ASSERT_EQ(content(loaded), expected) << "seed " << seed << " version " << number;
    }
  }
}

// A page in each 2 MiB, in each GiB, and whole areas: in memory not more than some times what the files have.
TEST(PageIndexFile, TakesLittleMoreMemoryThanItsBytes) {
  for (const auto& [step, count] :
       {std::pair(1ull << 21, 20'000u), std::pair(1ull << 30, 20'000u), std::pair(kPage * 1ull, 4'000'000u)}) {
    test::TempDir temp;
    ImageDir image = ImageDir::create(temp / "1.0", test::own_identity(), "n0");
    uint64_t bytes = 0;
    {
      PageIndex index;
      for (uint64_t i = 0; i < count; ++i) index.set(i * step, {1, i});
      VersionWriter version = image.begin_version();
      PageIndexFile::write(index, version, "store");
      version.commit({});
      bytes = image.open_version(1).manifest().files(0).bytes();
    }
    ::malloc_trim(0);
    const VersionReader reader = image.open_version(1);
    const auto before = ::mallinfo2();
    const PageIndex index = PageIndexFile::load(reader, "store");
    const auto after = ::mallinfo2();
    EXPECT_EQ(index.pages(), count);
    const uint64_t taken = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
    EXPECT_LT(taken, 10 * bytes) << "step " << step << ": " << bytes << " bytes in the file";
  }
}

TEST(PageIndexFile, UnchangedTablesAreNotWrittenAgain) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", test::own_identity(), "n0");
  PageIndex index;
  // A record in every leaf of 8 GiB, each with its own jump: tables that do not compress away.
  for (uint64_t i = 0; i < 4096; ++i) index.set(i << 21, {1, i * 7919 % 4096});
  const auto write = [&] {
    VersionWriter version = image.begin_version();
    PageIndexFile::write(index, version, "store");
    version.commit({});
    return image.open_version(image.latest().value()).manifest().files(0).bytes();
  };
  const uint64_t full = write();
  EXPECT_EQ(write(), 80u);  // header and trailer
  index.set(5ull << 21, {3, 0});
  const uint64_t one = write();
  EXPECT_LT(one * 4, full);
  index.set(5ull << 21, {3, 0});  // the same again is no change
  EXPECT_EQ(write(), 80u);
  const VersionReader reader = image.open_version(4);
  EXPECT_EQ(std::vector<uint32_t>(reader.manifest().needs().begin(), reader.manifest().needs().end()),
            (std::vector<uint32_t>{1, 3, 4}));
  EXPECT_EQ(PageIndexFile::load(reader, "store").pages(), 4096u);
}

TEST(PageIndexFile, NeedsOnlyWhatItStillRefersTo) {
  test::TempDir temp;
  ImageDir image = ImageDir::create(temp / "1.0", test::own_identity(), "n0");
  PageIndex index;
  for (uint32_t number = 1; number <= 3; ++number) {
    VersionWriter version = image.begin_version();
    for (uint64_t i = 0; i < 1000; ++i) index.set(i * kPage, {number, i});
    PageIndexFile::write(index, version, "store");
    version.commit({});
  }
  EXPECT_EQ(image.open_version(3).manifest().needs_size(), 1);
}

}  // namespace
}  // namespace icp
