// SPDX-License-Identifier: GPL-2.0-or-later
// Chains of versions: pruned, folded, and what a crash in the middle of either leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "engine/image/page_index_file.h"
#include "tests/killed_at.h"
#include "tests/unit/image_test_support.h"

namespace icp {
namespace {

using test::killed_at;
using test::kPage;
using test::page_of;
using test::Reference;

constexpr char kStore[] = "task_mm_100";
constexpr char kOther[] = "object_1";
constexpr uint64_t kBase = 0x7f0000000000;

// Takes versions as a session does: two stores, with indexes that live from version to version.
class Job {
 public:
  explicit Job(std::string root) : image_(ImageDir::create(std::move(root), test::own_identity(), "n0")) {}

  // Rewrites `count` pages of `pages`, and all of them in the first version.
  uint32_t take(std::mt19937_64& random, uint64_t pages, uint64_t count, Compression compression = Compression::kNone) {
    VersionWriter version = image_.begin_version();
    version.set_compression(compression);
    follow();
    const bool first = last_ == 0;
    pb::Capsule capsule;
    for (auto* store : {&first_, &second_}) {
      PageStoreWriter writer(version, store->name, store->index);
      for (uint64_t i = 0; i < (first ? pages : count); ++i) {
        const uint64_t at = kBase + (first ? i : random() % pages) * kPage;
        const uint64_t seed = random() % 9 == 0 ? 0 : random() | 1;
        writer.put(at, page_of(seed), true);
        if (seed == 0) store->reference.erase(at);
        if (seed != 0) store->reference[at] = seed;
      }
      writer.finish();
      capsule.add_processes()->mutable_memory()->set_index(store->name);
    }
    version.write_sealed("state.icp", capsule.SerializeAsString());
    version.commit({});
    last_ = version.version();
    return last_;
  }

  // Whether a version has what the job wrote last.
  bool is_in(uint32_t version) const {
    const VersionReader reader = image_.open_version(version);
    return test::store_equals(reader, kStore, first_.reference) &&
           test::store_equals(reader, kOther, second_.reference);
  }
  const ImageDir& image() const { return image_; }
  int folds_followed() const { return folds_; }

 private:
  struct Store {
    const char* name;
    PageIndex index = {};
    Reference reference = {};
  };
  void follow() {
    const uint32_t latest = image_.latest().value_or(0);
    if (latest == last_) return;
    const VersionReader reader = image_.open_version(latest);
    ASSERT_THAT(reader.manifest().folded_from(), testing::Contains(last_));
    for (auto* store : {&first_, &second_}) store->index = PageIndexFile::load(reader, store->name);
    last_ = latest;
    ++folds_;
  }

  ImageDir image_;
  Store first_{kStore}, second_{kOther};
  uint32_t last_ = 0;
  int folds_ = 0;
};

std::vector<uint32_t> numbers(const ImageDir& image) {
  std::vector<uint32_t> found;
  for (const VersionInfo& info : image.versions()) {
    EXPECT_EQ(info.error, "");
    found.push_back(info.version);
  }
  return found;
}

std::vector<std::string> files_below(const std::string& root) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    const std::string path = entry.path().string().substr(root.size() + 1);
    if (!path.ends_with(".lock")) found.push_back(path);
  }
  std::sort(found.begin(), found.end());
  return found;
}

TEST(Chain, PruneKeepsWhatTheNewestNeed) {
  test::TempDir temp;
  std::mt19937_64 random(1);
  Job job(temp / "1.0");
  for (int i = 0; i < 6; ++i) job.take(random, 600, 20);
  const uint64_t before = files_below(temp / "1.0").size();
  const ChainResult result = job.image().prune(2);
  EXPECT_EQ(result.removed, (std::vector<uint32_t>{1, 2, 3, 4}));
  EXPECT_GT(result.bytes_freed, 0u);
  EXPECT_LT(files_below(temp / "1.0").size(), before);
  EXPECT_EQ(numbers(job.image()), (std::vector<uint32_t>{5, 6}));
  EXPECT_THAT(job.image().verify(5), testing::IsEmpty());
  EXPECT_TRUE(job.is_in(6));
  EXPECT_FALSE(job.image().has_version(3));
  EXPECT_THROW(job.image().open_version(3), Error);
  // It goes on, incrementally, and a version number is never used twice.
  EXPECT_EQ(job.take(random, 600, 20), 7u);
  EXPECT_TRUE(job.is_in(7));
  EXPECT_EQ(job.image().open_version(7).manifest().needs(0), 1u);
}

