# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in their own languages for program_list.py."""

SQLITE = """
import sqlite3, sys, time
db = sqlite3.connect("bank.db", isolation_level=None)
db.execute("pragma journal_mode=" + sys.argv[1])
db.execute("pragma cache_size=20")
for turn in range(150):
    db.execute("begin")
    for each in range(20):
        one, other = (turn * 7919 + each * 104729) % 5000, (turn * 15485863 + each * 32452843) % 5000
        db.execute("update account set money = money - 1 where id = ?", (one,))
        db.execute("update account set money = money + 1 where id = ?", (other,))
    db.execute("insert into turn values (?, ?)", (turn, "x" * 200))
    db.execute("commit")
    time.sleep(0.008)
print("RESULT", db.execute("select sum(money), sum(money * id) from account").fetchall(), flush=True)
"""

REDIS_CLIENT = """
import socket, time
s = socket.socket(socket.AF_UNIX)
while True:
    try:
        s.connect("s")
        break
    except OSError:
        time.sleep(0.05)
replies = s.makefile("rb")
def call(*words):
    s.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in (str(w).encode() for w in words)))
    line = replies.readline()
    if line[:1] == b"$":
        return replies.read(int(line[1:]) + 2)[:-2]
    assert line[:1] in b"+:", line
    return line[1:].strip()
for turn in range(8000):
    call("INCR", f"counter:{turn % 97}")
    call("APPEND", f"text:{turn % 53}", f"{turn},")
    if turn % 1500 == 700:
        call("BGSAVE")
    if turn % 20 == 0:
        time.sleep(0.012)
total = sum(int(call("GET", f"counter:{n}")) for n in range(97))
import hashlib
texts = hashlib.sha256(b"".join(call("GET", f"text:{n}") for n in range(53))).hexdigest()
print("RESULT", total, texts, flush=True)
s.sendall(b"SHUTDOWN SAVE\\r\\n")
"""

MAKEFILE = """
parts := $(shell seq 16)
sum: $(parts:%=part%.o) main.o
	gcc -o $@ $^
%.o: %.c
	gcc -O1 -c -o $@ $<
"""

LOKY = """
from joblib import Parallel, delayed
import time
def work(n):
    time.sleep(0.01)
    return sum(i * i % (n + 3) for i in range(8000))
if __name__ == "__main__":
    total = 0
    for turn in range(6):
        total += sum(Parallel(n_jobs=3)(delayed(work)(turn * 100 + n) for n in range(100)))
        print(turn, flush=True)
    print("RESULT", total, flush=True)
"""

POOL = """
import multiprocessing, sys, time
def work(n):
    time.sleep(0.01)
    return sum(i * i % (n + 3) for i in range(8000))
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    total, counter, lock = 0, context.Value("l", 0), context.Lock()
    for turn in range(3):
        with context.Pool(3) as pool:
            for value in pool.imap_unordered(work, range(turn * 200, turn * 200 + 200)):
                total += value
                with counter.get_lock(), lock:
                    counter.value += 1
    print("RESULT", total, counter.value, flush=True)
"""

FUTURES = """
import concurrent.futures, hashlib, time
def work(n):
    time.sleep(0.008)
    return hashlib.sha256(b"%d" % n * 20000).hexdigest()[:8]
if __name__ == "__main__":
    total = 0
    with concurrent.futures.ProcessPoolExecutor(2) as processes, concurrent.futures.ThreadPoolExecutor(3) as threads:
        for turn in range(5):
            some = [processes.submit(work, n) for n in range(turn * 100, turn * 100 + 100)]
            some += [threads.submit(work, n) for n in range(turn * 100, turn * 100 + 100)]
            total += sum(int(each.result(), 16) for each in concurrent.futures.as_completed(some))
    print("RESULT", total, flush=True)
"""

