"""``examples/browser.py`` and its page: in a real Chromium where there is one, and in node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from .conftest import Package

pytestmark = pytest.mark.interop

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE_SCRIPT = Path(__file__).with_name("browser.mjs")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEADLINE = 60.0
# What a person does with the page, and sees.
VISIT = """
new Promise(async (done) => {
  const text = (id) => document.getElementById(id).textContent;
  const pause = () => new Promise((next) => setTimeout(next, 10));
  const until = async (condition) => { while (!condition()) await pause(); };
  await until(() => text('state') === 'connected' && text('pages') === '1');
  document.querySelector('input').value = 'wie geht’s?';
  document.querySelector('button').click();
  await until(() => text('answers') !== '');
  const before = text('answers');
  line.socket.close();
  await until(() => text('state') === 'not connected');
  await until(() => text('state') === 'connected');
  document.querySelector('input').value = 'again';
  document.querySelector('button').click();
  await until(() => text('answers') !== before);
  done({ answers: text('answers'), clock: text('clock') });
})
"""


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Where the page is, with the node's address and the token behind the ``#``."""
    command = (sys.executable, EXAMPLES / "browser.py", "0")
    program = await asyncio.create_subprocess_exec(*map(str, command), stdout=PIPE)
    assert program.stdout is not None
    async with asyncio.timeout(DEADLINE):
        yield (await program.stdout.readline()).decode().strip()
    await _end(program)


async def _end(program: Process) -> None:
    if program.returncode is None:
        program.terminate()
    await program.communicate()


async def test_the_page_in_node(address: str, reusing_package: Package) -> None:
    node, token = address.partition("#")[2].split(",")
    command = ("node", NODE_SCRIPT, reusing_package.folder.parent, EXAMPLES / "browser.html", node, token)
    program = await asyncio.create_subprocess_exec(*map(str, command), stdout=PIPE)
    async with asyncio.timeout(DEADLINE):
        out, _ = await program.communicate()
    seen = json.loads(out)
    assert seen["states"] == ["connected", "not connected", "connected"]
    said = [("a", 1), ("ä😀", 2), ("", 0), ("again", 5)]
    assert seen["answers"] == [f"You have asked {text!r}, which has {n} characters." for text, n in said]
    assert (set(seen["told"]), seen["refused"]) == ({"clock", "pages"}, "no answer in time")


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[ClientConnection]:
    """A tab of a headless Chromium, over its DevTools protocol."""
    if CHROMIUM is None:
        reason = "chromium is not installed; the page's JavaScript runs in node"
        pytest.fail(reason) if os.environ.get("OPENLINE_REQUIRE_INTEROP") == "1" else pytest.skip(reason)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", "about:blank"]
    browser = await asyncio.create_subprocess_exec(CHROMIUM, *options, stdout=PIPE, stderr=PIPE)
    try:
        yield await _tab_of(browser)
    finally:
        await _end(browser)


async def _tab_of(browser: Process) -> ClientConnection:
    assert browser.stderr is not None
    async with asyncio.timeout(DEADLINE):
        line = ""
        while "DevTools listening on " not in line:
            line = (await browser.stderr.readline()).decode()
            assert line, "it has ended"
        whole = await connect(line.split()[-1], proxy=None)
        found = await _ask(whole, "Target.getTargets")
        [page] = [each for each in found["targetInfos"] if each["type"] == "page"]
        await whole.close()
        place = line.split()[-1].partition("/devtools/")[0]
        return await connect(f"{place}/devtools/page/{page['targetId']}", proxy=None)


async def _ask(connection: ClientConnection, method: str, **params: Any) -> dict[str, Any]:
    await connection.send(json.dumps({"id": 1, "method": method, "params": params}))
    async for text in connection:
        message = json.loads(text)
        if message.get("id") == 1:
            assert "error" not in message, message
            return dict(message["result"])
    raise AssertionError("the browser has gone")


async def test_the_page_in_a_browser(address: str, tab: ClientConnection) -> None:
    async with asyncio.timeout(DEADLINE):
        await _ask(tab, "Page.navigate", url=address)
        while True:
            ready = await _ask(tab, "Runtime.evaluate", expression="typeof line === 'object'")
            if ready["result"]["value"]:
                break
        found = await _ask(tab, "Runtime.evaluate", expression=VISIT, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in found, found
    seen = found["result"]["value"]
    said = [("wie geht’s?", 11), ("again", 5)]
    lines = [f"{text}\n  You have asked {text!r}, which has {n} characters.\n" for text, n in said]
    assert seen["answers"] == "".join(lines)
    assert len(seen["clock"].split(":")) == 3
    await tab.close()
