"""The first process of a run's own process namespace: starts the program, reaps orphans, and ends when it ends.

When it ends, however it ends, the kernel kills every process of the namespace: agents, fences, servers, etcd members,
frozen ones too. Source: pid_namespaces(7).
"""

import os
import signal
import subprocess
import sys


def main() -> None:
    """Run the command in argv."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C reaches the program by itself
    program = subprocess.Popen(sys.argv[1:], start_new_session=False, preexec_fn=_hears_ctrl_c)
    signal.signal(signal.SIGTERM, lambda *_: program.send_signal(signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == program.pid:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _hears_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
