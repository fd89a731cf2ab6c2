# SPDX-License-Identifier: GPL-2.0-or-later
"""A private Slurm cluster on this machine, for tests and demonstrations.

    with Cluster("/var/tmp/somewhere", nodes=2) as cluster:
        result = cluster.run(["srun", "-N2", "hostname"], user="icptest")

munged, slurmctld, one slurmd a node and, if asked for, icpctld, all with sockets,
ports, spool and logs of their own under one state directory; nothing under /etc is read or written,
but for the ordinary user that jobs run as, who is added if there is none.
Needs root. Several clusters can be up at once: their node names and ports differ.

Not thread-safe. A cluster outlives its Cluster object unless that is used as a
context manager: Cluster.load(state) finds it again.
"""

import hashlib
import json
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import leftovers
import networks
import slurmconf

MARKER = "cluster.json"
USER = "icptest"
# Factor to all time-outs, for machines that are slow (an emulated one).
SLOWNESS = float(os.environ.get("ICP_TEST_SLOWNESS", "1"))
PLUGIN_ARGS = "config={etc}/icp.yaml icpstepd={bin}/icpstepd"


class ClusterError(Exception):
    """A cluster cannot be brought up, found or taken down; says why and where to look."""


def have_freezer():
    """True if the freezer hierarchy of cgroup v1 is mounted and ours to use."""
    probe = leftovers.CGROUP_ROOT / "freezer" / f"icp_probe_{os.getpid()}"
    try:
        if not (probe.parent / "tasks").exists():
            return False
        probe.mkdir()
        probe.rmdir()
        return True
    except OSError:
        return False


def ensure_user(name):
    """The passwd entry of `name`, added as a system user without a home if missing."""
    for _ in range(5):  # two clusters may add it at the same moment
        try:
            return pwd.getpwnam(name)
        except KeyError:
            added = subprocess.run(
                ["useradd", "--system", "--user-group", "--no-create-home",
                 "--home-dir", "/nonexistent", "--shell", "/bin/bash", name],
                capture_output=True, text=True, timeout=60, check=False)
            time.sleep(0.2)
    raise ClusterError(f"cannot add the user {name}: {added.stderr.strip()}")


