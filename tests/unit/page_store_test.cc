// SPDX-License-Identifier: GPL-2.0-or-later
// Page stores: what was put is what is read, over many versions, and after everything that can go wrong.
#include "engine/image/page_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <random>
#include <thread>

#include "engine/image/page_file.h"
#include "engine/image/page_hash.h"
#include "tests/unit/image_test_support.h"

namespace icp {
namespace {

using test::kPage;
using test::page_of;
using test::read_file;
using test::Reference;
using test::store_equals;
using test::write_file;

constexpr char kStore[] = "task_mm_100";
constexpr uint64_t kBase = 0x7f0000000000;

class PageStoreTest : public testing::Test {
 protected:
  test::TempDir temp_;
  ImageDir image_ = ImageDir::create(temp_ / "1.0", test::own_identity(), "n0");
  std::mt19937_64 random_{1};

  // Puts `pages` pages of new content from `address` on, some of them zeros.
  void put(PageStoreWriter& writer, Reference& reference, uint64_t address, uint64_t pages, bool zeros_absent) {
    std::vector<std::byte> bytes;
    for (uint64_t i = 0; i < pages; ++i) {
      const uint64_t seed = random_() % 5 == 0 ? 0 : random_();
      const auto page = page_of(seed);
      bytes.insert(bytes.end(), page.begin(), page.end());
      if (seed == 0 && zeros_absent) {
        reference.erase(address + i * kPage);
      } else {
        reference[address + i * kPage] = seed;
      }
    }
    writer.put(address, bytes, zeros_absent);
  }
};

TEST_F(PageStoreTest, FiftyVersionsOfRandomRewriting) {
  PageIndex index;
  Reference reference;
  std::map<uint32_t, Reference> history;
  for (uint32_t number = 1; number <= 50; ++number) {
    VersionWriter version = image_.begin_version();
    {
      PageStoreWriter writer(version, kStore, index);
      for (uint64_t round = random_() % 8; round > 0; --round) {
        const uint64_t address = kBase + random_() % 3000 * kPage;
        // Sometimes large enough for writes that bypass the buffer; ranges overlap, so records are overwritten.
        const uint64_t pages = 1 + random_() % (random_() % 4 == 0 ? 300 : 20);
        if (random_() % 6 == 0) {
          writer.erase(address, address + pages * kPage);
          reference.erase(reference.lower_bound(address), reference.lower_bound(address + pages * kPage));
        } else {
          put(writer, reference, address, pages, random_() % 2 == 0);
        }
      }
      writer.finish();
    }
    version.commit({});
    history[number] = reference;
    ASSERT_TRUE(store_equals(image_.open_version(number), kStore, reference)) << "version " << number;
    if (number % 7 == 0) index = PageStoreReader(image_.open_version(number), kStore).take_index();
  }
  for (const auto& [number, expected] : history) {
    ASSERT_TRUE(store_equals(image_.open_version(number), kStore, expected)) << "version " << number;
  }
}

TEST_F(PageStoreTest, APageThatIsPutAgainInTheVersionIsOverwritten) {
  PageIndex index;
  Reference reference;
  VersionWriter version = image_.begin_version();
  PageStoreWriter writer(version, kStore, index);
  put(writer, reference, kBase, 1000, false);
  const uint64_t records = writer.records();
  EXPECT_EQ(records, 1000u);
  for (int round = 0; round < 50; ++round) put(writer, reference, kBase + random_() % 700 * kPage, 300, false);
  EXPECT_EQ(writer.records(), records);
  writer.finish();
  version.write_sealed("state.icp", "");
  version.commit({});
  EXPECT_TRUE(store_equals(image_.open_version(1), kStore, reference));
  EXPECT_THAT(image_.verify(1), testing::IsEmpty());
}

TEST_F(PageStoreTest, ZerosCostNothingOrCountAsAsked) {
  PageIndex index;
  VersionWriter version = image_.begin_version();
  PageStoreWriter writer(version, kStore, index);
  const std::vector<std::byte> zeros(64 * kPage);
  writer.put(kBase, zeros, true);
  EXPECT_EQ(writer.records(), 0u);
  writer.put(kBase, zeros, false);
  EXPECT_EQ(writer.records(), 64u);
  writer.put(kBase, zeros, true);
  EXPECT_EQ(index.pages(), 0u);
  // A page whose first word alone is zero is not a page of zeros.
  std::vector<std::byte> last(kPage);
  last.back() = std::byte{1};
  writer.put(kBase, last, true);
  EXPECT_EQ(index.pages(), 1u);
}

TEST_F(PageStoreTest, NoPageNoPageFile) {
  PageIndex index;
  Reference reference;
  for (int number = 1; number <= 2; ++number) {
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index);
    if (number == 1) put(writer, reference, kBase, 10, true);
    writer.finish();
    version.commit({});
  }
  EXPECT_FALSE(std::filesystem::exists(temp_ / "1.0/v000002/n0/task_mm_100.2.bin"));
  EXPECT_EQ(std::filesystem::file_size(temp_ / "1.0/v000002/n0/task_mm_100.2.idx"), 80u);
  EXPECT_TRUE(store_equals(image_.open_version(2), kStore, reference));
}

TEST_F(PageStoreTest, RefusesWhatMakesNoSense) {
  PageIndex index;
  VersionWriter version = image_.begin_version();
  EXPECT_THROW(PageStoreWriter(version, "../x", index), Error);
  EXPECT_THROW(PageStoreWriter(version, "", index), Error);
  PageStoreWriter writer(version, kStore, index);
  const std::vector<std::byte> page(kPage);
  EXPECT_THROW(writer.put(1, page, true), Error);
  EXPECT_THROW(writer.put(1ull << 48, page, true), Error);
  EXPECT_THROW(writer.put(0, std::span(page).first(100), true), Error);
  writer.put(0, page, false);
  EXPECT_THROW(version.commit({}), Error) << "a file that was not finished";
}

TEST_F(PageStoreTest, AnAbandonedVersionLeavesTheLastOneWhole) {
  PageIndex index;
  Reference reference, other;
  {
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index);
    put(writer, reference, kBase, 500, true);
    writer.finish();
    version.write_sealed("state.icp", "");
    version.commit({});
  }
  {
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index);
    put(writer, other, kBase, 500, true);
    writer.finish();
  }
  EXPECT_EQ(image_.latest(), 1u);
  EXPECT_TRUE(store_equals(image_.open_version(1), kStore, reference));
  EXPECT_THAT(image_.verify(1), testing::IsEmpty());
  // The index now describes a version that does not exist.
  VersionWriter version = image_.begin_version();
  EXPECT_EQ(version.version(), 2u);
  EXPECT_THROW(PageStoreWriter(version, kStore, index), Error);
}

