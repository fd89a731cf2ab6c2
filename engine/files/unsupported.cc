// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/unsupported.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

#include <array>

#include "engine/base/error.h"
#include "engine/files/inet_address.h"

namespace icp {
namespace {

struct Refusal {
  std::string what, hint;
};

int socket_option(int fd, int name) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : 0;
}

// TCP and UDP have kinds of their own.
Refusal inet_socket(int fd) {
  const int protocol = socket_option(fd, SO_PROTOCOL), type = socket_option(fd, SO_TYPE);
  const std::string name = type == SOCK_RAW ? "raw IP socket" : fmt::format("socket of IP protocol {}", protocol);
  if (const auto remote = InetAddress::peer_of(fd)) {
    return {fmt::format("{} {} connected to {}", name, InetAddress::local_of(fd).text(), remote->text()),
            "close the connection before a checkpoint"};
  }
  return {fmt::format("{} bound to {}", name, InetAddress::local_of(fd).text()), "close it before a checkpoint"};
}

Refusal socket_refusal(int fd) {
  switch (const int domain = fd >= 0 ? socket_option(fd, SO_DOMAIN) : 0; domain) {
    case AF_INET:
    case AF_INET6:
      return inet_socket(fd);
    case AF_NETLINK:
      return {fmt::format("netlink socket of protocol {}", socket_option(fd, SO_PROTOCOL)),
              "close it before a checkpoint"};
    case AF_PACKET:
      return {"packet socket", "stop capturing packets before a checkpoint"};
    case AF_VSOCK:
      return {"vsock socket", "close it before a checkpoint"};
    case AF_ALG:
      return {"kernel crypto socket (AF_ALG)", "let the library use its own code instead"};
    default:
      return {fmt::format("socket of address family {}", domain), "close it before a checkpoint"};
  }
}

// What keeps MPI from using a network card behind the kernel's back.
constexpr std::string_view kTransportHint =
    "start the step with --checkpoint-mpi=tcp, or without Slurm with UCX_TLS=tcp,self,posix,sysv,cma FI_PROVIDER=tcp "
    "OMPI_MCA_pml=ob1";

Refusal anonymous_refusal(const std::string& target) {
  static constexpr std::array<std::array<std::string_view, 3>, 8> known = {{
      {"inotify", "inotify watches", "close the descriptor before a checkpoint; polling survives one"},
      {"[fanotify]", "fanotify watches", "close the descriptor before a checkpoint"},
      {"[io_uring]", "io_uring instance", "turn io_uring off in the program (many have an option or variable)"},
      {"[userfaultfd]", "userfaultfd",
       "let the program not handle its own page faults (libfabric: FI_MR_CACHE_MONITOR=disabled)"},
      {"[infiniband", "InfiniBand verbs object", kTransportHint},
      {"[perf_event]", "performance counter", "do not run the program under perf"},
      {"bpf", "BPF object", "close it before a checkpoint"},
      {"kvm", "virtual machine", "checkpoint the machine from inside of it"},
  }};
  const std::string_view name = std::string_view(target).substr(sizeof "anon_inode:" - 1);
  for (const auto& [key, what, hint] : known) {
    if (name.find(key) != std::string_view::npos) return {std::string(what), std::string(hint)};
  }
  return {fmt::format("kernel object {}", name), "close it before a checkpoint"};
}

bool is_network_card(const std::string& target) {
  return target.starts_with("/dev/infiniband/") || target.starts_with("/dev/hfi1") || target.starts_with("/dev/cxi");
}

Refusal device_refusal(const Description& description) {
  const dev_t rdev = description.stat.st_rdev;
  const unsigned number = ::major(rdev);
  const bool terminal = (number >= 136 && number <= 143) || number == 4 || number == 5 || number == 3;
  if (terminal) {
    return {fmt::format("terminal {}", description.target),
            "start with stdin and stdout redirected, or under icp run or srun"};
  }
  return {fmt::format("device {} ({}:{})", description.target, number, ::minor(rdev)),
          is_network_card(description.target) ? std::string(kTransportHint) : "close it before a checkpoint"};
}

class UnsupportedKind final : public FileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::KIND_NOT_SET; }

  bool recognises(FileScan&, Description&) const override { return true; }

  void check(FileScan& scan, Descriptions descriptions) const override {
    for (Description* description : descriptions) {
      const Refusal refusal = reason(scan, *description);
      scan.refuse(*description, refusal.what, refusal.hint);
    }
  }

  void capture(FileScan&, const ObjectResolver&, Descriptions) const override {}
  void create(RestoreContext&, ImageFiles) const override {}

 private:
  static Refusal reason(FileScan& scan, Description& description) {
    const std::string& target = description.target;
    if (target.starts_with("anon_inode:")) return anonymous_refusal(target);
    switch (description.stat.st_mode & S_IFMT) {
      case S_IFSOCK:
        return socket_refusal(scan.take(description));
      case S_IFCHR:
        return device_refusal(description);
      case S_IFBLK:
        return {fmt::format("block device {}", target), "close it before a checkpoint"};
      case S_IFLNK:
        return {fmt::format("O_PATH descriptor of symbolic link {}", target), "close it"};
      default:
        return {fmt::format("file {} of an unknown kind", target), "close it before a checkpoint"};
    }
  }
};

}  // namespace

const FileKind& unsupported_kind() {
  static const UnsupportedKind kind;
  return kind;
}

}  // namespace icp
