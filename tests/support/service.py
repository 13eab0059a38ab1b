"""Commands that run until they are stopped."""

import subprocess


def read_until(process: "subprocess.Popen[str]", ready: str) -> str:
    """What a command says on stderr until it is ready; fails where it ends before."""
    assert process.stderr is not None
    said = ""
    while ready not in said:
        line = process.stderr.readline()
        assert line, f"it did not start: {said}"
        said += line
    return said
