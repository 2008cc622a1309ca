"""Takes the README's picture of the explorer: python tools/screenshot.py RUN figures/explorer.png

RUN is a finished run of drfer on rendered faces. Needs the extra `dev` and Debian's or Google's chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile

from playwright.sync_api import sync_playwright


def main(run: str, output: str) -> None:
    """Serve the explorer, choose a face of the second row, and write what the browser shows."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = subprocess.Popen(
            [sys.executable, "-m", "ferlab.cli", "explore", "--run", run, "--no-browser", "--decisions",
             f"{folder}/decisions.csv"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(found.group() for line in server.stdout if (found := re.search(r"http://127\S+", line)))
            page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
                viewport={"width": 1420, "height": 860})
            page.goto(address, wait_until="commit")
            page.locator(".ferlab-gallery .tile").nth(6).click(timeout=120_000)
            page.wait_for_timeout(3000)
            page.screenshot(path=output)
        finally:
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