TEST(Chain, PruneRemovesPageFilesThatNobodyNames) {
  test::TempDir temp;
  std::mt19937_64 random(2);
  Job job(temp / "1.0");
  for (int i = 0; i < 4; ++i) job.take(random, 40, 4000);  // all is rewritten each time
  job.image().prune(1);
  EXPECT_THAT(files_below(temp / "1.0"),
              testing::ElementsAre("v000004", "v000004/n0", "v000004/n0/manifest.icp", "v000004/n0/object_1.4.bin",
                                   "v000004/n0/object_1.4.idx", "v000004/n0/state.icp", "v000004/n0/task_mm_100.4.bin",
                                   "v000004/n0/task_mm_100.4.idx"));
  EXPECT_TRUE(job.is_in(4));
}

TEST(Chain, PruneLeavesDamagedVersionsAloneAndCountsOnlyWholeOnes) {
  test::TempDir temp;
  std::mt19937_64 random(3);
  Job job(temp / "1.0");
  for (int i = 0; i < 3; ++i) job.take(random, 100, 10);
  std::filesystem::remove(temp / "1.0/v000003/n0/manifest.icp");
  EXPECT_EQ(job.image().prune(1).removed, (std::vector<uint32_t>{1}));
  EXPECT_TRUE(std::filesystem::exists(temp / "1.0/v000003/n0/state.icp"));
  EXPECT_THAT(job.image().verify(2), testing::IsEmpty());
}