TEST_F(PageStoreTest, AVersionThatWasRemovedIsNotBuiltUpon) {
  PageIndex index;
  Reference reference;
  VersionWriter first = image_.begin_version();
  {
    PageStoreWriter writer(first, kStore, index);
    put(writer, reference, kBase, 5, false);
    writer.finish();
    first.commit({});
  }
  VersionWriter second = image_.begin_version();
  std::filesystem::remove_all(temp_ / "1.0/v000001");
  PageStoreWriter writer(second, kStore, index);
  EXPECT_THROW(writer.finish(), Error);
}

TEST_F(PageStoreTest, PagesWithTheirOldContentAreNotStoredAgain) {
  PageIndex index;
  PageHashes hashes;
  Reference reference;
  const auto take = [&](PageHashes* known, uint64_t pages) {
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index, known);
    for (uint64_t i = 0; i < pages; ++i) {
      // Every fourth page changes; all are written, by twos, and the last twice.
      const uint64_t seed = i % 4 == 0 ? version.version() * 1000 + i + 1 : i + 1;
      reference[kBase + i * kPage] = seed;
      writer.put(kBase + i * kPage, page_of(i == pages - 1 ? 99 : seed), true);
      if (i == pages - 1) writer.put(kBase + i * kPage, page_of(seed), true);
    }
    writer.finish();
    version.commit({});
    return writer.records();
  };
  EXPECT_EQ(take(&hashes, 40), 40u);
  EXPECT_EQ(take(&hashes, 40), 10u + 1u);
  EXPECT_TRUE(store_equals(image_.open_version(2), kStore, reference));
  // What the page files say is as good as what was seen.
  PageHashes loaded;
  PageStoreReader(image_.open_version(2), kStore).load_hashes(loaded);
  EXPECT_EQ(take(&loaded, 40), 10u + 1u);
  EXPECT_TRUE(store_equals(image_.open_version(3), kStore, reference));
  EXPECT_EQ(take(nullptr, 40), 40u);
  // Discarded and written again with the same: it has to be stored, for the index has lost it.
  VersionWriter version = image_.begin_version();
  PageStoreWriter writer(version, kStore, index, &loaded);
  writer.erase(kBase, kBase + kPage);
  writer.put(kBase, page_of(reference.at(kBase)), true);
  EXPECT_EQ(writer.records(), 1u);
}

