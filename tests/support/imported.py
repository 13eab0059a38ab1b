"""Which heavy modules a command imports."""

import subprocess
import sys
from collections.abc import Mapping

from tests.support.service import read_until

HEAVY = {"torch", "onnxruntime", "transformers", "timm", "open_clip", "alembic", "sqlalchemy", "PIL", "numpy"}
CODE = """
import atexit, sys
sys.argv = ["pgimgsearch", *{arguments!r}]
atexit.register(lambda: print("imported", *({heavy!r} & set(sys.modules)), file=sys.stderr))
from pgimgsearch.cli.app import main
main()
"""


def heavy_modules_of_service(environment: Mapping[str, str], ready: str, *arguments: str) -> set[str]:
    """The same of a command that runs until SIGTERM, once it has said that it is ready."""
    code = CODE.format(arguments=arguments, heavy=HEAVY)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={"PATH": "/usr/bin"} | {**environment}
    )
    said = read_until(process, ready)
    process.terminate()
    said += process.communicate()[1]
    assert process.returncode == 0, said
    return set(said.splitlines()[-1].split()[1:])


def heavy_modules(environment: Mapping[str, str], *arguments: str) -> set[str]:
    """Of ``HEAVY``, those that are loaded when a command that succeeds ends."""
    code = CODE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin"} | {**environment},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])
