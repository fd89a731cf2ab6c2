// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/seccomp_book.h"

#include <linux/audit.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/error.h"

namespace icp {
namespace {

// A program of classic BPF over struct seccomp_data (Documentation/networking/filter.rst; seccomp_check_filter() has
// the instructions that are allowed). Jumps go forward only, so it comes to an end.
class Machine {
 public:
  Machine(const std::vector<sock_filter>& program, const seccomp_data& call) : program_(program), call_(call) {}

  uint32_t run() {
    for (size_t at = 0; at < program_.size(); ++at) {
      const sock_filter& step = program_[at];
      switch (BPF_CLASS(step.code)) {
        case BPF_RET:
          return BPF_RVAL(step.code) == BPF_A ? a_ : step.k;
        case BPF_LD:
          a_ = load(step, a_);
          break;
        case BPF_LDX:
          x_ = load(step, x_);
          break;
        case BPF_ST:
          if (step.k < memory_.size()) memory_[step.k] = a_;
          break;
        case BPF_STX:
          if (step.k < memory_.size()) memory_[step.k] = x_;
          break;
        case BPF_ALU:
          calculate(step);
          break;
        case BPF_JMP:
          at += jump(step);
          break;
        case BPF_MISC:
          BPF_MISCOP(step.code) == BPF_TAX ? x_ = a_ : a_ = x_;
          break;
      }
    }
    return SECCOMP_RET_KILL_PROCESS;
  }

 private:
  uint32_t load(const sock_filter& step, uint32_t unchanged) const {
    switch (BPF_MODE(step.code)) {
      case BPF_IMM:
        return step.k;
      case BPF_LEN:
        return sizeof call_;
      case BPF_MEM:
        return step.k < memory_.size() ? memory_[step.k] : unchanged;
      case BPF_ABS: {
        uint32_t word = 0;
        if (step.k <= sizeof call_ - sizeof word)
          std::memcpy(&word, reinterpret_cast<const char*>(&call_) + step.k, sizeof word);
        return word;
      }
      default:
        return unchanged;
    }
  }

  void calculate(const sock_filter& step) {
    const uint32_t operand = BPF_SRC(step.code) == BPF_X ? x_ : step.k;
    switch (BPF_OP(step.code)) {
      case BPF_ADD:
        a_ += operand;
        break;
      case BPF_SUB:
        a_ -= operand;
        break;
      case BPF_MUL:
        a_ *= operand;
        break;
      case BPF_DIV:
        a_ = operand == 0 ? 0 : a_ / operand;
        break;
      case BPF_AND:
        a_ &= operand;
        break;
      case BPF_OR:
        a_ |= operand;
        break;
      case BPF_XOR:
        a_ ^= operand;
        break;
      case BPF_LSH:
        a_ = operand < 32 ? a_ << operand : 0;
        break;
      case BPF_RSH:
        a_ = operand < 32 ? a_ >> operand : 0;
        break;
      case BPF_NEG:
        a_ = 0 - a_;
        break;
    }
  }

  size_t jump(const sock_filter& step) const {
    const uint32_t operand = BPF_SRC(step.code) == BPF_X ? x_ : step.k;
    bool taken = false;
    switch (BPF_OP(step.code)) {
      case BPF_JA:
        return step.k;
      case BPF_JEQ:
        taken = a_ == operand;
        break;
      case BPF_JGT:
        taken = a_ > operand;
        break;
      case BPF_JGE:
        taken = a_ >= operand;
        break;
      case BPF_JSET:
        taken = (a_ & operand) != 0;
        break;
    }
    return taken ? step.jt : step.jf;
  }

  const std::vector<sock_filter>& program_;
  const seccomp_data& call_;
  uint32_t a_ = 0, x_ = 0;
  std::array<uint32_t, BPF_MEMWORDS> memory_{};
};

}  // namespace

bool operator==(const SeccompFilter& a, const SeccompFilter& b) {
  return a.flags == b.flags && a.program.size() == b.program.size() &&
         (a.program.empty() ||
          std::memcmp(a.program.data(), b.program.data(), a.program.size() * sizeof(sock_filter)) == 0);
}

uint32_t seccomp_action(const SeccompChain& chain, const seccomp_data& call) {
  uint32_t strictest = SECCOMP_RET_ALLOW;
  for (const auto& filter : chain) {
    const uint32_t action = Machine(filter->program, call).run();
    // The lowest counts, KILL_PROCESS (0x80000000) as the lowest of all (seccomp_run_filters()).
    const auto rank = [](uint32_t value) { return static_cast<int32_t>(value & SECCOMP_RET_ACTION_FULL); };
    if (rank(action) < rank(strictest)) strictest = action;
  }
  return strictest;
}

bool lets_through(uint32_t action) {
  const uint32_t kind = action & SECCOMP_RET_ACTION_FULL;
  return kind == SECCOMP_RET_ALLOW || kind == SECCOMP_RET_LOG;
}

bool is_deadly(uint32_t action) {
  return !lets_through(action) && (action & SECCOMP_RET_ACTION_FULL) != SECCOMP_RET_ERRNO;
}

seccomp_data seccomp_call(long number, std::initializer_list<uint64_t> arguments) {
  seccomp_data call{};
  call.nr = static_cast<int>(number);
  call.arch = AUDIT_ARCH_X86_64;
  std::copy_n(arguments.begin(), std::min<size_t>(arguments.size(), std::size(call.args)), call.args);
  return call;
}

void SeccompBook::note(pid_t tid, uint64_t process_start, SeccompChain chain) {
  threads_[tid] = {process_start, false, std::move(chain)};
}

void SeccompBook::note_strict(pid_t tid, uint64_t process_start) { threads_[tid] = {process_start, true, {}}; }

bool SeccompBook::is_strict(pid_t tid, uint64_t process_start) const {
  const auto thread = threads_.find(tid);
  return thread != threads_.end() && thread->second.process_start == process_start && thread->second.strict;
}

const SeccompChain* SeccompBook::find(pid_t tid, uint64_t process_start) const {
  const auto thread = threads_.find(tid);
  return thread == threads_.end() || thread->second.process_start != process_start || thread->second.strict
             ? nullptr
             : &thread->second.chain;
}

bool SeccompBook::forbids(pid_t tid, const seccomp_data& call) const {
  if (threads_.empty()) return false;
  const auto thread = threads_.find(tid);
  if (thread == threads_.end()) return false;
  if (thread->second.strict) return call.nr != SYS_rt_sigreturn;
  return is_deadly(seccomp_action(thread->second.chain, call));
}

void SeccompBook::check_call(pid_t tid, const seccomp_data& call) const {
  if (!forbids(tid, call)) return;
  throw Error(
      ErrorKind::kRefused,
      fmt::format("the seccomp filter of thread {} forbids system call {}, which a checkpoint takes", tid, call.nr), 0,
      "run it without the sandbox that installs the filter");
}

SeccompBook& seccomp_book() {
  static SeccompBook book;
  return book;
}

}  // namespace icp