TEST_F(PageStoreTest, CompressedPagesComeBackWhateverIsWrittenTwice) {
  for (const Compression compression : {Compression::kZstd, Compression::kLz4}) {
    PageIndex index;
    Reference reference;
    uint32_t last = 0;
    for (int round = 0; round < 6; ++round) {
      VersionWriter version = image_.begin_version();
      version.set_compression(round % 3 == 2 ? Compression::kNone : compression);
      const std::string store = fmt::format("{}_{}", kStore, to_string(compression));
      PageStoreWriter writer(version, store, index);
      for (int i = 0; i < 700; ++i) {
        writer.set_compressing(i % 50 != 7);
        const uint64_t at = kBase + random_() % 900 * kPage, seed = random_() % 5;
        writer.put(at, page_of(seed), true);
        if (seed == 0) reference.erase(at);
        if (seed != 0) reference[at] = seed;
      }
      writer.finish();
      version.commit({});
      last = version.version();
      ASSERT_TRUE(store_equals(image_.open_version(last), store, reference)) << round;
      index = PageStoreReader(image_.open_version(last), store).take_index();
    }
  }
}

TEST_F(PageStoreTest, ReadsWithFewerDescriptorsThanFiles) {
  PageIndex index;
  Reference reference;
  for (int number = 1; number <= 40; ++number) {
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index);
    for (uint64_t i = 0; i < 5; ++i) put(writer, reference, kBase + random_() % 64 * kPage, 1, false);
    writer.finish();
    version.commit({});
  }
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit few{48, old.rlim_max};  // the reader takes a quarter
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  EXPECT_TRUE(store_equals(image_.open_version(40), kStore, reference));
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &old), 0);
}

// One thread's share of many pieces: mostly small ones that follow one another in memory, some large, some zeros.
class Share {
 public:
  Share(uint64_t address, uint64_t pages, std::mt19937_64& random) : bytes_(pages * kPage) {
    for (uint64_t i = 0; i < pages;) {
      const uint64_t length = std::min(pages - i, random() % 20 == 0 ? 100 + random() % 200 : 1 + random() % 4);
      const uint64_t seed = random() % 5 == 0 ? 0 : random() | 1;
      for (uint64_t k = i; k < i + length; ++k) {
        const auto page = page_of(seed == 0 ? 0 : seed + k);
        std::copy(page.begin(), page.end(), bytes_.begin() + static_cast<ptrdiff_t>(k * kPage));
        if (seed != 0) reference_[address + k * kPage] = seed + k;
      }
      pieces_.push_back({address + i * kPage, std::span(bytes_).subspan(i * kPage, length * kPage)});
      if (random() % 3 == 0) address += kPage;  // a page that is not written
      i += length;
    }
  }
  void put(PageStoreWriter& writer) const {
    for (size_t at = 0; at < pieces_.size(); at += 40)
      writer.put(std::span(pieces_).subspan(at, std::min<size_t>(40, pieces_.size() - at)), true);
  }
  // Brings what the store holds up to date.
  void note(Reference& reference) const {
    for (const Piece& piece : pieces_)
      reference.erase(reference.lower_bound(piece.address), reference.lower_bound(piece.address + piece.bytes.size()));
    reference.insert(reference_.begin(), reference_.end());
  }

 private:
  std::vector<std::byte> bytes_;
  std::vector<Piece> pieces_;
  Reference reference_;
};

