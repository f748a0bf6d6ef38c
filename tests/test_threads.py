"""In a process of its own, as it is renamed."""

import json
import subprocess
import sys

from promoterd.threads import NAME

_NAMES = """\
import json, os, sys, threading, time
from promoterd import threads
end = threading.Event()
def name(task):
    try:
        return open(f"/proc/self/task/{task}/comm").read().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return threads.NAME
names = lambda: [name(task) for task in os.listdir("/proc/self/task")]
"""


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _NAMES + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


def test_all_threads_take_the_name_and_hand_it_on() -> None:
    before, after = run("""\
for _ in range(3):
    threading.Thread(target=end.wait, daemon=True).start()
before = names()
threads.take_name()
thread = threads.start(end.wait, name="something")
assert thread.daemon and thread.name.startswith(threads.NAME)
inner = threading.Thread(target=threads.start, args=(end.wait,), kwargs={"name": "within"})
inner.start()
inner.join()
print(json.dumps([before, names()]))
end.set()
""")
    assert len(before) == 4
    assert not any(name.startswith(NAME) for name in before)
    assert len(after) >= 6  # and perhaps one that ends
    assert all(name.startswith(NAME) for name in after)


def test_none_is_missed_that_is_started_meanwhile() -> None:
    after = run("""\
def hand_on(left):
    if left:
        threads.start(hand_on, left - 1, name="next")
    end.wait()
sys.setswitchinterval(1e-6)
for _ in range(20):
    threads.start(hand_on, 20, name="first")
threads.take_name()
deadline = time.monotonic() + 60
while threading.active_count() < 1 + 20 * 21 and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps(names()))
end.set()
""")
    assert len(after) == 1 + 20 * 21
    assert all(name.startswith(NAME) for name in after)


def test_a_name_of_ours_is_kept() -> None:
    (after,) = run("""\
open("/proc/self/comm", "w").write("promoterd probe")
threads.take_name()
print(json.dumps(names()))
""")
    assert after == "promoterd probe"