TEST(Chain, NothingIsRemovedWhileSomebodyReads) {
  test::TempDir temp;
  std::mt19937_64 random(4);
  Job job(temp / "1.0");
  for (int i = 0; i < 3; ++i) job.take(random, 100, 10);
  {
    const VersionReader reader = job.image().open_version(1);
    EXPECT_THROW(job.image().prune(1), Error);
    const ChainResult folded = job.image().compact(1);
    EXPECT_EQ(folded.version, 4u);
    EXPECT_NE(folded.left, "");
    EXPECT_EQ(numbers(job.image()), (std::vector<uint32_t>{1, 2, 3, 4}));
  }
  EXPECT_EQ(job.image().prune(1).removed, (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_TRUE(job.is_in(4));
}

TEST(Chain, CompactMakesOneVersionOfAll) {
  for (const Compression compression : {Compression::kNone, Compression::kZstd, Compression::kLz4}) {
    test::TempDir temp;
    std::mt19937_64 random(5);
    Job job(temp / "1.0");
    for (int i = 0; i < 8; ++i) job.take(random, 1500, 60, i % 2 == 0 ? Compression::kNone : compression);
    const ChainResult result = job.image().compact(1, compression);
    EXPECT_EQ(result.version, 9u);
    EXPECT_EQ(numbers(job.image()), (std::vector<uint32_t>{9}));
    EXPECT_EQ(files_below(temp / "1.0").size(), 8u);
    EXPECT_TRUE(job.is_in(9));
    EXPECT_THAT(job.image().verify(9), testing::IsEmpty());
    const VersionReader folded = job.image().open_version(9);
    EXPECT_EQ(folded.manifest().needs_size(), 1);
    EXPECT_EQ(folded.read_state().processes_size(), 2);
    EXPECT_THAT(folded.manifest().folded_from(), testing::ElementsAre(8u));
  }
}

TEST(Chain, CompactOfASingleVersionDoesNothing) {
  test::TempDir temp;
  std::mt19937_64 random(6);
  Job job(temp / "1.0");
  job.take(random, 100, 10);
  EXPECT_EQ(job.image().compact(1).version, 0u);
  EXPECT_TRUE(job.is_in(1));
}

// Versions are taken as fast as they can be while others fold the chain, again and again.
TEST(Chain, JobGoesOnWhileItIsCompacted) {
  test::TempDir temp;
  std::mt19937_64 random(7);
  Job job(temp / "1.0");
  job.take(random, 400, 20);
  job.take(random, 400, 20);
  std::atomic<bool> stop = false;
  std::atomic<int> folds = 0;
  std::string failure;
  std::thread other([&] {
    try {
      const ImageDir image = ImageDir::open(temp / "1.0", test::own_identity(), "n0");
      while (!stop) folds += image.compact(1).version != 0;
    } catch (const std::exception& error) {
      failure = error.what();
    }
  });
  std::string taking;
  try {
    for (int i = 0; i < 400 && (i < 30 || folds < 5 || job.folds_followed() < 1); ++i) {
      job.take(random, 400, 20);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // a job does not take them back to back either
    }
  } catch (const std::exception& error) {
    taking = error.what();
  }
  EXPECT_EQ(taking, "");
  stop = true;
  other.join();
  EXPECT_EQ(failure, "");
  EXPECT_GE(job.folds_followed(), 1);
  EXPECT_TRUE(job.is_in(job.image().latest().value()));
  EXPECT_THAT(job.image().verify(job.image().latest().value()), testing::IsEmpty());
}

// Whoever looks while a job prunes (`icp list` of one with --keep) finds versions that are whole, or does not find
// them.
TEST(Chain, VersionsAreListedWhileOthersArePruned) {
  test::TempDir temp;
  std::mt19937_64 random(8);
  Job job(temp / "1.0");
  job.take(random, 40, 4);
  std::atomic<bool> done = false;
  std::atomic<int> pruned = 0;
  std::thread other([&] {
    while (!done) {
      job.take(random, 40, 4);
      try {
        pruned += static_cast<int>(job.image().prune(1).removed.size());
      } catch (const Error&) {
        continue;  // somebody reads
      }
    }
  });
  try {
    for (int looks = 0; looks < 200 || pruned < 50; ++looks) {
      if (looks == 30'000) throw std::runtime_error("nothing is ever pruned");
      EXPECT_THAT(ImageDir::nodes_of(temp / "1.0", test::own_identity()), testing::ElementsAre("n0"));
      EXPECT_FALSE(numbers(job.image()).empty());
      std::this_thread::sleep_for(std::chrono::milliseconds(4));
    }
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
  }
  done = true;
  other.join();
}

struct Crash {
  const char* name;
  std::function<void(const ImageDir&)> work;
  std::vector<uint32_t> left;  // versions once it has been done
};

void PrintTo(const Crash& crash, std::ostream* out) { *out << crash.name; }

class ChainCrash : public testing::TestWithParam<Crash> {};

// At every system call in turn: what is listed is whole, the latest content is there, and doing it again ends as if
// nothing had been.
TEST_P(ChainCrash, LosesNothingAtAnySystemCall) {
  test::TempDir temp;
  std::mt19937_64 random(8);
  Job job(temp / "1.0");
  for (int i = 0; i < 4; ++i) job.take(random, 12, 3);
  bool finished = false;
  int calls = 0;
  for (int call = 1; !finished; ++call) {
    const std::string root = temp / "copy";
    std::filesystem::remove_all(root);
    std::filesystem::copy(temp / "1.0", root, std::filesystem::copy_options::recursive);
    finished = killed_at(call, [&] { GetParam().work(ImageDir::open(root, test::own_identity(), "n0")); });
    calls = call;
    const ImageDir image = ImageDir::open(root, test::own_identity(), "n0");
    for (const uint32_t version : numbers(image))
      ASSERT_THAT(image.verify(version), testing::IsEmpty()) << "call " << call;
    const uint32_t latest = image.latest().value();
    ASSERT_GE(latest, 4u);
    if (latest > 4) {
      ASSERT_THAT(image.open_version(latest).manifest().folded_from(), testing::Contains(4u));
    }
    const VersionReader reader = image.open_version(latest);
    ASSERT_EQ(test::read_store(reader, kStore), test::read_store(job.image().open_version(4), kStore))
        << "call " << call;
    ASSERT_EQ(test::read_store(reader, kOther), test::read_store(job.image().open_version(4), kOther))
        << "call " << call;
  }
  EXPECT_GT(calls, 50);
  const ImageDir image = ImageDir::open(temp / "copy", test::own_identity(), "n0");
  EXPECT_EQ(numbers(image), GetParam().left);
}

// The same once more, but each crash is followed by a whole run, which has to clean up after it.
TEST_P(ChainCrash, IsMadeUpForByTheNextRun) {
  test::TempDir temp;
  std::mt19937_64 random(9);
  Job job(temp / "1.0");
  for (int i = 0; i < 4; ++i) job.take(random, 12, 3);
  std::vector<std::string> expected;
  bool finished = false;
  for (int call = 1; !finished; call += 11) {
    const std::string root = temp / "copy";
    std::filesystem::remove_all(root);
    std::filesystem::copy(temp / "1.0", root, std::filesystem::copy_options::recursive);
    finished = killed_at(call, [&] { GetParam().work(ImageDir::open(root, test::own_identity(), "n0")); });
    const ImageDir image = ImageDir::open(root, test::own_identity(), "n0");
    GetParam().work(image);
    ASSERT_EQ(numbers(image).size(), GetParam().left.size()) << "call " << call;
    const std::vector<std::string> files = files_below(root);
    if (expected.empty()) expected = files;
    ASSERT_EQ(files.size(), expected.size()) << "call " << call << testing::PrintToString(files);
    ASSERT_THAT(image.verify(image.latest().value()), testing::IsEmpty());
  }
}

const Crash kCrashes[] = {
    {"PruneToOne", [](const ImageDir& image) { image.prune(1); }, {4}},
    {"PruneToTwo", [](const ImageDir& image) { image.prune(2); }, {3, 4}},
    {"Compact", [](const ImageDir& image) { image.compact(1); }, {5}},
    {"CompactAndKeep", [](const ImageDir& image) { image.compact(2, Compression::kZstd); }, {4, 5}},
};
INSTANTIATE_TEST_SUITE_P(Every, ChainCrash, testing::ValuesIn(kCrashes),
                         [](const auto& kind) { return std::string(kind.param.name); });

// A version being taken, killed at every system call: it is there or not.
TEST(Chain, VersionIsTakenWholeOrNotAtAll) {
  test::TempDir temp;
  std::mt19937_64 random(10);
  Job job(temp / "1.0");
  job.take(random, 12, 3);
  bool finished = false;
  int whole = 0, not_there = 0;
  for (int call = 1; !finished; ++call) {
    const std::string root = temp / "copy";
    std::filesystem::remove_all(root);
    std::filesystem::copy(temp / "1.0", root, std::filesystem::copy_options::recursive);
    finished = killed_at(call, [&] {
      ImageDir image = ImageDir::open(root, test::own_identity(), "n0");
      PageIndex index = PageIndexFile::load(image.open_version(1), kStore);
      VersionWriter version = image.begin_version();
      PageStoreWriter writer(version, kStore, index);
      writer.put(kBase, page_of(77), true);
      writer.finish();
      version.write_sealed("state.icp", pb::Capsule().SerializeAsString());
      version.commit({});
    });
    const ImageDir image = ImageDir::open(root, test::own_identity(), "n0");
    for (const uint32_t version : numbers(image))
      ASSERT_THAT(image.verify(version), testing::IsEmpty()) << "call " << call;
    const uint32_t latest = image.latest().value();
    (latest == 1 ? not_there : whole) += 1;
    if (latest == 2) {
      ASSERT_EQ(test::read_store(image.open_version(2), kStore).at(kBase), page_of(77));
    }
  }
  EXPECT_GT(not_there, 30);
  EXPECT_GT(whole, 1);
}

}  // namespace
}  // namespace icp
