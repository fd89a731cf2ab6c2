# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian kernels in a cache: image, a few modules, headers to build against.

Packages come through apt, which checks signatures: from this machine's own sources where they have the kernel, else from
Debian's archive by a configuration of our own in the cache. Nothing is installed.
"""
import functools
import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Version: where Debian has it, and the pattern of its image package.
KERNELS = {
    "5.10": (("debian bullseye", "debian-security bullseye-security"), r"linux-image-5\.10\.0-[0-9]+-amd64"),
    "6.1": (("debian bookworm", "debian-security bookworm-security"), r"linux-image-6\.1\.0-[0-9]+-amd64"),
    "6.12": (("debian bookworm-backports", "debian-security bookworm-security"),
             r"linux-image-6\.12\.[0-9]+\+deb12-amd64"),
}
# What the guest loads, in this order; what they need comes along.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "zram", "ext4", "unix_diag", "inet_diag", "udp_diag",
           "tcp_diag", "xxhash_generic", "lzo-rle", "crc32c_generic")


class Unavailable(Exception):
    """A package cannot be had here; the text says what to do."""


def cache_dir():
    base = os.environ.get("ICP_VM_CACHE")
    if base:
        return pathlib.Path(base)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "slurm-icp"


class Apt:
    """apt, with this machine's sources or with one suite's own."""

    def __init__(self, cache, suites=None):
        self.options = []
        if suites:
            root = cache / ("apt-" + suites[0].split()[1])
            for sub in ("state/lists/partial", "cache/archives/partial", "etc"):
                (root / sub).mkdir(parents=True, exist_ok=True)
            (root / "status").touch()
            (root / "etc/sources.list").write_text("".join(
                f"deb [signed-by={KEYRING} arch=amd64] http://deb.debian.org/{suite} main\n" for suite in suites))
            self.options = [f"-oDir::State={root}/state", f"-oDir::State::status={root}/status",
                            f"-oDir::Cache={root}/cache", f"-oDir::Etc::sourcelist={root}/etc/sources.list",
                            "-oDir::Etc::sourceparts=/dev/null", "-oAPT::Sandbox::User=root",
                            "-oAcquire::Languages=none"]
            self.run("apt-get", "-q", "-oAcquire::Retries=3", "update", check=False)

    def run(self, program, *words, check=True, **more):
        return subprocess.run([program, *self.options, *words], check=check, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, **more).stdout

    def newest(self, pattern):
        """Name and version of the newest package that matches; None when there is none."""
        names = [line.split(" ")[0] for line in self.run("apt-cache", "search", "--names-only", f"^{pattern}$",
                                                         check=False).splitlines()]
        names = [name for name in names if re.fullmatch(pattern, name)]
        if not names:
            return None
        name = max(names, key=lambda one: [int(digits) for digits in re.findall(r"\d+", one)])
        policy = self.run("apt-cache", "policy", name)
        return name, re.search(r"Candidate: (\S+)", policy).group(1)

    def depends(self, name):
        return re.findall(r"Depends: (\S+)", self.run("apt-cache", "depends", "--no-recommends", name))

    def download(self, name, version, to):
        to.mkdir(parents=True, exist_ok=True)
        wanted = f"{name}_{version.replace(':', '%3a')}_"
        if not any(file.name.startswith(wanted) for file in to.iterdir()):
            self.run("apt-get", "-q", "-oAcquire::Retries=3", "-oAPT::Sandbox::User=root", "download",
                     f"{name}={version}", cwd=to)
        return next(file for file in to.iterdir() if file.name.startswith(wanted))


class Kernel:
    """One kernel, unpacked in the cache: .image, .headers, .module_files (in the order to load)."""

    def __init__(self, version, log=print):
        if version not in KERNELS:
            raise Unavailable(f"no kernel {version}: use one of {', '.join(KERNELS)}")
        self.version = version
        self.log = log
        for program in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
            if not shutil.which(program):
                raise Unavailable(f"{program} is missing: kernels come as Debian packages")
        self.cache = cache_dir()
        self.cache.mkdir(parents=True, exist_ok=True)
        try:
            self._find()
        except (subprocess.SubprocessError, StopIteration, OSError) as problem:
            text = getattr(problem, "stdout", None) or str(problem)
            raise Unavailable(f"{text.strip()[-300:]}\n{self._what_to_do()}") from problem

    def _what_to_do(self):
        return (f"kernel {self.version} is not in {self.cache} and could not be fetched: with a connection to "
                f"deb.debian.org, apt-get update && tests/vm/run --kernel {self.version} handshake")

    def _find(self):
        suites, pattern = KERNELS[self.version]
        chosen = self.cache / f"chosen-{self.version}"
        if chosen.exists():
            name, version = chosen.read_text().split()
            apt = None
        else:
            apt, name, version = self._choose(suites, pattern)
        self.release = name.removeprefix("linux-image-")
        self.root = self.cache / f"{name}_{version.replace(':', '_')}"
        self.image = self.root / "boot" / f"vmlinuz-{self.release}"
        self.headers = self.root / "usr/src" / f"linux-headers-{self.release}"
        if not (self.root / "complete").exists():
            if apt is None:
                apt, name, version = self._choose(suites, pattern)
                if name != "linux-image-" + self.release:
                    chosen.unlink()
                    return self._find()
            self._unpack(apt, name, version)
        chosen.write_text(f"{name} {version}\n")
        return None

    def _choose(self, suites, pattern):
        apt = Apt(self.cache)
        found = apt.newest(pattern)
        if not found:
            apt = Apt(self.cache, suites)
            found = apt.newest(pattern)
        if not found:
            raise Unavailable(f"no package {pattern} in this machine's apt sources or at deb.debian.org\n"
                              f"{self._what_to_do()}")
        return apt, *found

    def _unpack(self, apt, name, version):
        shutil.rmtree(self.root, ignore_errors=True)
        debs = self.root / "debs"
        headers = name.replace("linux-image-", "linux-headers-")
        self.log(f"fetching {name} {version} and its headers into {self.root} (once)")
        image = apt.download(name, version, debs)
        self._extract(image, "./boot/vmlinuz-*", "./lib/modules/*/kernel/*")
        wanted = [headers] + [one for one in apt.depends(headers) if re.match(r"linux-(headers|kbuild)-", one)]
        for one in wanted:
            self._extract(apt.download(one, apt.newest(re.escape(one))[1], debs))
        self._relocate()
        kept = self.root / "modules"
        kept.mkdir()
        for index, file in enumerate(self._closure()):
            data = file.read_bytes()
            name = file.name
            if name.endswith(".xz"):
                data, name = lzma.decompress(data), name.removesuffix(".xz")
            (kept / f"{index:02}-{name}").write_bytes(data)
        shutil.rmtree(self.root / "lib/modules", ignore_errors=True)
        shutil.rmtree(debs)
        (self.root / "complete").touch()

    def _extract(self, deb, *members):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as tar:
            subprocess.run(["tar", "-x", "-C", self.root, "--no-same-owner", *(["--wildcards"] if members else []),
                            *members], stdin=tar.stdout, check=True)

    def _relocate(self):
        """The headers' files name their package's place."""
        for file in [*self.root.glob("usr/src/linux-headers-*/Makefile"),
                     *self.root.glob("usr/src/linux-headers-*/.kernelvariables")]:
            text = file.read_text()
            file.write_text(re.sub(r"gcc-1[0-9]\b", "gcc", text.replace("/usr/src/", f"{self.root}/usr/src/")))
        for link in self.root.glob("usr/src/linux-headers-*/*"):
            if link.is_symlink() and os.readlink(link).startswith(("/usr/", "../../lib/", "../../../usr/lib/")):
                target = os.readlink(link)
                if target.startswith("/usr/"):
                    link.unlink()
                    link.symlink_to(str(self.root) + target)

    def _closure(self):
        files = {}
        for file in (self.root / "lib/modules").rglob("*.ko*"):
            files[file.name.split(".")[0].replace("-", "_")] = file
        order = []

        @functools.cache
        def add(name):
            file = files.get(name.replace("-", "_"))
            if file is None:
                return  # built in, or not in this kernel
            data = file.read_bytes()
            if file.name.endswith(".xz"):
                data = lzma.decompress(data)
            found = re.search(rb"\0depends=([^\0]*)\0", b"\0" + data)
            for needed in (found.group(1).decode().split(",") if found else []):
                if needed:
                    add(needed)
            order.append(file)

        for name in MODULES:
            add(name)
        return order

    def packages(self, names):
        """Packages of this machine's own release, as files in a directory of the cache."""
        to = self.cache / "packages"
        apt = Apt(self.cache)
        try:
            for name in names:
                if not list(to.glob(f"{name}_*.deb")):
                    apt.download(*apt.newest(re.escape(name)), to)
        except (subprocess.SubprocessError, TypeError, StopIteration) as problem:
            raise Unavailable(f"{', '.join(names)} could not be fetched: apt-get update") from problem
        return to

    @property
    def module_files(self):
        return sorted((self.root / "modules").iterdir())

    def build_module(self, sources, out):
        """Builds icp_track.ko, if that has not been done; any warning is an error. Returns its path."""
        log, module, stamp = out / "build.log", out / "icp_track.ko", out / "built"
        out.mkdir(parents=True, exist_ok=True)
        used = hashlib.sha256(str(self.headers).encode())
        for file in sorted(one for one in sources.rglob("*") if one.is_file()):
            used.update(str(file).encode() + b"\0" + file.read_bytes())
        if module.exists() and stamp.exists() and stamp.read_text() == used.hexdigest():
            return module
        stamp.unlink(missing_ok=True)
        with log.open("w") as file:
            done = subprocess.run(["make", "-C", sources, f"KDIR={self.headers}", f"OUT={out}"], stdout=file,
                                  stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
        text = log.read_text()
        if done.returncode != 0 or "warning: " in text or "WARNING: modpost" in text:
            raise RuntimeError(f"icp_track.ko does not build cleanly for {self.release}, see {log}:\n{text[-2000:]}")
        stamp.write_text(used.hexdigest())
        return module
