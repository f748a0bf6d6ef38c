"""Counting the lookups on some NFS devices in a tracing instance: attach, read, empty, remove."""

from collections.abc import Sequence
from contextlib import suppress

from promoterd import threads
from promoterd.heat import histograms, tracefs
from promoterd.heat.base import Kind
from promoterd.heat.lookups import LOOKUP, Reading, Taken
from promoterd.heat.nfs_devices import Device
from promoterd.heat.tracepoints import (
    EXIT,
    MISS_FIELDS,
    Meaning,
    Trigger,
    has_field,
    joined,
    kernel_device,
    together,
    told_apart,
)

_EMPTY_FROM = 0.5
"""Share of a histogram's places that may be taken before it is emptied."""


class LookupCounter:
    """Counts until it is closed, but not what this process does: it takes the name by which it is left out.

    ``devices`` are the NFS file systems with the versions of their protocol. ``size`` is the number of directories that
    each histogram has room for, 128 at least; what finds no room is counted as dropped. Raises OSError where the kernel
    grants no means to.
    """

    def __init__(self, devices: Sequence[Device], size: int) -> None:
        threads.take_name()
        numbers = sorted({kernel_device(device) for device, _ in devices})
        self._instance = tracefs.Instance()
        self._triggers: list[Trigger] = []
        try:
            if has_field(self._instance.layout(EXIT), "fileid"):
                self._triggers, rest = told_apart(numbers, size), None
                self._attach(self._triggers)
            else:
                self._triggers, rest = together(numbers, size), LOOKUP
                self._attach(self._triggers)
                if self._join(numbers, [version for _, version in devices], size):
                    rest = Kind.FOUND
        except OSError:
            self.close()
            raise
        self._reading = Reading(rest)

    def take(self) -> Taken:
        """What was counted since the last time. Raises OSError."""
        found = []
        # misses first: what is counted meanwhile is in the others then, and its miss is taken off the next time
        for event in dict.fromkeys(trigger.event for trigger in reversed(self._triggers)):
            ours = [trigger for trigger in self._triggers if trigger.event == event]
            for histogram in histograms.parse(self._instance.histograms(event)):
                found += [(trigger, histogram) for trigger in ours if trigger.is_in(histogram.trigger)]
        taken = self._reading.take(found)
        full = [trigger for trigger, histogram in found if histogram.entries >= trigger.size * _EMPTY_FROM]
        if any(trigger.meaning is Meaning.JOIN for trigger in full):
            self._join_anew()
        for trigger in full:
            if trigger.meaning is not Meaning.JOIN:
                self._instance.attach(trigger.event, histograms.clearing(trigger.command))
                self._reading.cleared(trigger)
        return taken

    def close(self) -> None:
        """Count no more, and leave nothing behind; may be called twice."""
        with suppress(OSError):
            self._detach([trigger for trigger in self._triggers if trigger.meaning is Meaning.JOIN])
        with suppress(OSError):
            self._instance.remove()

    def _attach(self, triggers: Sequence[Trigger]) -> None:
        for trigger in triggers:
            self._instance.attach(trigger.event, trigger.command)

    def _join(self, numbers: Sequence[int], versions: Sequence[int], size: int) -> bool:
        """Whether the kernel joins the events by which misses are known."""
        attached: list[Trigger] = []
        try:
            for trigger in joined(numbers, versions, size, self._instance.define(MISS_FIELDS)):
                self._instance.attach(trigger.event, trigger.command)
                attached.append(trigger)
        except OSError:
            self._detach(attached)
            return False
        self._triggers = [*self._triggers, *attached]
        return True

    def _join_anew(self) -> None:
        """What holds variables cannot be emptied; a few misses count as found meanwhile."""
        join = [trigger for trigger in self._triggers if trigger.meaning is Meaning.JOIN]
        self._detach(join)
        self._attach(join)

    def _detach(self, triggers: Sequence[Trigger]) -> None:
        for trigger in reversed(triggers):
            self._instance.detach(trigger.event, trigger.command)
