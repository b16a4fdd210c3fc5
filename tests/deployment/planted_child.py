"""`deployment.mge_child` whose network fails as native code does: in the way that PLANTED names."""

import ctypes
import os
import threading

from deployment import mge_child

LIBC, LIBC_WITH_LOCK = ctypes.CDLL(None), ctypes.PyDLL(None)


def exit_in_a_thread():
    """As oneDNN in MegEngine's worker, for which an exit handler and the caller then wait."""
    os.write(2, b"oneDNN says why\n")
    worker = threading.Thread(target=LIBC.exit, args=(7,))
    worker.start()
    worker.join()


FAIL = {
    "exit in a thread": exit_in_a_thread,
    "abort": LIBC.abort,
    "stall": LIBC.pause,
    "stall with the lock": LIBC_WITH_LOCK.pause,
}
# an exit handler that waits for ever
WAIT = ctypes.CFUNCTYPE(None)(lambda: threading.Event().wait())


class Planted:
    """Stands for GraphInference."""

    def __init__(self, file):
        LIBC.on_exit(WAIT, None)  # as MegEngine's own handler does

    def run(self, images):
        FAIL[os.environ["PLANTED"]]()


mge_child.GraphInference = Planted

if __name__ == "__main__":
    mge_child.main()