class Cluster:
    """One private cluster. The arguments are those of `icp-cluster up`.

    proctrack: "cgroup", "linuxproc", "pgid", or None for cgroup where possible.
    plugin: a SPANK plugin; it is copied into the state directory, so that the
        jobs' user can read it wherever it was built.
    plugin_args: its plugstack arguments; {etc}, {bin} and {lib} are replaced.
    icp_config: more lines for icp.yaml.
    install: programs copied to {bin}, which env() puts first on the PATH.
    coordinator: run icpctld, which must be among `install`, and name it in icp.yaml;
        see start_coordinator(). What it reads at its start goes into icp_config.
    extra_conf, conf_files: more lines for slurm.conf, and files beside it by their names; {state} is replaced in these.
    networks: each node in network and UTS namespaces of its own, which go with this object. The process must
        have called networks.leave_host().
    own_names: each node's programs see the node's name as the host's, as on real nodes (mpirun looks for its own
        host among the job's nodes by it).
    """

    def __init__(self, state, *, nodes=1, cpus=4, proctrack=None, plugin=None,
                 plugin_args=PLUGIN_ARGS, icp_config="", plugin_required=False, install=(),
                 coordinator=False, networks=False, own_names=False, task_plugin="task/none",
                 port_base=0, slurmd_timeout=10, user=USER, debug="debug", extra_conf="", conf_files=None):
        self.state = pathlib.Path(state).resolve()
        self.nodes, self.cpus = nodes, cpus
        self.proctrack, self.task_plugin = proctrack, task_plugin
        self.plugin, self.plugin_args = plugin, plugin_args
        self.plugin_required, self.icp_config = plugin_required, icp_config
        self.install = [str(program) for program in install]
        self.coordinator, self.networks, self.own_names = coordinator, networks, own_names
        self.port_base, self.slurmd_timeout = port_base, slurmd_timeout
        self.claim = None  # on the ports
        self.user, self.debug, self.extra_conf = user, debug, extra_conf
        self.conf_files = conf_files or {}
        self.prefix = "icp" + hashlib.sha256(str(self.state).encode()).hexdigest()[:6]
        self.memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        self.coordinator_host = self.address  # where icpctld listens
        self.coordinator_at = None  # host:port that agents are told instead, if not None
        self.pids = {}  # daemon's name -> [pid, start time]
        self.ipc_before = set()
        self.children = []  # what this object started and must reap
        self.guardian = None
        self.node_networks = {}  # by node's number

    # --- paths and names -------------------------------------------------

    @property
    def conf_dir(self):
        return self.state / "etc"

    @property
    def conf(self):
        return self.conf_dir / "slurm.conf"

    @property
    def log_dir(self):
        return self.state / "log"

    @property
    def bin_dir(self):
        return self.state / "bin"

    @property
    def lib_dir(self):
        return self.state / "lib"

    @property
    def work(self):
        """A directory of the jobs' user; where run() starts commands."""
        return self.state / "work"

    @property
    def home(self):
        return self.state / "home"

    @property
    def munge_socket(self):
        return self.state / "munge" / "socket"

    def node(self, i):
        """The name of node `i`, counted from 1."""
        return f"{self.prefix}n{i}"

    @property
    def node_names(self):
        return [self.node(i) for i in range(1, self.nodes + 1)]

    @property
    def address(self):
        """Where slurmctld and icpctld listen."""
        return networks.HUB if self.networks else "127.0.0.1"

    @property
    def coordinator_port(self):
        return self.port_base + self.nodes + 1

    @property
    def coordinator_log(self):
        """What icpctld wrote (coordinator_log is stderr in icp.yaml)."""
        return self.log_dir / "icpctld.out"

    def slurmd_log(self, i=1):
        return self.log_dir / f"slurmd.{self.node(i)}.log"

    @property
    def slurmctld_log(self):
        return self.log_dir / "slurmctld.log"

    # --- up ----------------------------------------------------------------

    def up(self):
        """Bring the cluster up and wait until every node is idle. Returns self."""
        if os.geteuid() != 0:
            raise ClusterError("a private cluster needs root (slurmd and slurmctld change users)")
        self._require_programs()
        self._clear_state()
        self.proctrack = self.proctrack or "cgroup"
        if self.proctrack == "cgroup" and not have_freezer():
            print("icp-cluster: no freezer cgroup (v1) here: proctrack/linuxproc is used instead",
                  file=sys.stderr)
            self.proctrack = "linuxproc"
        try:
            self._make_directories()
            self.port_base = self.port_base or self._free_ports()
            self._save()
            self._install()
            self._write_conf()
            self._start_munged()
            self._spawn("slurmctld", [*self._with_hosts(), "slurmctld", "-D", "-c"])
            if self.coordinator:
                self.start_coordinator()
            for i in range(1, self.nodes + 1):
                self.start_node(i, wait=False)
            self.wait_idle()
        except BaseException:
            self.down()
            raise
        return self

    def _require_programs(self):
        for name in ("munged", "slurmctld", "slurmd", "srun", "ipcrm"):
            if shutil.which(name, path=self._path()) is None:
                raise ClusterError(f"{name} is not installed; packaging/install-deps does it")

    def _clear_state(self):
        """Take away what an earlier run in this state directory left."""
        if (self.state / MARKER).exists():
            Cluster.load(self.state).down()
        elif self.state.exists() and any(self.state.iterdir()):
            raise ClusterError(f"{self.state} is neither empty nor a cluster's state directory")
        for name in ("munge", "ctld", "icpctld", "spool", "run", "etc", "log"):
            shutil.rmtree(self.state / name, ignore_errors=True)

    def _make_directories(self):
        if len(str(self.munge_socket)) > 100:
            raise ClusterError(f"{self.state} is too long a path for a socket in it")
        self.state.mkdir(parents=True, exist_ok=True)
        self._save()
        account = ensure_user(self.user)
        self.ipc_before = leftovers.ipc_objects(account.pw_uid)
        for name in ("", "munge", "ctld", "icpctld", "spool", "run", "etc", "log", "bin", "lib"):
            path = self.state / name
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        os.chown(self.state, 0, 0)  # daemons distrust what others can rename
        for path in (self.work, self.home):
            path.mkdir(exist_ok=True)
            os.chown(path, account.pw_uid, account.pw_gid)
            path.chmod(0o700)
        if self.run(["test", "-w", "."], user=self.user, check=False).returncode != 0:
            raise ClusterError(f"the user {self.user} cannot reach {self.work}: every directory "
                               "above it must be traversable by others (or choose another --state)")

    def _install(self):
        for source in self.install:
            shutil.copy(source, self.bin_dir)
            (self.bin_dir / pathlib.Path(source).name).chmod(0o755)
        if (self.bin_dir / "icp-proxy").exists():
            launch = self.bin_dir / "launch"
            launch.mkdir(exist_ok=True)
            (launch / "srun").unlink(missing_ok=True)
            (launch / "srun").symlink_to("../icp-proxy")
        if self.plugin:
            target = self.lib_dir / pathlib.Path(self.plugin).name
            shutil.copy(self.plugin, target)
            target.chmod(0o755)

    def _write_conf(self):
        self.conf.write_text(slurmconf.slurm_conf(self))
        (self.conf_dir / "cgroup.conf").write_text(slurmconf.cgroup_conf())
        for name, text in self.conf_files.items():
            (self.conf_dir / name).write_text(text.replace("{state}", str(self.state)))
        self.set_icp_config(self.icp_config)
        self.set_plugin_args(self.plugin_args, self.plugin_required)

    @property
    def icp_run_dir(self):
        """Where the plugin keeps what outlives a step: pinned namespaces, ledgers."""
        return self.state / "run" / "icp"

    def set_icp_config(self, lines):
        """Rewrite icp.yaml: `lines` besides run_dir and what leads to the coordinator.
        icpctld reads it again on reload_coordinator(), agents and commands at their start."""
        if self.coordinator:
            lines = slurmconf.coordinator_yaml(self) + lines
        self._replace("icp.yaml", slurmconf.icp_yaml(self.icp_run_dir, lines))

    def set_plugin_args(self, arguments, required=False):
        """Rewrite plugstack.conf; in force for steps and commands started from now on."""
        plugin = self.lib_dir / pathlib.Path(self.plugin).name if self.plugin else None
        for name, value in (("etc", self.conf_dir), ("bin", self.bin_dir), ("lib", self.lib_dir)):
            arguments = arguments.replace("{" + name + "}", str(value))
        self._replace("plugstack.conf", slurmconf.plugstack_conf(
            plugin, "required" if required else "optional", arguments))

    def _replace(self, name, text):
        """A configuration file, renamed into place: a daemon may be reading the old one."""
        fresh = self.conf_dir / (name + ".new")
        fresh.write_text(text)
        fresh.rename(self.conf_dir / name)

    def _free_ports(self):
        """The first of nodes+2 free ports in a row, below the kernel's ephemeral range."""
        for _ in range(200):
            base = random.SystemRandom().randrange(11000, 31000, 64)
            claim = socket.socket(socket.AF_UNIX)
            try:
                # Another cluster that is about to start may have found the same ones: held as long as this process is.
                claim.bind(f"\0icp-test-ports {base}")
                for port in range(base, base + self.nodes + 2):
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("", port))
                self.claim = claim
                return base
            except OSError:
                claim.close()
        raise ClusterError("no free ports between 11000 and 31000")

    def _start_munged(self):
        directory = self.state / "munge"
        key = directory / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        # --force: the state directory may be below one that is not root's.
        self._spawn("munged", [
            "munged", "--foreground", "--force", "--num-threads=4",
            f"--socket={self.munge_socket}", f"--key-file={key}",
            f"--pid-file={directory}/pid", f"--log-file={self.log_dir}/munged.log",
            f"--seed-file={directory}/seed"])
        self.wait_for(self.munge_socket.exists, 20, "munged's socket")

    def _with_hosts(self):
        """Words before a command that make it find the nodes in /etc/hosts, and nobody else: slurmctld 24.11 looks up
        a node's name when it requeues a job, whatever NodeAddr says, and hangs for ten seconds without."""
        hosts = self.conf_dir / "hosts"
        nodes = "".join(f"{networks.address(i) if self.networks else '127.0.0.1'} {self.node(i)}\n"
                        for i in range(1, self.nodes + 1))
        machine = pathlib.Path("/etc/hosts")
        if not machine.exists():
            return []
        hosts.write_text(machine.read_text() + "\n" + nodes)
        return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts]

    def start_node(self, i, wait=True):
        """Start slurmd of node `i`; with `wait`, until the node takes jobs again."""
        node = self.node(i)
        (self.state / "spool" / node).mkdir(exist_ok=True)
        command = ["slurmd", "-D", "-N", node]
        if self.networks:
            if i not in self.node_networks:
                self.node_networks[i] = networks.Node(i)
            command = self.node_networks[i].command(node) + command
        elif self.own_names:
            command = networks.own_name(node) + command
        self._spawn(f"slurmd.{i}", command, ICP_CLUSTER_NODE=node)
        if wait:
            self.wait_idle([node])

    def start_coordinator(self, wait=True, config=None, within=(), **environment):
        """Start icpctld, in the foreground; with `wait`, until it takes connections. `config`: another file than the
        cluster's icp.yaml; `within`: words of a command that runs it (nsenter ...)."""
        program = self.bin_dir / "icpctld"
        if not program.exists():
            raise ClusterError("icpctld is not among the installed programs")
        self._spawn("icpctld", [*within, program, "--config", config or self.conf_dir / "icp.yaml"], **environment)
        if wait:
            self.wait_for(self._coordinator_listens, 20, f"icpctld to listen ({self.coordinator_log})")

    def _coordinator_listens(self):
        if not self.alive("icpctld"):
            raise ClusterError(f"icpctld ended at its start:\n{self.log_tail('icpctld')}")
        with socket.socket() as probe:
            return probe.connect_ex((self.coordinator_host, self.coordinator_port)) == 0

    def reload_coordinator(self):
        """Have icpctld read icp.yaml again. Returns at once."""
        os.kill(self.pids["icpctld"][0], signal.SIGHUP)

    def kill_coordinator(self, signum=signal.SIGKILL):
        """End icpctld and wait until it is gone. Returns its exit status (-signal if it died of one),
        None if this object did not start it."""
        self._kill_daemon("icpctld", signum)
        self.wait_for(lambda: not self.alive("icpctld"), 20, "icpctld to end")
        pid, _ = self.pids.pop("icpctld")
        self._save()
        return next((child.returncode for child in self.children if child.pid == pid), None)

    def _spawn(self, name, command, **environment):
        with open(self.log_dir / f"{name}.out", "ab") as out:
            child = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
                env=self.env(**environment), start_new_session=True)
        self.children.append(child)
        self.pids[name] = [child.pid, leftovers.start_time(child.pid)]
        self._save()

    def node_states(self):
        """{node's name: state as sinfo prints it}, empty if slurmctld does not answer."""
        try:
            listing = self.run(["sinfo", "-h", "-N", "-o", "%N %T"], timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return {}
        return dict(line.split() for line in listing.stdout.splitlines())

    def wait_idle(self, names=None, timeout=60):
        """Wait until the nodes (all, by default) are up: idle, or busy with jobs."""
        ready = {"idle", "mixed", "allocated"}

        def is_ready():
            for daemon in list(self.pids):
                if not self.alive(daemon):
                    raise ClusterError(f"{daemon} ended at its start:\n{self.log_tail(daemon)}")
            states = self.node_states()
            return all(states.get(name) in ready for name in names or self.node_names)

        self.wait_for(is_ready, timeout, f"nodes to be up ({self.log_dir})")

    # --- down ----------------------------------------------------------------

    def down(self, purge=False):
        """Stop everything of this cluster and remove its traces from the machine.

        Returns a list of sentences on what could not be removed; empty is good.
        With `purge` the state directory goes as well.
        """
        self._reap()
        complaints = self._stop_coordinator()
        for name in ("slurmctld", *(n for n in self.pids if n.startswith("slurmd."))):
            self._kill_daemon(name)
        complaints += self._clean_nodes(self.node_names)
        self._kill_daemon("munged")
        self._reap()
        while self.node_networks:
            self.node_networks.popitem()[1].close()
        self._dismiss_guardian()
        for point in leftovers.unmount(self._mount_roots()):
            complaints.append(f"still mounted: {point}")
        if self.user == USER:  # a person may have made objects outside this cluster
            leftovers.remove_ipc(self.ipc_objects())
        self.pids = {}
        if self.state.exists():
            self._save()
        if purge:
            shutil.rmtree(self.state, ignore_errors=True)
        return complaints

    def _stop_coordinator(self):
        """SIGTERM, as a service manager does it; what does not end of that is killed and complained of."""
        if not self.alive("icpctld"):
            return []
        try:
            status = self.kill_coordinator(signal.SIGTERM)
        except ClusterError:
            self._kill_daemon("icpctld")
            return ["icpctld did not end of SIGTERM"]
        return [] if status in (0, None) else [f"icpctld ended with {status}"]

    def guard(self):
        """Have the cluster taken down and its directory removed should this process die
        before it calls down(), by whatever signal."""
        command = pathlib.Path(__file__).with_name("icp-cluster")
        self.guardian = subprocess.Popen(
            [command, "down", "--purge", "--when-stdin-ends", "--state", self.state],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True)

    def _dismiss_guardian(self):
        if self.guardian is not None:
            self.guardian.kill()
            self.guardian.communicate()
            self.guardian = None

    def _clean_nodes(self, names):
        """Kill what runs on the nodes, and remove their cgroups."""
        leftovers.thaw(names)
        complaints = [f"process {pid} does not die"
                      for pid in leftovers.kill_all(lambda: leftovers.processes(names))]
        complaints += [f"cgroup {path} cannot be removed"
                       for path in leftovers.remove_cgroups(names)]
        return complaints

    def _mount_roots(self):
        """Directories of this cluster on which anything may be mounted."""
        return [self.state, *(pathlib.Path("/run/slurm-icp") / name for name in self.node_names)]

    def _kill_daemon(self, name, signum=signal.SIGKILL):
        if self.alive(name):
            os.kill(self.pids[name][0], signum)
            if signum == signal.SIGKILL:
                self.wait_for(lambda: not self.alive(name), 10, f"{name} to end")

    def kill_slurmd(self, i, signum=signal.SIGKILL):
        """End slurmd of node `i` alone; its steps run on."""
        self._kill_daemon(f"slurmd.{i}", signum)
        self.wait_for(lambda: not self.alive(f"slurmd.{i}"), 20, f"slurmd {i} to end")

    def kill_node(self, i):
        """End all that runs on node `i` by SIGKILL, as if it had lost its power."""
        self._kill_daemon(f"slurmd.{i}")
        self._clean_nodes([self.node(i)])

    def leftovers(self):
        """Sentences on what of this cluster is on the machine now."""
        names = self.node_names
        found = [f"process {pid}: " + leftovers.read(f"/proc/{pid}/cmdline")
                 .replace(b"\0", b" ").decode(errors="replace") for pid in
                 leftovers.processes(names)]
        found += [f"{name} runs" for name in self.pids if self.alive(name)]
        found += [f"cgroup {path}" for path in leftovers.node_cgroups(names)]
        found += [f"mount {point}" for point in leftovers.mounts(self._mount_roots())]
        return found + [f"IPC object {item}" for item in self.ipc_objects()]

    def ipc_objects(self):
        """IPC objects of the jobs' user that came since up(), in the machine's own
        IPC namespace: {(kind, id, key, ctime)}."""
        try:
            uid = pwd.getpwnam(self.user).pw_uid
        except KeyError:
            return set()
        return leftovers.ipc_objects(uid) - self.ipc_before

    # --- use -----------------------------------------------------------------

    def _path(self):
        return f"{self.bin_dir}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

    def exports(self):
        """The variables that make Slurm's commands, and ours, talk to this cluster."""
        return {"SLURM_CONF": str(self.conf), "ICP_CLUSTER_STATE": str(self.state),
                "ICP_CONFIG": str(self.conf_dir / "icp.yaml"), "PATH": self._path()}

    def env(self, **more):
        """A whole environment for a command of this cluster; of ours only the locale stays."""
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "TERM", "TZ")
                if key in os.environ}
        return {**kept, "HOME": "/root", "USER": "root", "LOGNAME": "root",
                **self.exports(), **more}

    def popen(self, command, *, user=None, env=None, cwd=None, **more):
        """Start `command` (a list, or text for bash) and return its Popen. down() kills it."""
        settings = {"env": self.env(**(env or {})), "cwd": cwd or self.work,
                    "stdin": subprocess.DEVNULL, "start_new_session": True, "text": True}
        if user is not None:
            account = pwd.getpwnam(user)
            settings.update(user=account.pw_uid, group=account.pw_gid,
                            extra_groups=os.getgrouplist(user, account.pw_gid))
            settings["env"].update(HOME=str(self.home), USER=user, LOGNAME=user, **(env or {}))
        settings.update(more)
        if isinstance(command, str):
            command = ["/bin/bash", "-c", command]
        child = subprocess.Popen([str(word) for word in command], **settings)
        self.children.append(child)
        return child

    def run(self, command, *, user=None, timeout=60, check=True, **more):
        """Run `command` to its end. Returns a CompletedProcess with text in stdout, stderr.

        After `timeout` seconds its process group is killed and TimeoutExpired raised.
        With `check` a failure raises ClusterError with all that it printed.
        """
        child = self.popen(command, user=user, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, **more)
        try:
            out, err = child.communicate(timeout=timeout * SLOWNESS)
        except BaseException:
            self._kill_group(child)
            child.communicate()
            raise
        finally:
            self.children.remove(child)
        if check and child.returncode != 0:
            raise ClusterError(f"{command} ended with {child.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(command, child.returncode, out, err)

    @staticmethod
    def wait_for(predicate, timeout, what):
        """Poll `predicate` until it is true; return its value. ClusterError after `timeout` s."""
        timeout *= SLOWNESS
        deadline = time.monotonic() + timeout
        while True:
            if value := predicate():
                return value
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {timeout} s in vain for {what}")
            time.sleep(0.05)

    def alive(self, name):
        """True if the daemon runs that was started under this name."""
        for child in self.children:
            if child.pid == self.pids.get(name, [0])[0]:
                child.poll()
        pid, started = self.pids.get(name, (0, None))
        return pid > 0 and started is not None and leftovers.start_time(pid) == started

    def log_tail(self, name, lines=15):
        """The end of a daemon's own log and of what it printed."""
        log = name if not name.startswith("slurmd.") else f"slurmd.{self.node(int(name[7:]))}"
        text = ""
        for path in (self.log_dir / f"{log}.log", self.log_dir / f"{name}.out"):
            if path.exists():
                text += "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    @staticmethod
    def _kill_group(child):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _reap(self):
        """Kill commands started by popen() and reap the daemons that ended."""
        daemons = {entry[0] for entry in self.pids.values()}
        for child in self.children:
            if child.pid not in daemons and child.poll() is None:
                self._kill_group(child)
                child.wait()
        self.children = [child for child in self.children if child.poll() is None]

    # --- the state file ----------------------------------------------------------

    SAVED = ("nodes", "cpus", "proctrack", "plugin", "plugin_args", "icp_config", "plugin_required",
             "install", "coordinator", "networks", "own_names", "task_plugin", "port_base", "slurmd_timeout", "user", "debug", "extra_conf",
             "conf_files")

    def _save(self):
        data = {name: getattr(self, name) for name in self.SAVED}
        data["plugin"] = str(self.plugin) if self.plugin else None
        record = {"options": data, "boot": leftovers.boot_id(), "pids": self.pids,
                  "ipc_before": sorted(self.ipc_before)}
        fresh = self.state / (MARKER + ".new")
        fresh.write_text(json.dumps(record, indent=1))
        fresh.rename(self.state / MARKER)

    @classmethod
    def load(cls, state):
        """The cluster whose state directory this is, up or down."""
        path = pathlib.Path(state) / MARKER
        try:
            record = json.loads(path.read_text())
            cluster = cls(state, **record["options"])
            if record["boot"] == leftovers.boot_id():
                cluster.pids = record["pids"]
                cluster.ipc_before = {tuple(item) for item in record["ipc_before"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"{state} is not a cluster's state directory: {error}") from error
        return cluster

    def __enter__(self):
        self.up()
        self.guard()
        return self

    def __exit__(self, *_):
        self.down()