TORCH = """
import torch, time
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(2)
class Numbers(Dataset):
    def __len__(self):
        return 320
    def __getitem__(self, n):
        time.sleep(0.003)
        return torch.sin(torch.arange(256, dtype=torch.float64) * n), torch.tensor(float(n % 17))
if __name__ == "__main__":
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(256, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).double()
    steps = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(6):
        for data, wanted in DataLoader(Numbers(), batch_size=16, num_workers=2):
            loss = ((model(data).squeeze() - wanted.double()) ** 2).mean()
            steps.zero_grad(); loss.backward(); steps.step()
        print(epoch, loss.item(), flush=True)
    print("RESULT", " ".join(f"{p.sum().item():.12g}" for p in model.parameters()), flush=True)
"""

GIT = """
set -e
git init -q -b main work; cd work
git config user.name s; git config user.email s@example.com
for i in $(seq 60); do
    echo "line $i" >> text; mkdir -p d$((i % 7)); echo $i > d$((i % 7))/f$i
    git add .; git commit -q -m "commit $i"
    if ((i % 20 == 0)); then git repack -adq; fi
    sleep 0.04
done
echo RESULT $(git rev-list --count HEAD) $(git rev-parse HEAD^{tree})
"""

OPENMP = r"""
#include <math.h>
#include <stdio.h>
#include <time.h>
#include <omp.h>
int main(void) {
  static double a[200000];
  for (int round = 0; round < 250; ++round) {
#pragma omp parallel for schedule(dynamic, 1000) num_threads(4)
    for (int i = 0; i < 200000; ++i) a[i] = sin(a[i] + i * 1e-3) + round;
    struct timespec pause = {0, 8000000};
    nanosleep(&pause, NULL);
  }
  double sum = 0;
  for (int i = 0; i < 200000; ++i) sum += a[i];
  printf("RESULT %.17g\\n", sum);
}
"""

FORTRAN = """
program heat
  real(8) :: a(300,300), b(300,300)
  integer :: i, j, step
  a = 0; a(:,1) = 1; b = a
  open(10, file='progress')
  do step = 1, 4000
    do concurrent (j = 2:299, i = 2:299)
      b(i,j) = 0.25d0 * (a(i-1,j) + a(i+1,j) + a(i,j-1) + a(i,j+1))
    end do
    a = b
    if (mod(step, 50) == 0) write(10, *) step, sum(a)
    if (mod(step, 50) == 0) flush(10)
    if (mod(step, 10) == 0) call execute_wait
  end do
  print '(a,es24.17)', 'RESULT ', sum(a)
contains
  subroutine execute_wait
    interface
      integer(c_int) function usleep(us) bind(c)
        use iso_c_binding
        integer(c_int), value :: us
      end function
    end interface
    if (usleep(5000) /= 0) stop 3
  end subroutine
end program
"""

R_SCRIPT = """
set.seed(11)
best <- 0
for (turn in 1:120) {
  x <- matrix(rnorm(120 * 30), 120)
  y <- x %*% seq(0, 1, length.out = 30) + rnorm(120)
  best <- best + sum(coef(lm(y ~ x))[-1])
  if (turn %% 10 == 0) saveRDS(x, "state.rds")
  Sys.sleep(0.02)
}
cat(sprintf("RESULT %.12f\\n", best))
"""

JAVA = """
import java.util.*;
import java.util.concurrent.*;
public class P {
    public static void main(String[] a) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(3);
        long total = 0;
        for (int turn = 0; turn < 60; turn++) {
            List<Future<Long>> some = new ArrayList<>();
            for (int n = 0; n < 8; n++) {
                final int seed = turn * 8 + n;
                some.add(pool.submit(() -> {
                    Map<Integer, Long> map = new HashMap<>();
                    Random r = new Random(seed);
                    for (int i = 0; i < 20000; i++) map.merge(r.nextInt(500), (long) i, Long::sum);
                    long s = 0;
                    for (Map.Entry<Integer, Long> e : map.entrySet()) s = s * 31 + e.getKey() * e.getValue();
                    Thread.sleep(5);
                    return s;
                }));
            }
            for (Future<Long> f : some) total = total * 17 + f.get();
            Thread.sleep(20);
        }
        pool.shutdown();
        System.out.println("RESULT " + total);
    }
}
"""