TEST_F(PageStoreTest, ManyThreadsPutSideBySide) {
  constexpr uint64_t kThreads = 4, kPages = 2000;
  for (const bool dedup : {false, true}) {
    for (const Compression compression : {Compression::kNone, Compression::kZstd}) {
      PageIndex index;
      PageHashes hashes;
      Reference reference;
      for (int taken = 0; taken < 3; ++taken) {
        VersionWriter version = image_.begin_version();
        version.set_compression(compression);
        PageStoreWriter writer(version, kStore, index, dedup ? &hashes : nullptr);
        if (taken == 0) writer.erase(0, 1ull << 47);
        for (int round = 0; round < 3; ++round) {  // later ones overwrite records of this version
          std::vector<Share> shares;
          for (uint64_t i = 0; i < kThreads; ++i)
            shares.emplace_back(kBase + i * 2 * kPages * kPage + random_() % 100 * kPage, kPages, random_);
          std::vector<std::thread> threads;
          for (const Share& share : shares) threads.emplace_back([&] { share.put(writer); });
          for (std::thread& thread : threads) thread.join();
          for (const Share& share : shares) share.note(reference);
        }
        writer.finish();
        version.write_sealed("state.icp", "");
        version.commit({});
        ASSERT_TRUE(store_equals(image_.open_version(version.version()), kStore, reference))
            << to_string(compression) << ", version " << version.version();
        ASSERT_THAT(image_.verify(version.version()), testing::IsEmpty());
      }
    }
  }
}

// A page that changes while a large version is copied gets a new record, in a small one the old record.
TEST_F(PageStoreTest, LargeFilesAreOnlyAppendedTo) {
  const auto page = page_of(5), other = page_of(6);
  std::vector<std::byte> bytes;
  for (int i = 0; i < 4096; ++i) bytes.insert(bytes.end(), page.begin(), page.end());
  PageIndex index;
  VersionWriter version = image_.begin_version();
  PageStoreWriter writer(version, kStore, index);
  uint64_t end = kBase;
  const auto rewritten = [&](uint64_t address) {
    const uint64_t before = writer.records();
    writer.put(address, other, false);
    return writer.records() == before;
  };
  for (; writer.records() < PageFileWriter::kLargeFile; end += bytes.size()) {
    writer.put(end, bytes, false);
    if (end == kBase) {
      EXPECT_TRUE(rewritten(kBase + kPage));
    }
  }
  EXPECT_FALSE(rewritten(kBase + 2 * kPage));
  writer.finish();
  version.write_sealed("state.icp", "");
  version.commit({});
  PageStoreReader reader(image_.open_version(1), kStore);
  EXPECT_EQ(reader.index().pages(), (end - kBase) / kPage);
  std::vector<std::byte> found(kPage);
  for (const uint64_t i : {0, 1, 2, 3}) {
    reader.read(reader.index().find(kBase + i * kPage), 1, found);
    EXPECT_EQ(found, i == 1 || i == 2 ? other : page) << i;
  }
}

