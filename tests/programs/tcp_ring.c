// SPDX-License-Identifier: GPL-2.0-or-later
// Tasks of a Slurm step that send numbered messages around a ring over TCP, and count in System V shared memory with
// the other tasks of their node. A message that is lost, doubled or out of order ends the program with status 1.
//
//   srun -N2 -n4 tcp_ring DIRECTORY MESSAGES PAUSE_MS
//
// After SIGUSR1 there are no more pauses: whoever has seen enough of it sees its end soon.
// The tasks find each other by files in DIRECTORY. At the end each prints one line: its rank, and a hash of what it
// got.
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kWords = 512 };  // of a message, 4 KiB

struct message {
  uint64_t number, from;
  uint64_t words[kWords];
};

static int rank;
static volatile sig_atomic_t hurry;

static void on_hurry(int signal) {
  (void)signal;
  hurry = 1;
}

static void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "tcp_ring %d: ", rank);
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  exit(1);
}

static int number_of(const char* name) {
  const char* const text = getenv(name);
  if (text == NULL) die("%s is not set: start it with srun", name);
  return atoi(text);
}

static void pause_ms(long ms) {
  const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

static void whole(int fd, void* data, size_t bytes, int out) {
  char* at = data;
  while (bytes > 0) {
    const ssize_t done = out ? write(fd, at, bytes) : read(fd, at, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) die("%s: %s", out ? "write" : "read", done == 0 ? "the connection has ended" : strerror(errno));
    at += done;
    bytes -= (size_t)done;
  }
}

// Listens at an address of its own node, and writes it to DIRECTORY/<rank>.
static int listen_here(const char* directory) {
  const char* const host = getenv("TCP_RING_ADDRESS");
  struct sockaddr_in address = {.sin_family = AF_INET};
  if (inet_pton(AF_INET, host == NULL ? "127.0.0.1" : host, &address.sin_addr) != 1)
    die("TCP_RING_ADDRESS: bad address");
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t length = sizeof address;
  if (fd < 0 || bind(fd, (struct sockaddr*)&address, sizeof address) != 0 || listen(fd, 8) != 0 ||
      getsockname(fd, (struct sockaddr*)&address, &length) != 0)
    die("cannot listen: %s", strerror(errno));
  char name[4096], done[4096], text[64];
  snprintf(name, sizeof name, "%s/%d.tmp", directory, rank);
  snprintf(done, sizeof done, "%s/%d", directory, rank);
  FILE* const file = fopen(name, "w");
  if (file == NULL) die("%s: %s", name, strerror(errno));
  fprintf(file, "%s %d\n", inet_ntop(AF_INET, &address.sin_addr, text, sizeof text), ntohs(address.sin_port));
  if (fclose(file) != 0 || rename(name, done) != 0) die("%s: %s", done, strerror(errno));
  return fd;
}

static int connect_to(const char* directory, int other) {
  char name[4096], host[64];
  int port = 0;
  snprintf(name, sizeof name, "%s/%d", directory, other);
  for (int tries = 0; tries < 600; tries++, pause_ms(50)) {
    FILE* const file = fopen(name, "r");
    if (file == NULL) continue;
    const int found = fscanf(file, "%63s %d", host, &port);
    fclose(file);
    if (found != 2) die("%s: not an address", name);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr*)&address, sizeof address) != 0) die("connect: %s", strerror(errno));
    return fd;
  }
  die("%s: task %d does not come", directory, other);
  return -1;
}

// One counter for all tasks of the node.
static volatile uint64_t* node_counter(int node) {
  const int id = shmget(0x49435000 + node, sizeof(uint64_t), IPC_CREAT | 0600);
  if (id < 0) die("shmget: %s", strerror(errno));
  volatile uint64_t* const counter = shmat(id, NULL, 0);
  if (counter == (void*)-1) die("shmat: %s", strerror(errno));
  return counter;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: tcp_ring DIRECTORY MESSAGES PAUSE_MS\n");
    return 2;
  }
  const struct sigaction action = {.sa_handler = on_hurry, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  rank = number_of("SLURM_PROCID");
  const int tasks = number_of("SLURM_NTASKS"), local = number_of("SLURM_LOCALID");
  const uint64_t count = strtoull(argv[2], NULL, 10);
  const long pause = atol(argv[3]);
  const int listener = listen_here(argv[1]);
  const int next = connect_to(argv[1], (rank + 1) % tasks);
  const int before = accept(listener, NULL, NULL);
  if (before < 0) die("accept: %s", strerror(errno));
  volatile uint64_t* const counter = node_counter(number_of("SLURM_NODEID"));

  // Several messages are under way at every moment: what is in flight is what a checkpoint may lose.
  enum { kAhead = 8 };
  static struct message out, in;
  uint64_t hash = 1469598103934665603u, sent = 0;
  for (uint64_t got = 0; got < count; got++) {
    for (; sent < count && sent < got + kAhead; sent++) {
      out.number = sent;
      out.from = (uint64_t)rank;
      for (int i = 0; i < kWords; i++) out.words[i] = sent * 2654435761u + (uint64_t)(rank * kWords + i);
      whole(next, &out, sizeof out, 1);
    }
    whole(before, &in, sizeof in, 0);
    if (in.number != got || in.from != (uint64_t)((rank + tasks - 1) % tasks))
      die("message %" PRIu64 " of %" PRIu64 " came where %" PRIu64 " was due", in.number, in.from, got);
    for (int i = 0; i < kWords; i++) hash = (hash ^ in.words[i]) * 1099511628211u;
    __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
    if (local == 0 && got % 50 == 0) printf("at %" PRIu64 "\n", got), fflush(stdout);
    if (!hurry) pause_ms(pause);
  }
  printf("RESULT %d %016" PRIx64 "\n", rank, hash);
  return 0;
}
