"""The virtual machine: QEMU without KVM, one CPU, no network device; it boots, does one job, and powers off."""

import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from lab.errors import GuestFailed, LabError

QEMU = "qemu-system-x86_64"
_RESULTS_SIZE = 128 * 1024 * 1024
_CONSOLE_SHOWN = 60
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|c)")
"""The firmware clears the screen with these."""
_KERNEL_ARGUMENTS = (
    *("console=ttyS0", "quiet", "loglevel=4", "panic=-1", "mitigations=off", "tsc=reliable", "no_timer_check"),
    *("nokaslr", "random.trust_cpu=on", "cryptomgr.notests", "audit=0"),
)
_PROCESSOR = "Nehalem,+rdrand"
"""An old one: what newer ones have besides has to be emulated as well, and costs a tenth of the time."""
BY_INSTRUCTIONS = "lab.clock=instructions"
"""What tells the guest, in its kernel's arguments, that times can be asserted on."""


@dataclass(frozen=True)
class Disk:
    """An image that the guest sees as the next virtio disk; what it writes there is kept only if ``keep``."""

    image: str
    keep: bool = False


@dataclass(frozen=True)
class Machine:
    """What boots. ``console`` is the file that all the guest says goes to; ``said`` hears each line of it.

    By ``instructions``, the guest's clock goes on 2 ns with each that its processor executes, and at once to what it
    waits for otherwise: how busy the host is, or how well an emulator does, is in no time that is measured.
    """

    kernel: str
    archives: Sequence[str]
    disks: Sequence[Disk]
    console: str
    memory_mib: int = 3072
    qemu: str = QEMU
    said: Callable[[str], None] = lambda _: None
    instructions: bool = False

    def run(self, results: str, timeout: float) -> None:
        """Boot, wait for the end, and unpack what the guest left in the directory ``results``.

        Raises GuestFailed, with the end of its console, if the guest dies, runs for longer than ``timeout`` seconds,
        leaves nothing, or says that its job failed; LabError if QEMU is missing or does not start.
        """
        if shutil.which(self.qemu) is None:
            raise LabError(f"{self.qemu} is not installed: apt-get install qemu-system-x86")
        shutil.rmtree(results, ignore_errors=True)
        os.makedirs(results)
        os.makedirs(os.path.dirname(self.console), exist_ok=True)
        home = os.path.dirname(self.console)
        out, initrd = f"{home}/out.img", f"{home}/initrd"
        try:
            with open(out, "wb") as file:
                file.truncate(_RESULTS_SIZE)
            with open(initrd, "wb") as whole:
                for archive in self.archives:
                    with open(archive, "rb") as part:
                        shutil.copyfileobj(part, whole)
            in_time, code = self._boot(self._command(initrd, out), timeout)
            with suppress(tarfile.ReadError), tarfile.open(out, "r:") as left:  # else the disk is as blank as it was
                # Debian 12's Python has no filters yet (tarfile, "Hints for further verification")
                left.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
                left.extractall(results)  # noqa: S202 - our own guest packed it
        finally:
            for path in (out, initrd):
                with suppress(FileNotFoundError):
                    os.unlink(path)
        self._judge(results, timeout, code=code, in_time=in_time)

    def _judge(self, results: str, timeout: float, *, code: int, in_time: bool) -> None:
        if not in_time:
            raise self._failure(f"the guest hung: it was not done after {timeout:.0f} s")
        try:
            with open(f"{results}/status", encoding="ascii") as file:
                status = file.read().strip()
        except FileNotFoundError:
            raise self._failure(f"the guest died before its job ended (QEMU exited with {code})") from None
        if status != "0":
            raise self._failure(f"the job in the guest failed with status {status}")

    def _failure(self, why: str) -> GuestFailed:
        with open(self.console, encoding="utf-8", errors="backslashreplace") as file:
            last = file.read().splitlines()[-_CONSOLE_SHOWN:]
        shown = "\n".join(f"  | {line}" for line in last)
        return GuestFailed(f"{why}. The end of its console, {self.console}:\n{shown}")

    def _command(self, initrd: str, out: str) -> list[str]:
        accel = ["tcg,thread=single", "-icount", "shift=1,sleep=off"] if self.instructions else ["tcg,thread=multi"]
        arguments = [*_KERNEL_ARGUMENTS, *([BY_INSTRUCTIONS] if self.instructions else [])]
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),  # the guest ends with us, however we end
            *(self.qemu, "-accel", *accel, "-M", "q35,hpet=off", "-cpu", _PROCESSOR, "-smp", "1"),
            *("-m", str(self.memory_mib), "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio"),
            *("-no-reboot", "-kernel", self.kernel, "-initrd", initrd, "-append", " ".join(arguments)),
        ]
        for number, disk in enumerate([Disk(out, keep=True), *self.disks]):
            snapshot = "" if disk.keep else ",snapshot=on"
            command += ["-drive", f"file={disk.image},format=raw,if=none,id=d{number},cache=unsafe{snapshot}"]
            command += ["-device", f"virtio-blk-pci,drive=d{number}"]
        return command

    def _boot(self, command: Sequence[str], timeout: float) -> tuple[bool, int]:
        """Whether it ended by itself in time, and QEMU's exit code."""
        deadline = time.monotonic() + timeout
        with (
            open(self.console, "wb") as console,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as process,
        ):
            assert process.stdout is not None
            listener = threading.Thread(target=self._listen, args=(process.stdout, console), daemon=True)
            listener.start()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                listener.join(5)
        return in_time, process.returncode

    def _listen(self, stream: IO[bytes], console: IO[bytes]) -> None:
        for line in stream:
            console.write(line)
            console.flush()
            self.said(_ESCAPES.sub("", line.decode("utf-8", "backslashreplace")).rstrip())
