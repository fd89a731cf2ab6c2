// SPDX-License-Identifier: GPL-2.0-or-later
// Multicast groups that an internet socket has joined: capture and restore.
#pragma once

#include <string>
#include <vector>

#include "engine/files/inet_address.h"
#include "engine/image/image.pb.h"

namespace icp {

using MulticastGroups = google::protobuf::RepeatedPtrField<pb::MulticastGroup>;

// The groups that a socket may be a member of: those that the interfaces of this network namespace listen to. The
// kernel does not list a socket's, but tells of a given one.
class MulticastSurvey {
 public:
  MulticastSurvey();
  void capture(int fd, bool v6, MulticastGroups& groups) const;

 private:
  struct Membership {
    uint32_t interface;
    std::string group;  // as InetAddress::ip
  };
  std::vector<Membership> known_;
};

// Joins them, by the interface's name. One that cannot be joined is said in a warning that names the socket.
void restore_multicast(const MulticastGroups& groups, int fd, const std::string& name);

}  // namespace icp
