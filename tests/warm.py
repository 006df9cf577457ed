"""A Python that has imported torch already, for tests in which DVC starts many stages.

Every stage is a process of its own, and importing torch is two seconds of it: of a pipeline on tiny data, nearly all.
`folder()` has a `python` that asks a server beside it to fork: the child gets the caller's arguments, environment,
working directory and streams, and runs the module that is named, as `python -m` does. Of this project the server has
imported nothing, so a copy of the project runs its own code. Whatever else is asked for goes to the real Python.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from functools import cache
from pathlib import Path

IMPORTED = (
    "torch._dynamo", "torch.distributed.launcher.api", "accelerate", "cv2", "dvc.cli.command", "dvc.repo", "dvclive",
    "jaxtyping", "pandas", "PIL.Image", "pyarrow.parquet", "pydantic.main", "pytest", "rich.progress", "ruamel.yaml",
    "safetensors.torch", "scipy.stats", "timm", "typer",
)  # fmt: skip
KILL = signal.SIGUSR1
"""What a warm Python must be sent for its child to be killed: SIGKILL itself would reach the one that asked alone."""

PIECE = 1 << 20
"""Bytes of a request that are read at a time."""

ASK = """#!{python} -IS
import os, signal, socket, sys
words = sys.argv[2 if sys.argv[1:3] == ["-u", "-m"] else 1 :]
if words[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *words])
import json
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    content = json.dumps([words[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(content).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(content)
    child = int.from_bytes(server.recv(4), "big")
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, _: os.kill(child, number))
    signal.signal({kill}, lambda *_: os.kill(child, signal.SIGKILL))
    answer = server.recv(4)
code = int.from_bytes(answer, "big", signed=True) if answer else 1
if code < 0:  # as it died
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def folder() -> Path:
    """Where `python` is the warm one; its server ends with this process."""
    place = Path(tempfile.mkdtemp(prefix="warm-"))
    address = place / "socket"
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(address)],
        stdin=subprocess.PIPE,  # closed when this process is gone, however it went, and with it the server
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert server.stdin is not None
    atexit.register(server.stdin.close)
    python = place / "python"
    python.write_text(ASK.format(python=sys.executable, address=str(address), kill=int(KILL)))
    python.chmod(0o755)
    while not address.exists():
        assert server.poll() is None, "the server of warm processes did not start"
        time.sleep(0.02)
    return place


def path() -> str:
    """PATH with the warm Python first, then all that is beside the real one."""
    return os.pathsep.join((str(folder()), str(Path(sys.executable).parent), os.environ["PATH"]))


def environment() -> dict[str, str]:
    """Of a process that starts the warm Python, and of torchrun, whose processes are of it, too."""
    threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | threads | {"PATH": path(), "PYTHON_EXEC": str(folder() / "python")}


def serve(address: Path) -> None:
    """Fork for whoever asks, until nobody holds the other end of the standard input; then the folder goes, too."""
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    runpy.run_path(str(Path(__file__).with_name("quick.py")))["pngs"]()
    gc.collect()
    gc.freeze()  # a child that looked at all of it for garbage would copy all of it
    gc.enable()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(16)
        Path(f"{address}.new").rename(address)  # who finds it is answered
        while server in select.select([server, sys.stdin], [], [])[0]:
            asking, _ = server.accept()
            if os.fork() == 0:
                server.close()
                attend(asking, address.parent / "python")
            asking.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    shutil.rmtree(address.parent)


def attend(asking: socket.socket, warm: Path) -> None:
    """Run what is asked for in a child, and tell its exit code."""
    head, streams, _, _ = socket.recv_fds(asking, 4, 3)
    size, content = int.from_bytes(head, "big"), b""
    while len(content) < size and (more := asking.recv(PIECE)):
        content += more
    arguments, environment, here = json.loads(content)
    child = os.fork()
    if child == 0:
        asking.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)
        paths = environment.get("PYTHONPATH", "")
        sys.path[:1] = [here, *filter(None, paths.split(os.pathsep))]
        sys.argv = arguments
        sys.executable = str(warm)  # what it starts is warm, too
        os._exit(run(arguments[0]))
    asking.sendall(child.to_bytes(4, "big"))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(BrokenPipeError):
        asking.sendall(code.to_bytes(4, "big", signed=True))
    os._exit(0)


def run(module: str) -> int:
    """Run a module as `python -m` does, to its exit code, but leave all that was imported as it lies.

    To take apart what torch and the rest have made is three seconds, as the memory is shared until it is written to.
    """
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
