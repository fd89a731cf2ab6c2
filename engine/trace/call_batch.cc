// SPDX-License-Identifier: GPL-2.0-or-later
#include "engine/trace/call_batch.h"

#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>

#include "engine/base/error.h"
#include "engine/trace/seccomp_book.h"

namespace icp {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kOwnCalls = 2;  // gettid in front, tgkill behind
constexpr size_t kScratchBytes = 4096;

constexpr uint64_t kMostAnswer = 4096;  // bytes

void set_answer_address(std::array<uint64_t, 6>& arguments, uint64_t address) {
  for (uint64_t& argument : arguments) {
    if (argument >= CallBatch::kAnswer && argument - CallBatch::kAnswer < kMostAnswer)
      argument = address + (argument - CallBatch::kAnswer);
  }
}

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

CallBatch::Call::Call(const char* what_for, long call_number, Arguments given, size_t answer_bytes,
                      std::function<void(int64_t, std::span<const std::byte>)> what_then)
    : what(what_for), number(call_number), bytes(answer_bytes), then(std::move(what_then)) {
  std::copy_n(given.begin(), std::min(given.size(), arguments.size()), arguments.begin());
}

void CallBatch::call(const char* what, long number, Arguments arguments, std::function<void(int64_t)> then) {
  add({what, number, arguments, 0,
       [then = std::move(then)](int64_t result, std::span<const std::byte>) { then(result); }});
}

void CallBatch::add(Call call) {
  call.offset = answers_.size();
  answers_.resize(answers_.size() + aligned(call.bytes));
  calls_.push_back(std::move(call));
}

// Before anything of the calls is made. Filters see addresses, too: what they say of kAnswer they say of any other.
void CallBatch::look_at_filters(const Tracee& thread) {
  const SeccompBook& book = seccomp_book();
  if (thread.seccomp_suspended() || !book.knows(thread.tid())) return;
  for (const long own : {SYS_gettid, SYS_tgkill, SYS_rt_sigreturn})
    book.check_call(thread.tid(), seccomp_call(own, {}));
  for (Call& call : calls_) {
    const auto& a = call.arguments;
    const seccomp_data data = seccomp_call(call.number, {a[0], a[1], a[2], a[3], a[4], a[5]});
    if (call.what != nullptr) book.check_call(thread.tid(), data);
    call.skipped = book.forbids(thread.tid(), data);
  }
}

std::vector<CallEntry> CallBatch::make_table(RemoteAddr table, RemoteAddr answers, pid_t tgid, int signal) const {
  const auto field = [&](size_t entry, size_t word) { return table.value + entry * sizeof(CallEntry) + word * 8; };
  const size_t last = calls_.size() + kOwnCalls - 1;
  std::vector<CallEntry> entries;
  entries.push_back({SYS_gettid, {}, field(last, 2)});  // the second argument of tgkill
  for (const Call& call : calls_) {
    CallEntry entry{static_cast<uint64_t>(call.number), call.arguments, field(entries.size(), 0)};
    if (call.skipped) entry.number = SYS_gettid;
    set_answer_address(entry.arguments, answers.value + call.offset);
    entries.push_back(entry);
  }
  entries.push_back(
      {SYS_tgkill, {static_cast<uint64_t>(tgid), 0, static_cast<uint64_t>(signal), 0, 0, 0}, field(last, 0)});
  return entries;
}

// On the stack, upwards: the frame, the table, the answers. All of it lies above the stack pointer of the batch: should
// the agent die, and the next one stop the thread before it has come to its end, that one's frame goes below.
bool CallBatch::start(Tracee& thread, pid_t pid, RemoteAddr stub, const WayBack& back, pid_t tgid, int signal,
                      BorrowedRanges& borrowed) {
  if (stub.value == 0) return false;
  look_at_filters(thread);
  const size_t frame_bytes = return_frame_bytes(back.xstate.size());
  const size_t table_at = aligned(frame_bytes), table_bytes = (calls_.size() + kOwnCalls) * sizeof(CallEntry);
  std::vector<std::byte> content(table_at + table_bytes + answers_.size());
  const RemoteAddr frame = return_frame_place(back.regs.rsp, content.size());
  table_ = frame + table_at;
  if (!borrowed.add(frame, content.size())) return false;

  const std::vector<CallEntry> entries = make_table(table_, table_ + table_bytes, tgid, signal);
  std::memcpy(content.data() + table_at, entries.data(), table_bytes);
  const std::vector<std::byte> way_back = make_return_frame(frame, back.regs, back.signal_mask, back.xstate);
  std::memcpy(content.data(), way_back.data(), frame_bytes);
  stack_ = BorrowedStack::borrow(pid, frame, content);
  if (!stack_) return false;

  thread_ = &thread;
  pid_ = pid;
  stub_ = stub;
  tgid_ = tgid;
  signal_ = signal;
  user_regs_struct regs = back.regs;
  regs.rip = stub.value;
  regs.rsp = return_stack_pointer(frame);
  regs.rbx = table_.value;
  regs.rbp = entries.size();
  regs.orig_rax = ~0ull;  // not in a system call
  thread.set_regs(regs);  // before the mask, which nothing else would put back should the agent die in between
  thread.set_signal_mask(~(1ull << (signal - 1)));
  thread.run_on();
  return true;
}

// Whether it has made the last call. Before that the same signal can only be somebody else's.
bool CallBatch::at_end() const {
  const user_regs_struct regs = thread_->regs();
  return regs.rip == stub_.value + kBatchAfterCall && static_cast<uint32_t>(regs.rbp) == 1;
}

int CallBatch::await_stop(std::chrono::steady_clock::duration longest) {
  try {
    return thread_->await_stop(longest);
  } catch (const Error& error) {
    // It is still in a call, and finds back from there by what lies on its stack: that is never taken away.
    static auto& kept = *new std::vector<std::shared_ptr<BorrowedStack>>;
    if (error.kind() != ErrorKind::kGone) kept.push_back(stack_);
    throw;
  }
}

void CallBatch::finish(std::chrono::steady_clock::time_point end) {
  for (;;) {
    const auto left = end - std::chrono::steady_clock::now();
    const int status = await_stop(std::max(left, decltype(left)::zero()));
    if (!WIFSTOPPED(status)) throw_error(ErrorKind::kGone, "process {} has ended during calls in it", pid_);
    if (Tracee::is_signal_stop(status, signal_)) {
      if (!thread_->signal_sent_by(tgid_)) thread_->owe(signal_);
      if (at_end()) break;
    } else if (!Tracee::is_event_stop(status)) {
      throw_error(ErrorKind::kSystem, "process {} stopped with signal {} during calls in it", pid_, WSTOPSIG(status));
    }
    thread_->run_on();
  }
  std::vector<std::byte> table((calls_.size() + kOwnCalls) * sizeof(CallEntry) + answers_.size());
  read_memory(pid_, table_, table);
  const auto word = [&table](size_t entry, size_t index) {
    uint64_t value = 0;
    std::memcpy(&value, table.data() + entry * sizeof(CallEntry) + index * 8, sizeof value);
    return value;
  };
  for (size_t i = 0; i < calls_.size(); ++i)
    calls_[i].result = calls_[i].skipped ? -ENOSYS : static_cast<int64_t>(word(i + 1, 0));
  tid_ = static_cast<pid_t>(word(calls_.size() + 1, 2));
  std::copy(table.end() - static_cast<ptrdiff_t>(answers_.size()), table.end(), answers_.begin());
}

void CallBatch::run_singly(RemoteProcess& process) {
  look_at_filters(process.thread());
  process.map_scratch(kScratchBytes);
  tid_ = static_cast<pid_t>(process.call("gettid", SYS_gettid));
  for (Call& call : calls_) {
    process.reset_scratch();
    const std::span answer = std::span(answers_).subspan(call.offset, call.bytes);
    const RemoteAddr at = process.stage(answer);
    std::array<uint64_t, 6> a = call.arguments;
    set_answer_address(a, at.value);
    if (call.skipped) {
      call.result = -ENOSYS;
      continue;
    }
    call.result = process.syscall(call.number, {a[0], a[1], a[2], a[3], a[4], a[5]});
    process.read(at, answer);
  }
  process.unmap_scratch();
}

void CallBatch::deliver(pid_t pid) const {
  for (const Call& call : calls_) {
    if (call.what != nullptr && call.result < 0 && call.result > -4096) {
      const int error = static_cast<int>(-call.result);
      throw Error(ErrorKind::kSystem, fmt::format("{} in process {}: {}", call.what, pid, errno_text(error)), error);
    }
    call.then(call.result, std::span(answers_).subspan(call.offset, call.bytes));
  }
}

}  // namespace icp
