#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of icp report in a real browser: what it makes of it, and what is to be seen. Usage: icp_report_test.py ICP"""
import html.parser
import shutil
import struct
import subprocess
import sys
import zlib

import icp_harness
from icp_harness import icp, wait_for

BROWSER = next((found for name in ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
                if (found := shutil.which(name))), None)
WIDTH, HEIGHT = 1100, 1800
# Writes to a part of its memory, which shows as heat.
WRITES = ["/usr/bin/perl", "-e", "my $m = 'x' x (4 << 20); while (1) { substr($m, $_ << 12, 1) = chr(65 + ++$n % 26) "
          "for 1 .. 300; select undef, undef, undef, 0.05 }"]


class Outline(html.parser.HTMLParser):
    """Elements in their order, each with its class, and the text in table cells and headings."""
    NAMED = {"h1", "h2", "th", "td", "svg", "rect", "line", "table", "tr", "text"}

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in self.NAMED:
            self.elements.append((tag, dict(attributes).get("class", "")))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "th", "td") and data.strip():
            self.texts.append(data.strip())


def pixels(png):
    """{(red, green, blue): how many} and (width, height) of a picture as Chromium writes it: 8 bits, not interlaced."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, interlaced) == (8, 0) and kind in (2, 6)
    data, at = b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at:at + 8])
        if name == b"IDAT":
            data += png[at + 8:at + 8 + length]
        at += 12 + length
    raw, size = zlib.decompress(data), 3 if kind == 2 else 4
    row, counts = bytes(width * size), {}
    for y in range(height):
        begin = y * (width * size + 1)
        row = unfiltered(raw[begin], bytearray(raw[begin + 1:begin + 1 + width * size]), row, size)
        for x in range(0, len(row), size):
            colour = tuple(row[x:x + 3])
            counts[colour] = counts.get(colour, 0) + 1
    return counts, (width, height)


def unfiltered(kind, line, above, size):
    """One line of a PNG, of which each byte is the difference to its neighbours."""
    for i in range(len(line) if kind else 0):
        left, up, corner = (line[i - size] if i >= size else 0), above[i], (above[i - size] if i >= size else 0)
        if kind == 4:
            guess = left + up - corner
            near = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))
            line[i] = line[i] + near[2] & 255
        else:
            line[i] = line[i] + (left, up, (left + up) // 2)[kind - 1] & 255
    return bytes(line)


class Page(icp_harness.Case):
    def make_page(self):
        program = self.start(icp_harness.program(), "run", "--dir", self.image, "--interval", "0.3s", "--", *WRITES)
        wait_for(lambda: len(self.versions()) >= 4, what="four versions")
        program.terminate()
        program.wait(20)
        page = self.dir / "page.html"
        self.assert_ends(icp("report", self.image, "-o", page), 0)
        return page

    def browse(self, page, *options):
        words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
                 "--disable-dev-shm-usage", f"--user-data-dir={self.dir}/profile", f"--window-size={WIDTH},{HEIGHT}",
                 *options, page.as_uri()]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=90 * icp_harness.SLOWNESS, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_a_browser_shows_what_the_page_says(self):
        page = self.make_page()
        ours, shown = Outline(page.read_text()), Outline(self.browse(page, "--dump-dom"))
        # A browser puts the rows of a table into a body, and changes nothing else.
        self.assertEqual(shown.elements, ours.elements)
        self.assertEqual(shown.texts, ours.texts)
        self.assertIn("Which memory changes", shown.texts)
        versions = len(self.versions())
        self.assertEqual(ours.elements.count(("line", "mark")), versions)
        self.assertEqual(len([e for e in ours.elements if e[0] == "rect" and e[1] in ("bar", "full")]), 2 * versions)

        picture = self.dir / "page.png"
        self.browse(page, f"--screenshot={picture}")
        counts, size = pixels(picture.read_bytes())
        self.assertEqual(size, (WIDTH, HEIGHT))
        white = counts.get((255, 255, 255), 0)
        self.assertTrue(0.4 < white / (WIDTH * HEIGHT) < 0.99, white)
        # Those of the stylesheet: versions, bars of whole and of incremental versions, text; and some red for heat.
        for colour, least in (((0x1a, 0x7f, 0x37), 20), ((0x82, 0x50, 0xdf), 500), ((0x54, 0xae, 0xff), 500), ((0x1f, 0x23, 0x28), 100)):
            self.assertGreater(counts.get(colour, 0), least, colour)
        reds = sum(n for (r, g, b), n in counts.items() if r > 200 and r - g > 60 and r - b > 40)
        self.assertGreater(reds, 100)


if __name__ == "__main__":
    if BROWSER is None:
        print("skipped: there is no Chromium (Debian's package chromium)")
        sys.exit(77)
    icp_harness.main(sys.modules[__name__].__doc__)
