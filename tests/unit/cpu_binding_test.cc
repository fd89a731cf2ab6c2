// SPDX-License-Identifier: GPL-2.0-or-later
// Processors of a restored thread: those of the new step, chosen among as before.
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "engine/process/scheduling.h"

namespace icp {
namespace {

cpu_set_t cpus(std::initializer_list<int> numbers) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int number : numbers) CPU_SET(number, &set);
  return set;
}

std::string bytes(std::initializer_list<int> numbers) {
  const cpu_set_t set = cpus(numbers);
  return {reinterpret_cast<const char*>(&set), sizeof set};
}

void expect(const cpu_set_t& set, std::initializer_list<int> numbers) {
  const cpu_set_t wanted = cpus(numbers);
  EXPECT_TRUE(CPU_EQUAL(&set, &wanted));
}

TEST(CpuBinding, WhatSlurmGaveBecomesWhatSlurmGives) {
  expect(new_affinity(cpus({0}), {bytes({0}), bytes({1})}), {1});
  expect(new_affinity(cpus({0, 1}), {bytes({0, 1}), bytes({0, 1, 2, 3})}), {0, 1, 2, 3});
  expect(new_affinity(cpus({0, 1}), {bytes({0, 1}), bytes({7})}), {7});
}

TEST(CpuBinding, AChoiceOfTheProgramIsMadeAgain) {
  expect(new_affinity(cpus({1}), {bytes({0, 1}), bytes({4, 6})}), {6});
  expect(new_affinity(cpus({3}), {bytes({0, 1, 2, 3}), bytes({0, 1, 2, 3})}), {3});
  // Fewer than there were: whatever the step has.
  expect(new_affinity(cpus({3}), {bytes({0, 1, 2, 3}), bytes({4, 6})}), {4, 6});
}

TEST(CpuBinding, WithoutKnowingWhatSlurmGaveNothingOutsideTheStepIsUsed) {
  expect(new_affinity(cpus({1}), {"", bytes({0, 1})}), {1});
  expect(new_affinity(cpus({1}), {"", bytes({2})}), {2});
  expect(new_affinity(cpus({1, 2}), {"", bytes({2, 3})}), {2, 3});
}

TEST(CpuBinding, AProcessHasThatOfItsTask) {
  pb::Capsule capsule;
  const auto add = [&](uint32_t pid, uint32_t parent) {
    pb::Process& process = *capsule.add_processes();
    process.set_pid(pid);
    process.set_ppid(parent);
  };
  const auto task = [&](uint32_t pid, int rank) {
    pb::Task& made = *capsule.add_tasks();
    made.set_pid(pid);
    made.set_rank(rank);
  };
  add(2, 1), add(3, 1), add(4, 3), add(5, 4), add(6, 1);
  task(2, 0), task(3, 1);
  const auto bindings = bindings_of(capsule, {{0, "zero"}, {1, "one"}});
  EXPECT_EQ(bindings.at(2).here, "zero");
  EXPECT_EQ(bindings.at(5).here, "one");
  EXPECT_EQ(bindings.at(6).here, "zero");  // a daemon of either
  EXPECT_TRUE(bindings_of(capsule, {}).empty());
}

}  // namespace
}  // namespace icp
