// SPDX-License-Identifier: GPL-2.0-or-later
// What others have named does not forge a line of a log, nor speak to a terminal.
#include "engine/base/printable.h"

#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/ostream_sink.h>

#include <sstream>

#include "coordinator/log_format.h"

namespace icp {
namespace {

TEST(Printable, KeepsTextAndReplacesWhatActs) {
  EXPECT_EQ(printable("plain /path, 100%"), "plain /path, 100%");
  EXPECT_EQ(printable("Gr\xc3\xb6\xc3\x9f"
                      "e \xe2\x82\xac \xf0\x9f\x98\x80"),
            "Gr\xc3\xb6\xc3\x9f"
            "e \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(printable(std::string_view("a\nb\rc\0d\x1b[2J\x7f", 12)), "a?b?c?d?[2J?");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J"),
            "??2J")
      << "a control sequence introducer of one character";
  EXPECT_EQ(printable("\x9b"
                      "2J"),
            "?2J")
      << "no UTF-8";
  EXPECT_EQ(printable("\xc0\x8a"), "??") << "a line break in a form too long";
  EXPECT_EQ(printable("\xe2\x80\xa8|\xe2\x80\xae|\xe2\x81\xa6"), "???|???|???") << "line separator, text turned around";
  EXPECT_EQ(printable("cut \xe2\x82"), "cut ??");
  EXPECT_EQ(printable("\xed\xa0\x80"), "???") << "half of a pair";
}

TEST(Printable, ALogHasOneLineForEachMessage) {
  std::ostringstream out;
  spdlog::logger log("test", std::make_shared<spdlog::sinks::ostream_sink_st>(out));
  log.set_formatter(std::make_unique<PrintableFormatter>("%l " + in_pattern("n1%v\n 7.0") + ": %v"));
  log.info("cannot open {}", "/tmp/x\n2026-01-01T00:00:00.000 error n1 8.0: forged\x1b[31m");
  log.clone("other")->info("second");
  EXPECT_EQ(out.str(),
            "info n1%v? 7.0: cannot open /tmp/x?2026-01-01T00:00:00.000 error n1 8.0: forged?[31m\n"
            "info n1%v? 7.0: second\n");
}

}  // namespace
}  // namespace icp
