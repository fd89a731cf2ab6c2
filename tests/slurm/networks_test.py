# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes with addresses of their own: connections between them move when a step is restored elsewhere."""

import harness
import networks
from layouts import LayoutCase

# Listens where every node's task does, and counts.
SERVER = ["perl", "-e", "use IO::Socket::INET; $| = 1;"
          "my $s = IO::Socket::INET->new(LocalPort => 5555, Listen => 1) or die; "
          "for my $i (1 .. 600) { print qq($i\\n); select undef, undef, undef, 0.1 }"]


class OwnNetworks(LayoutCase):
    options = {**LayoutCase.options, "networks": True}

    @classmethod
    def configure(cls):
        networks.leave_host()
        super().configure()

    def test_connections_follow_the_step_to_other_nodes(self):
        answer = self.results(self.sh(["srun", "-N1", "-n2", *self.ring("answer", 900)[:-1], "0"], timeout=60).stdout)
        self.assertEqual(len(answer), 2)
        ring = self.ring("ring", 900)
        wrapped = ["sh", "-c", f"TCP_RING_ADDRESS={networks.address('${SLURMD_NODENAME##*n}')} exec \"$0\" \"$@\"", *ring]
        one, two, three = self.cluster.node_names
        names = {one, two}
        image = self.killed_ring(["-N2", "-n2", "-w", f"{one},{two}", *wrapped], 2, names)
        self.assertTrue((self.work / "ring" / "0").read_text().startswith(networks.address(1)))
        self.assertTrue((self.work / "ring" / "1").read_text().startswith(networks.address(2)))
        # Swapped: each address is the other one's now; then one new node; both on one; and apart again.
        swap, environment = self.hostfile(2, 1)
        image = self.killed_ring([*swap, "-n2", f"--restart-dir={image}", "none"], 2, names, "swap.out", environment)
        out = self.through(image, 2, names, [["-N2", "-n2", "-w", f"{two},{three}"], ["-N1", "-n2", "-w", three],
                                             ["-N2", "-n2", "-w", f"{one},{three}"]])
        self.assertEqual(self.results(out), answer)

    def test_two_listeners_of_one_port_cannot_share_a_node(self):
        one, two, _ = self.cluster.node_names
        srun, job = self.start_srun("-N2", "-n2", "-w", f"{one},{two}", "--checkpoint-interval=1s", *SERVER,
                                    output="server.out")
        self.wait_capsules(f"{job}.0", {one, two}, 1)
        self.sh(["scancel", job])
        srun.wait(30)
        self.one_complaint(self.srun("-N1", "-n2", f"--restart-dir={job}.0", "none"),
                           r"the processes of \S+n1 and \S+n2 cannot share a node: both have TCP port 5555; restart the "
                           "step on as many nodes as it had")


if __name__ == "__main__":
    harness.main()
