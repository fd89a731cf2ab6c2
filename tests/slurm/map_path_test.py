# SPDX-License-Identifier: GPL-2.0-or-later
"""Several jobs from one image, each with paths of its own: --map-path, SLURM_RESTART_MAP_PATH, icp restart --map-path."""

import harness
from jobcase import JobCase

GRAMMAR = r'is not OLD=NEW\[:OLD=NEW\.\.\.\], where OLD and NEW are absolute paths'
# Has a working directory, a file it appends to, one that it maps, a FIFO and a Unix socket, by whole and by relative names.
PROGRAM = r"""
import mmap, os, socket, sys, time
home = sys.argv[1]
os.chdir(home)
log = open("log", "a", buffering=1)
log.write("begun\n")
data = open(home + "/data", "r+b")
view = mmap.mmap(data.fileno(), 4096)
view[0:5] = b"saved"
fifo = os.open("fifo", os.O_RDWR)
named = socket.socket(socket.AF_UNIX)
named.bind(home + "/s")
named.listen()
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
who = open("go").read().strip()
log.write(who + "\n")
print(os.getcwd(), log.name, os.readlink(f"/proc/self/fd/{log.fileno()}"), os.readlink(f"/proc/self/fd/{fifo}"), named.getsockname(),
      view[0:5].decode(), flush=True)
view[5:5 + len(who)] = who.encode()
other = socket.socket(socket.AF_UNIX)
other.connect("s")
named.accept()[0].close()
"""


class MapPath(JobCase):
    options = {"cpus": 8}

    def setUp(self):
        super().setUp()
        (self.work / "program.py").write_text(PROGRAM)

    def template(self):
        """An image of the program, and its directory."""
        home = self.work / f"template-{self.id().rpartition(chr(46))[2]}"
        self.sh(["mkdir", home])
        self.sh(f"head -c 4096 /dev/zero > {home}/data; mkfifo {home}/fifo")
        srun, job = self.start_srun("--checkpoint-on=cancel", "python3", str(self.work / "program.py"), str(home))
        self.wait_text("srun.out", "ready")
        self.sh(["scancel", job])
        srun.wait(30)
        self.assertEqual(self.versions(f"{job}.0"), [1])
        return self.work / f"{job}.0", home

    def state_of(self, directory):
        return {path.relative_to(directory): (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}

    def own_directory(self, home, name):
        self.sh(f"cp -a {home} {self.work}/{name}; rm -f {self.work}/{name}/s")
        return self.work / name

    def check_run(self, text, there, name):
        self.assertIn(f"{there} log {there}/log {there}/fifo {there}/s saved", text)
        self.assertEqual((there / "log").read_text(), f"begun\n{name}\n")
        self.assertEqual((there / "data").read_bytes()[:5 + len(name)], b"saved" + name.encode())

    def test_several_jobs_from_one_image(self):
        image, home = self.template()
        before, homes = self.state_of(image), self.state_of(home)
        names = ["first", "second", "third", "by-environment"]
        runs = []
        for name in names:
            there = self.own_directory(home, name)
            pair = f"{home}={there}"
            option = [] if name == "by-environment" else [f"--map-path={pair}", "--map-path=/no/such=/thing"]
            environment = {"SLURM_RESTART_MAP_PATH": pair} if not option else None
            runs.append((self.start(["srun", f"--chdir={there}", f"--restart-dir={image}", *option, "--checkpoint-interval=1s", "none"],
                                    f"{name}.out", env=environment), there, name))
        for run, there, name in runs:
            self.wait_text(f"{name}.out", "restarted from version 1")
            self.wait_for(lambda: list(there.glob("*.0/v*")), 30, "a version of its own")
        for run, there, name in runs:
            self.sh(f"echo {name} > {there}/go")
            self.assertEqual(run.wait(30), 0, self.text(f"{name}.out"))
            self.check_run(self.text(f"{name}.out"), there, name)
        self.assertEqual(self.state_of(image), before)
        self.assertEqual(self.state_of(home), homes)

    def test_by_hand(self):
        image, home = self.template()
        there = self.own_directory(home, "hand")
        self.sh(f"echo hand > {there}/go")
        run = self.sh(["icp", "restart", "--dir", image, "--map-path", f"{home}={there}"], check=False, timeout=60)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.check_run(run.stdout, there, "hand")
        wrong = self.sh(["icp", "restart", "--dir", image, "--map-path", "here=there"], check=False)
        self.assertEqual(wrong.returncode, 2, wrong.stderr)
        self.assertRegex(wrong.stderr, GRAMMAR)

    def test_wrong_grammar_is_refused_at_submission(self):
        for wrong in ("/a", "a=/b", "/a=b", "/a=/b:", "/a=/b=/c"):
            for command in (["srun", f"--map-path={wrong}", "true"], ["sbatch", f"--map-path={wrong}", "--wrap", "true"]):
                run = self.sh(command, check=False)
                self.assertNotEqual(run.returncode, 0)
                self.assertRegex(run.stderr, f'--map-path: "{wrong}" {GRAMMAR}')
        twice = self.sh(["srun", "--map-path=/a=/b", "--map-path=/a=/c", "true"], check=False)
        self.assertNotEqual(twice.returncode, 0)
        self.assertRegex(twice.stderr, GRAMMAR)
        by_environment = self.sh(["srun", "true"], check=False, env={"SLURM_RESTART_MAP_PATH": "x"})
        self.assertRegex(by_environment.stderr, GRAMMAR)


if __name__ == "__main__":
    harness.main()
