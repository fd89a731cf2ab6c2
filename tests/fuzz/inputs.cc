// SPDX-License-Identifier: GPL-2.0-or-later
// ..._inputs SEEDS COUNT: a fuzz target's entry point on each seed, and on COUNT changes of them from a fixed random
// start, with a limit of memory. ..._inputs --make SEEDS: writes the seeds.
#include "tests/fuzz/inputs.h"

#include <sys/resource.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr rlim_t kMostMemory = 1 << 30;  // bytes

void change(std::string& text, const std::vector<std::string>& others, std::minstd_rand& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  for (size_t changes = 1 + below(6); changes > 0; changes--) {
    const size_t at = below(text.size());
    switch (below(6)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random());
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ 1 << below(8));
        break;
      case 2:
        text.erase(at, below(8));
        break;
      case 3:
        text.insert(at, std::string(1 + below(9), static_cast<char>(below(2) == 0 ? 0xff : random())));
        break;
      case 4:
        text += others[below(others.size())];
        break;
      default:
        text.insert(at, text.substr(below(text.size()), below(64)));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fputs("usage: ..._inputs SEEDS COUNT | ..._inputs --make SEEDS\n", stderr);
    return 2;
  }
  if (std::string(argv[1]) == "--make") {
    std::filesystem::create_directories(argv[2]);
    for (const auto& [name, text] : fuzz_seeds())
      std::ofstream(std::string(argv[2]) + "/" + name, std::ios::binary) << text;
    return 0;
  }
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  if (inputs.empty()) {
    std::fprintf(stderr, "there are no seeds in %s\n", argv[1]);
    return 1;
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they take terabytes of addresses
  const rlimit most{kMostMemory, kMostMemory};
  setrlimit(RLIMIT_AS, &most);
#endif
  const auto run = [](const std::string& text) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  for (const std::string& text : inputs) run(text);
  std::minstd_rand random(1);
  const unsigned long count = std::strtoul(argv[2], nullptr, 10);
  for (unsigned long i = 0; i < count; i++) {
    std::string text = inputs[random() % inputs.size()];
    change(text, inputs, random);
    run(text);
  }
  std::printf("%zu seeds, %lu changed inputs\n", inputs.size(), count);
  return 0;
}
