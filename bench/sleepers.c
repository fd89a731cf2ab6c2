// SPDX-License-Identifier: GPL-2.0-or-later
// sleepers [--threads N] [--timed] [--processes N] [--mib S] [--inherited S] [--mappings N] [--unix N] [--udp N] [--tcp N]:
// N threads a process (in waits that end in a day), N processes, S MiB each, S MiB that all have from the first one, N
// mappings in each of those, N connected Unix, N UDP and N connected TCP sockets in the first one, all asleep until
// killed. Prints "ready" when all are there.
#include <arpa/inet.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int arrived[2];
static int timed;

static void* __attribute__((noreturn)) doze(void* unused) {
  (void)unused;
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
  struct timespec end;
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += 86400;
  pthread_mutex_lock(&lock);
  while (timed) pthread_cond_timedwait(&never, &lock, &end);
  pthread_mutex_unlock(&lock);
  for (;;) pause();
}

static void open_sockets(long unix_sockets, long udp_sockets, long tcp_sockets) {
  struct rlimit most;
  getrlimit(RLIMIT_NOFILE, &most);
  most.rlim_cur = most.rlim_max;
  setrlimit(RLIMIT_NOFILE, &most);
  int pair[2];
  for (long i = 0; i < unix_sockets; i += 2)
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) exit(1);
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  for (long i = 0; i < udp_sockets; i++) {
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr*)&any, sizeof any) != 0) exit(1);
  }
  if (tcp_sockets == 0) return;
  struct sockaddr_in address = any;
  socklen_t length = sizeof address;
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr*)&any, sizeof any) != 0 || listen(listener, 16) != 0) exit(1);
  getsockname(listener, (struct sockaddr*)&address, &length);
  for (long i = 0; i < tcp_sockets; i += 2) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr*)&address, length) != 0 || accept(listener, NULL, NULL) < 0) exit(1);
  }
}

static void populate(long threads, size_t bytes) {
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  memset(memory, 7, bytes);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  for (long i = 1; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, doze, NULL) != 0) exit(1);
  }
  if (write(arrived[1], "x", 1) != 1) exit(1);
}

// Each page differs from its neighbours in content, every other one in protection.
static void inherit(size_t bytes, long mappings) {
  const size_t page = 4096, pages = bytes / page;
  if (pages == 0) return;
  char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  for (size_t i = 0; i < pages; i++) memset(memory + i * page, (int)(i % 255) + 1, page), memcpy(memory + i * page, &i, sizeof i);
  for (long i = 0; i < mappings / 2 && (size_t)i * 2 < pages; i++)
    if (mprotect(memory + (size_t)i * 2 * page, page, PROT_READ) != 0) exit(1);
}

int main(int argc, char** argv) {
  static const struct option table[] = {{"threads", 1, 0, 't'}, {"processes", 1, 0, 'p'}, {"mib", 1, 0, 'm'},
                                        {"inherited", 1, 0, 'i'}, {"mappings", 1, 0, 'g'}, {"timed", 0, 0, 'd'},
                                        {"unix", 1, 0, 'u'}, {"udp", 1, 0, 'U'}, {"tcp", 1, 0, 'T'}, {0}};
  long threads = 1, processes = 1, mappings = 0, unix_sockets = 0, udp_sockets = 0, tcp_sockets = 0;
  double mib = 4, inherited = 0;
  for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
    if (c == 't') threads = strtol(optarg, NULL, 10);
    if (c == 'p') processes = strtol(optarg, NULL, 10);
    if (c == 'm') mib = strtod(optarg, NULL);
    if (c == 'i') inherited = strtod(optarg, NULL);
    if (c == 'g') mappings = strtol(optarg, NULL, 10);
    if (c == 'd') timed = 1;
    if (c == 'u') unix_sockets = strtol(optarg, NULL, 10);
    if (c == 'U') udp_sockets = strtol(optarg, NULL, 10);
    if (c == 'T') tcp_sockets = strtol(optarg, NULL, 10);
  }
  if (threads < 1 || processes < 1 || mib <= 0 || pipe(arrived) != 0) return 2;
  const size_t bytes = (size_t)(mib * (1 << 20));
  inherit((size_t)(inherited * (1 << 20)), mappings);
  for (long i = 1; i < processes; i++) {
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child > 0) continue;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) return 1;
    populate(threads, bytes);
    close(arrived[0]);
    close(arrived[1]);
    doze(NULL);
  }
  open_sockets(unix_sockets, udp_sockets, tcp_sockets);
  populate(threads, bytes);
  char one;
  for (long i = 0; i < processes; i++)
    if (read(arrived[0], &one, 1) != 1) return 1;
  close(arrived[0]);
  close(arrived[1]);
  puts("ready");
  fflush(stdout);
  doze(NULL);
}
