"""A page in a real browser, without a window and without a network."""

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAME = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *(
        "--proxy-server=127.0.0.1:9",
        "--virtual-time-budget=300000",
    ),  # of a busy machine: what a page waits for takes real time
)


def seen(page: Path, script: str, folder: Path, width: int = 1280) -> Any:
    """What the asynchronous function body `script` returns, run in the page once it has loaded.

    Skips the test where there is no browser; an error of the page itself fails it.
    """
    if NAME is None:
        pytest.skip("there is no Chromium here")
    probe = f"""<script>
    const said = [];
    addEventListener("error", (event) => said.push(event.message));
    addEventListener("unhandledrejection", (event) => said.push(String(event.reason)));
    const waited = (ready) => new Promise((done) => {{
      const again = () => (ready() ? done() : setTimeout(again, 20));
      again();
    }});
    addEventListener("load", async () => {{
      let found = null;
      try {{ found = await (async () => {{ {script} }})(); }} catch (error) {{ said.push(String(error)); }}
      document.body.replaceChildren();
      document.body.dataset.found = JSON.stringify({{ found, said }});
    }});
    </script>"""
    driven = folder / "driven.html"
    driven.write_text(page.read_text().replace("<head>", f"<head>{probe}", 1))
    own = ["--dump-dom", f"--window-size={width},900", f"--user-data-dir={folder / 'browser'}"]
    done = subprocess.run([NAME, *OPTIONS, *own, driven.as_uri()], capture_output=True, text=True, timeout=120)
    _, _, rest = done.stdout.partition('data-found="')
    assert rest, f"the page did not end: {done.stderr[-500:]}"
    answer = json.loads(html.unescape(rest.partition('"')[0]))
    assert answer["said"] == []
    return answer["found"]
