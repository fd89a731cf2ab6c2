// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/files/outer_stream.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "engine/base/error.h"
#include "engine/files/image_path.h"
#include "engine/files/pty.h"
#include "engine/files/pty_content.h"

namespace icp {
namespace {

// The terminal may be the agent's own, which it uses from the background then.
void set_from_background(int terminal, const TerminalSettings& settings) {
  sigset_t stop, before;
  ::sigemptyset(&stop);
  ::sigaddset(&stop, SIGTTOU);
  ::pthread_sigmask(SIG_BLOCK, &stop, &before);
  const bool set = ::ioctl(terminal, TCSETS2, &settings) == 0;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!set) throw_errno("cannot change the settings of a task's terminal");
}

class OuterStreamKind final : public SingleFileKind {
 public:
  pb::OpenFile::KindCase tag() const override { return pb::OpenFile::kOuter; }

  bool recognises(FileScan&, Description& description) const override { return description.outer.has_value(); }

  void capture_one(FileScan& scan, const ObjectResolver&, Description& description) const override {
    pb::OuterStream& outer = *description.message->mutable_outer();
    outer.set_rank(description.outer->rank);
    outer.set_fd(description.outer->fd);
    if (S_ISCHR(description.stat.st_mode)) {
      const int fd = scan.take(description);
      if (terminal_device(fd)) outer.set_termios(settings_bytes(terminal_settings(fd)));
    }
    // Standard input that is a file goes on where it was read to; of all else the new stream's position counts.
    if (S_ISREG(description.stat.st_mode) && description.access() == O_RDONLY) {
      capture_identity(description);
    } else {
      description.message->set_position(0);
    }
  }

  UniqueFd create_one(RestoreContext& context, const pb::OpenFile& file) const override {
    const pb::OuterStream& outer = file.outer();
    const bool to_manager = outer.fd() == kPmiStream || outer.fd() == kPmixRelayStream || outer.fd() == kLaunchStream;
    if (to_manager && context.options.dry) return stand_in();
    if (outer.fd() == kPmiStream) return new_pmi_connection(context, file);
    if (outer.fd() == kPmixRelayStream) return new_relay_stream(context, file);
    if (outer.fd() == kLaunchStream) return new_launch_stream(context, file);
    const auto task = context.options.outer.find(outer.rank());
    if (task == context.options.outer.end() || outer.fd() < 0 || outer.fd() > 2) {
      throw_bad_file(file, fmt::format("there is no stream {} of task {} in this step", outer.fd(), outer.rank()));
    }
    UniqueFd fd(::fcntl(task->second[static_cast<size_t>(outer.fd())], F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot use stream {} of task {}", outer.fd(), outer.rank());
    if (file.position() != 0) seek_in_same_file(file, fd.get());
    if (!outer.termios().empty() && terminal_device(fd.get())) {
      // The program goes on as it had set its terminal; its size is the new one's.
      const TerminalSettings settings = settings_from(outer.termios());
      context.later([terminal = fd.get(), settings] { set_from_background(terminal, settings); });
    }
    return fd;
  }

 private:
  // A step that was given another input reads that from its beginning. Inode and not device: the number of the latter
  // differs from node to node.
  static void seek_in_same_file(const pb::OpenFile& file, int fd) {
    struct stat now {};
    const bool read_only = (::fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
    if (::fstat(fd, &now) != 0 || !S_ISREG(now.st_mode) || !read_only || now.st_ino != file.identity().ino()) return;
    seek_to_position(file, fd);
  }

  static UniqueFd stand_in() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) throw_errno("cannot make a Unix socket");
    return fd;
  }

  static UniqueFd new_pmi_connection(const RestoreContext& context, const pb::OpenFile& file) {
    const auto task = context.options.pmi.find(file.outer().rank());
    if (task == context.options.pmi.end()) {
      throw_bad_file(file,
                     fmt::format("task {} has a connection to MPI's process manager, and the new one has none (srun "
                                 "--mpi=pmi2)",
                                 file.outer().rank()));
    }
    UniqueFd fd(::fcntl(task->second, F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot use the connection of task {} to the process manager", file.outer().rank());
    return fd;
  }

  static UniqueFd new_relay_stream(const RestoreContext& context, const pb::OpenFile& file) {
    if (context.options.pmix_relay < 0) {  // the rank says which: 0 PMIx, 1 PMI
      throw_bad_file(file, file.outer().rank() == 0
                               ? "its tasks have connections to Slurm's PMIx server, and there is none now (srun "
                                 "--mpi=pmix)"
                               : "its tasks have connections to MPI's process manager, and there is none now (srun "
                                 "--mpi=pmi2)");
    }
    UniqueFd fd(::fcntl(context.options.pmix_relay, F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot use the socket of the PMIx relay");
    return fd;
  }

  static UniqueFd new_launch_stream(const RestoreContext& context, const pb::OpenFile& file) {
    const auto step = context.options.launched.find(file.outer().rank());
    if (step == context.options.launched.end())
      throw_bad_file(file,
                     "its program has started another step of the job, and that one goes on only with a batch script "
                     "that is restarted by Slurm");
    UniqueFd fd(::fcntl(step->second, F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno("cannot use the socket of launched step {}", file.outer().rank());
    return fd;
  }
};

}  // namespace

const FileKind& outer_stream_kind() {
  static const OuterStreamKind kind;
  return kind;
}

}  // namespace icp
