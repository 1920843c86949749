"""One machine, several CPU processes that train together as on a cluster: for trying out what a cluster would do.

    python -m launch.local 2 --config=configs/vit_mask.py:demo --workdir=runs/two

All arguments after the number go to `bjax.main`. Ctrl-C and SIGTERM reach every process, a closed terminal does as
SIGTERM; when one fails, the others are ended. Exits with the first code that is not 0 (75: stopped by SIGTERM; the same
command goes on).
"""

import os
import signal
import socket
import subprocess
import sys
import time

from bjax.errors import Parser, as_command, positive
from bjax.launch import signals
from bjax.launch.signals import STOPPED


@as_command
def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    count = _parser().parse_args(argv[:1]).processes
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    shared = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    run = [sys.executable, "-m", "bjax.main", "--distributed=on", *argv[1:]]
    processes, code, passed_on = [], 0, 0
    with signals.heard() as told:
        for index in range(count):
            environment = {**os.environ, **shared, "JAX_PROCESS_ID": str(index)}
            # Sessions of their own: what a terminal sends comes once, from here.
            processes.append(subprocess.Popen(run, env=environment, start_new_session=True))
        while any(process.poll() is None for process in processes):
            for number in told[passed_on:]:
                passed_on += 1
                for process in processes:
                    # A terminal that is closed is no reason not to save.
                    process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
            time.sleep(0.05)
            failed = [p.returncode for p in processes if p.returncode]
            if failed and not code:
                code = failed[0]
                # Those that stop save and end by themselves; others would wait for a dead one.
                if code != STOPPED:
                    for process in processes:
                        process.kill()
    code = code or next((p.returncode for p in processes if p.returncode), 0)
    return code if code >= 0 else 128 - code


def _parser() -> Parser:
    parser = Parser(
        "python -m launch.local",
        __doc__.splitlines()[0],
        usage="%(prog)s [-h] PROCESSES ARGUMENT …",
        epilog="The arguments go to bjax.main: 2 --config=vit_mask.py:demo --workdir=runs/two",
    )
    parser.add_argument("processes", type=positive, metavar="PROCESSES", help="how many of them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