// Compressed blocks get their places in turn: nobody waits for the turn of one that failed, and all say why it did.
TEST_F(PageStoreTest, NobodyWaitsForAWriteThatFailed) {
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{5 << 20, old.rlim_max};
  std::atomic<int> failed = 0;
  {
    PageIndex index;
    VersionWriter version = image_.begin_version();
    version.set_compression(Compression::kZstd);
    PageStoreWriter writer(version, kStore, index);
    std::vector<Share> shares;
    for (uint64_t i = 0; i < 4; ++i) shares.emplace_back(kBase + (i << 30), 4000, random_);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    std::vector<std::thread> threads;
    for (const Share& share : shares) {
      threads.emplace_back([&] {
        try {
          share.put(writer);
        } catch (const Error& error) {
          failed += error.error_number() == EFBIG;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_THROW(writer.finish(), Error);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  }
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(failed, 4);
}

// There is a checksum for each 4096 hashes: damage to some concerns only the pages they are of.
TEST_F(PageStoreTest, HashesAreCheckedPieceByPiece) {
  constexpr uint64_t kPages = 9000;
  PageIndex index;
  Reference reference;
  VersionWriter version = image_.begin_version();
  PageStoreWriter writer(version, kStore, index);
  put(writer, reference, kBase, kPages, false);
  writer.finish();
  version.write_sealed("state.icp", "");
  version.commit({});
  ASSERT_THAT(image_.verify(1), testing::IsEmpty());

  const std::string path = temp_ / "1.0/v000001/n0/task_mm_100.1.bin";
  std::string content = read_file(path);
  content[(1 + kPages) * kPage + 8200 * 16] ^= 1;
  write_file(path, content);
  PageStoreReader reader(image_.open_version(1), kStore);
  std::vector<std::byte> page(kPage);
  for (const uint64_t record : {0, 4095, 4096, 8191}) EXPECT_NO_THROW(reader.read({1, record}, 1, page)) << record;
  for (const uint64_t record : {8192, 8200, 8999}) EXPECT_THROW(reader.read({1, record}, 1, page), Error) << record;
  EXPECT_EQ(image_.verify(1).size(), 1u);
}

// Writing fails at every place it can: RLIMIT_FSIZE stands in for a full disk.
TEST_F(PageStoreTest, AWriteThatFailsAnywhereLeavesTheLastVersionWhole) {
  Reference reference;
  {
    PageIndex index;
    VersionWriter version = image_.begin_version();
    PageStoreWriter writer(version, kStore, index);
    put(writer, reference, kBase, 400, true);
    writer.finish();
    version.commit({});
  }
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  int failed = 0;
  for (uint64_t limit = 0; limit < 2 << 20; limit += limit < 500 ? 20 : 100000) {
    PageIndex index = PageStoreReader(image_.open_version(1), kStore).take_index();
    const rlimit small{limit, old.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    try {
      VersionWriter version = image_.begin_version();
      PageStoreWriter writer(version, kStore, index);
      Reference other;
      put(writer, other, kBase, 400, true);
      writer.finish();
      version.write_sealed("state.icp", std::string(1000, 'x'));
    } catch (const Error& error) {
      ++failed;
      EXPECT_EQ(error.error_number(), EFBIG);
      EXPECT_NE(std::string(error.what()).find(temp_.path()), std::string::npos) << error.what();
    }
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
    ASSERT_EQ(image_.latest(), 1u);
  }
  std::signal(SIGXFSZ, handler);
  EXPECT_GT(failed, 30);
  EXPECT_TRUE(store_equals(image_.open_version(1), kStore, reference));
  EXPECT_EQ(test::entries_but_locks(temp_ / "1.0"), 1) << "leftovers";
}

TEST(PageStoreOnAFullDisk, SaysSoAndLeavesTheLastVersionWhole) {
  test::TempDir temp;
  if (::mount("none", temp.path().c_str(), "tmpfs", 0, "size=1m,mode=0700") != 0) {
    GTEST_SKIP() << "a file system of its own cannot be mounted: " << errno_text(errno);
  }
  {
    ImageDir image = ImageDir::create(temp / "1.0", test::own_identity(), "n0");
    PageIndex index;
    std::vector<std::byte> bytes;
    for (uint64_t i = 1; i <= 64; ++i) {
      const auto page = page_of(i);
      bytes.insert(bytes.end(), page.begin(), page.end());
    }
    VersionWriter first = image.begin_version();
    PageStoreWriter writer(first, kStore, index);
    writer.put(kBase, bytes, true);
    writer.finish();
    first.write_sealed("state.icp", "");
    first.commit({});
    try {
      VersionWriter second = image.begin_version();
      PageStoreWriter large(second, kStore, index);
      for (uint64_t i = 0; i < 100; ++i) large.put(kBase + (1 + i) * bytes.size(), bytes, true);
      large.finish();
      FAIL() << "a full disk was not noticed";
    } catch (const Error& error) {
      EXPECT_EQ(error.error_number(), ENOSPC);
      EXPECT_NE(std::string(error.what()).find("No space left"), std::string::npos) << error.what();
    }
    EXPECT_EQ(image.latest(), 1u);
    EXPECT_THAT(image.verify(1), testing::IsEmpty());
    EXPECT_EQ(test::entries_but_locks(temp / "1.0"), 1) << "leftovers";
  }
  ::umount2(temp.path().c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace icp
