// SPDX-License-Identifier: GPL-2.0-or-later
// --map-path: its grammar, and which paths of an image are others then.
#include <gtest/gtest.h>

#include "coordinator/map_path.h"
#include "engine/base/error.h"
#include "engine/restore/map_paths.h"

namespace icp {
namespace {

TEST(MapPath, Grammar) {
  EXPECT_EQ(parse_map_path("/a=/b"), (PathMap{{"/a", "/b"}}));
  EXPECT_EQ(parse_map_path("/a//=/b/:/=/c d"), (PathMap{{"/a", "/b"}, {"/", "/c d"}}));
  EXPECT_EQ(parse_map_path(""), PathMap{});
  for (const char* wrong : {"/a", "a=/b", "/a=b", "=/b", "/a=", "/a=/b:", ":/a=/b", "/a=/b=/c", "/a=/b:/a=/c",
                            "/a=/b:/a/=/c", "/a=/b\n/c", "=", ":"})
    EXPECT_FALSE(parse_map_path(wrong)) << wrong;
}

TEST(PathMap, TheLongestCountsAtBordersOfComponents) {
  const PathMap map{{"/a", "/x"}, {"/a/b", "/y/z"}, {"/x", "/never"}};
  EXPECT_EQ(mapped_path(map, "/a"), "/x");
  EXPECT_EQ(mapped_path(map, "/a/c"), "/x/c");
  EXPECT_EQ(mapped_path(map, "/a/b"), "/y/z");
  EXPECT_EQ(mapped_path(map, "/a/b/c"), "/y/z/c");
  EXPECT_EQ(mapped_path(map, "/a/bc"), "/x/bc");
  EXPECT_EQ(mapped_path(map, "/ab"), "/ab");
  EXPECT_EQ(mapped_path(map, "a/b"), "a/b");
  EXPECT_EQ(mapped_path(map, ""), "");
  EXPECT_EQ(mapped_path(map, std::string("\0/a", 3)), std::string("\0/a", 3));
  EXPECT_EQ(mapped_path({{"/", "/top"}}, "/a"), "/top/a");
  EXPECT_EQ(mapped_path({{"/", "/top"}}, "/"), "/top");
  EXPECT_EQ(mapped_path({{"/a", "/"}}, "/a/b"), "/b");
  EXPECT_EQ(mapped_path({{"/a", "/"}}, "/a"), "/");
}

TEST(PathMap, AllKindsOfPaths) {
  pb::Capsule capsule;
  pb::Process& process = *capsule.add_processes();
  process.set_cwd("/old/work");
  process.set_root("/");
  process.mutable_memory()->mutable_exe()->set_path("/old/bin/program");
  process.mutable_memory()->add_mappings()->mutable_file()->set_path("/old/data");
  process.add_threads()->mutable_directories()->set_cwd("/old");
  capsule.add_files()->mutable_identity()->set_path("/old/log");
  capsule.add_files()->mutable_pipe()->set_fifo_path("/old/fifo");
  pb::UnixSocket& socket = *capsule.add_files()->mutable_unix_socket();
  socket.set_name("/old/socket");
  socket.set_peer_name(std::string("\0/old", 5));
  socket.add_queue_senders("/old/sender");
  pb::UnixSocket& relative = *capsule.add_files()->mutable_unix_socket();
  relative.set_name("here");
  relative.set_place("/old/here");
  capsule.add_files()->mutable_inotify()->add_watches()->set_path("/old/watched");
  pb::MemoryObject& object = *capsule.add_objects();
  object.set_kind(pb::MemoryObject::MAPPED_FILE);
  object.set_path("/old/shared");
  object.add_links("/old/link");
  pb::MemoryObject& memfd = *capsule.add_objects();
  memfd.set_kind(pb::MemoryObject::MEMFD);
  memfd.set_path("/old");
  map_paths(capsule, {{"/old", "/new"}, {"/", "/never-for-a-root"}});
  EXPECT_EQ(process.cwd(), "/new/work");
  EXPECT_EQ(process.root(), "/");
  EXPECT_EQ(process.memory().exe().path(), "/new/bin/program");
  EXPECT_EQ(process.memory().mappings(0).file().path(), "/new/data");
  EXPECT_EQ(process.threads(0).directories().cwd(), "/new");
  EXPECT_EQ(capsule.files(0).identity().path(), "/new/log");
  EXPECT_EQ(capsule.files(1).pipe().fifo_path(), "/new/fifo");
  EXPECT_EQ(socket.name(), "/new/socket");
  EXPECT_EQ(socket.peer_name(), std::string("\0/old", 5));
  EXPECT_EQ(socket.queue_senders(0), "/new/sender");
  EXPECT_EQ(relative.place(), "/new/here");
  EXPECT_EQ(capsule.files(4).inotify().watches(0).path(), "/new/watched");
  EXPECT_EQ(object.path(), "/new/shared");
  EXPECT_EQ(object.links(0), "/new/link");
  EXPECT_EQ(memfd.path(), "/old");
}

TEST(PathMap, NamesOfSocketsThatCannotBe) {
  pb::Capsule capsule;
  pb::UnixSocket& socket = *capsule.add_files()->mutable_unix_socket();
  socket.set_name("/old/socket");
  EXPECT_THROW(map_paths(capsule, {{"/old", "/" + std::string(120, 'n')}}), Error);
  socket.set_name("dir/socket");
  socket.set_place("/old/dir/socket");
  EXPECT_THROW(map_paths(capsule, {{"/old/dir", "/elsewhere"}}), Error);
}

}  // namespace
}  // namespace icp