GO = """
package main
import ("fmt"; "hash/fnv"; "sync"; "time")
func main() {
	total := uint64(0)
	for turn := 0; turn < 60; turn++ {
		results := make(chan uint64, 64)
		var wait sync.WaitGroup
		for n := 0; n < 64; n++ {
			wait.Add(1)
			go func(n int) {
				defer wait.Done()
				h := fnv.New64a()
				for i := 0; i < 3000; i++ { fmt.Fprintf(h, "%d %d %d", turn, n, i) }
				time.Sleep(5 * time.Millisecond)
				results <- h.Sum64()
			}(n)
		}
		wait.Wait(); close(results)
		for r := range results { total += r }
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Println("RESULT", total)
}
"""

NODE = """
const { Worker, isMainThread, parentPort, workerData } = require("worker_threads");
const crypto = require("crypto");
if (isMainThread) {
  let total = 0n, left = 40;
  const next = (worker) => { if (left-- > 0) worker.postMessage(left); else worker.postMessage(null); };
  let running = 2;
  for (let n = 0; n < 2; n++) {
    const worker = new Worker(__filename);
    worker.on("message", (m) => { total += BigInt(m); setTimeout(() => next(worker), 20); });
    worker.on("exit", () => { if (--running == 0) console.log("RESULT " + total); });
    next(worker);
  }
} else {
  parentPort.on("message", (n) => {
    if (n === null) process.exit(0);
    let h = Buffer.from(String(n));
    for (let i = 0; i < 8000; i++) h = crypto.createHash("sha256").update(h).digest();
    setTimeout(() => parentPort.postMessage(h.readUInt32LE(0)), 40);
  });
}
"""

TMUX = """
tmux -f /dev/null -S $PWD/t new-session -d -x 80 -y 24 'bash work; tmux -S t wait-for -S over'
tmux -S $PWD/t wait-for over
tmux -S $PWD/t kill-server 2>/dev/null
echo RESULT $(cat result)
"""

SERVE = """
user_config() { printf 'worker_processes 2;\\nerror_log error.log;\\npid nginx.pid;\\nevents { worker_connections 64; }\\nhttp { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path c; server { listen unix:%s/s; root %s; } }\\n' $PWD $PWD > n.conf; }
user_config; echo "page of some text" > page
nginx -p $PWD -c n.conf -e error.log -g 'daemon off;' &
sum=0
for i in $(seq 100); do
    text=$(curl -s --retry 5 --retry-all-errors --unix-socket s http://localhost/page); [[ $text == "page of some text" ]] && sum=$((sum + i))
    sleep 0.02
done
kill $!; wait $!
echo RESULT $sum
"""

MEMCACHED = """
memcached -s $PWD/s -m 16 -U 0 &
/usr/bin/python3 client.py; kill $!; wait $!; true
"""

MEMCACHED_CLIENT = """
import socket, time
s = socket.socket(socket.AF_UNIX)
while True:
    try:
        s.connect("s"); break
    except OSError:
        time.sleep(0.05)
f = s.makefile("rb")
s.sendall(b"set n 0 0 1\\r\\n0\\r\\n"); f.readline()
for i in range(3000):
    s.sendall(b"incr n %d\\r\\n" % i); last = f.readline()
    if i % 20 == 0: time.sleep(0.02)
print("RESULT", last.decode().strip(), flush=True)
"""

INOTIFY = """
mkdir -p watched
inotifywait -q -m -e close_write --format %f watched > seen & watcher=$!
sleep 0.5
for i in $(seq 100); do echo $i > watched/f$i; sleep 0.03; done
sleep 0.3; kill $watcher; wait $watcher
echo RESULT $(sort -u seen | wc -l)
"""

BLAS = """
import numpy, time
a = numpy.random.default_rng(5).standard_normal((160, 160))
q = a
for turn in range(150):
    q, _ = numpy.linalg.qr(a @ q + turn)
    time.sleep(0.015)
print("RESULT %.8f" % numpy.abs(q).sum(), flush=True)
"""
